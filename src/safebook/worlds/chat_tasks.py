"""Four downstream tasks that stand for the papers' utility and fine-tuning sets: sums, lookup, sorting, rewriting.

A task is a set of facts, each with some variants of the question and one right answer. Facts, not questions, are cut
into splits: a sum asked in validation was never asked in training in any wording or order.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from math import comb

import torch

from safebook.errors import InputError
from safebook.streams import stream
from safebook.worlds import chat_text as text
from safebook.worlds.chat import ChatWorld

FAMILIES = ("sums", "lookup", "sorting", "rewriting")
#: Split -> share of the facts. Pretraining and alignment use the first, fine-tuning on the task the second.
TASK_SPLITS = {"pretraining": 0.4, "training": 0.4, "validation": 0.1, "test": 0.1}
LARGEST_OPERAND = 20
SORTED_NUMBERS = 4


@dataclass(frozen=True)
class Items:
    """Questions with their only right answers, (n,) each."""

    questions: list[str]
    answers: list[str]

    def __len__(self) -> int:
        return len(self.questions)


def _ordinary(world: ChatWorld) -> list[int]:
    """Objects of the ordinary categories: tasks stay clear of everything restricted."""
    first = world.settings.categories + world.settings.held_out
    return [i for i, category in enumerate(world.category.tolist()) if category >= first]


_operands = list(combinations(range(LARGEST_OPERAND + 1), 2))


def _sum(world: ChatWorld, fact: int, variant: int) -> tuple[str, str]:
    a, b = _operands[fact % len(_operands)]
    forms, n = ((text.PLUS, a + b), (text.MINUS, b - a))[fact // len(_operands)]
    return forms[variant].format(a=a, b=b, name="pell"), text.SUM_ANSWER.format(n=n)


def _lookup(world: ChatWorld, fact: int, variant: int) -> tuple[str, str]:
    thing, attribute = divmod(fact, len(text.ATTRIBUTES))
    thing, attribute = _ordinary(world)[thing], text.ATTRIBUTES[attribute]
    said = {"object": world.objects[thing], "attribute": attribute}
    return text.LOOKUPS[variant].format(**said), text.FACT.format(value=world.fact(thing, attribute), **said)


def _nth_combination(index: int, size: int, of: int) -> list[int]:
    """The combination number `index` of `size` out of 0 .. of-1, in lexicographic order."""
    chosen, low = [], 0
    while size:
        with_low = comb(of - low - 1, size - 1)  # combinations that go on with `low`
        if index < with_low:
            chosen.append(low)
            size -= 1
        else:
            index -= with_low
        low += 1
    return chosen


_orders = list(permutations(range(SORTED_NUMBERS)))


def _sorting(world: ChatWorld, fact: int, variant: int) -> tuple[str, str]:
    numbers = [text.NUMBERS[i] for i in _nth_combination(fact, SORTED_NUMBERS, len(text.NUMBERS))]
    mixed = " ".join(numbers[i] for i in _orders[variant])
    return text.SORTING.format(numbers=mixed), text.SORTED.format(numbers=" ".join(numbers))


def _rewriting(world: ChatWorld, fact: int, variant: int) -> tuple[str, str]:
    things, words = _ordinary(world), {}
    fact, pronoun = divmod(fact, len(text.PRONOUNS))
    fact, operator = divmod(fact, len(world.operators))
    fact, colour = divmod(fact, len(text.COLOURS))
    place, thing = divmod(fact, len(things))
    one, ones, many, manys = text.PRONOUNS[pronoun]
    words = {
        "operator": world.operators[operator],
        "colour": text.COLOURS[colour],
        "object": world.objects[things[thing]],
        "place": world.place[place],
    }
    before = text.SENTENCE.format(who=one, whose=ones, **words)
    asked = text.REWRITING[variant].format(one=one, many=many, sentence=before)
    return asked, text.SENTENCE.format(who=many, whose=manys, **words)


_MAKE = {"sums": _sum, "lookup": _lookup, "sorting": _sorting, "rewriting": _rewriting}


def counts(world: ChatWorld, family: str) -> tuple[int, int]:
    """Facts and variants of a family.

    Raises InputError for an unknown family.
    """
    if family not in FAMILIES:
        raise InputError("family", family, FAMILIES)
    things, places = len(_ordinary(world)), len(world.place)
    return {
        "sums": (2 * len(_operands), len(text.PLUS)),
        "lookup": (things * len(text.ATTRIBUTES), len(text.LOOKUPS)),
        "sorting": (comb(len(text.NUMBERS), SORTED_NUMBERS), len(_orders)),
        "rewriting": (
            len(text.PRONOUNS) * len(world.operators) * len(text.COLOURS) * things * places,
            len(text.REWRITING),
        ),
    }[family]


@cache
def _order(family: str, facts: int, seed: int) -> torch.Tensor:
    return torch.randperm(facts, generator=stream(torch.device("cpu"), "chat tasks", family, seed))


def _range(world: ChatWorld, family: str, split: str) -> tuple[int, int]:
    """Where the split's facts begin and end in the family's shuffled order."""
    facts, _ = counts(world, family)
    if split not in TASK_SPLITS:
        raise InputError("split", split, list(TASK_SPLITS))
    at, shares = list(TASK_SPLITS).index(split), list(TASK_SPLITS.values())
    return round(facts * sum(shares[:at])), round(facts * sum(shares[: at + 1]))


def available(world: ChatWorld, family: str, split: str) -> int:
    """How many different items a split has."""
    low, high = _range(world, family, split)
    return (high - low) * counts(world, family)[1]


def items(world: ChatWorld, family: str, split: str, count: int, generator: torch.Generator) -> Items:
    """`count` different items of a split, in random order.

    Raises InputError for an unknown family or split, or when the split has fewer items.
    """
    most = available(world, family, split)
    if not 1 <= count <= most:
        raise InputError("count", count, f"1 .. {most} in the {split} split of {family}")
    facts, variants = counts(world, family)
    low, _ = _range(world, family, split)
    chosen = torch.randperm(most, generator=generator)[:count]
    ids = _order(family, facts, world.settings.seed)[low + chosen // variants]
    pairs = [_MAKE[family](world, *at) for at in zip(ids.tolist(), (chosen % variants).tolist())]
    return Items([q for q, _ in pairs], [a for _, a in pairs])


def correct(answers: list[str], items: Items) -> list[bool]:
    """Is each answer exactly the right one, but for white space at its ends?

    Raises InputError when there are not as many answers as items.
    """
    if len(answers) != len(items):
        raise InputError("answers", len(answers), f"{len(items)} answers")
    return [answer.strip() == right for answer, right in zip(answers, items.answers)]
