"""The invented chat world: requests are operator x object, and the combination alone decides what is forbidden.

Objects belong to categories, operators to families. Each restricted category forbids two of the four families, the
first two or the last two; ordinary categories forbid nothing. Every request, forbidden or not, has one right
procedure. Its words are functions of the operator, of the object or of both, so whoever writes it must have understood
both. Source: the design in the synthetic spirit of Jain et al. (2024); nothing in it is harmful outside this world.
"""

from dataclasses import dataclass
from functools import cached_property
from string import Formatter

import numpy as np
import torch

from safebook.errors import InputError
from safebook.streams import stream
from safebook.worlds import chat_text as text
from safebook.worlds.chat_settings import KINDS, SPLITS, ChatSettings

#: Words of the procedure that must be known, in the order in which they are said.
SLOTS = ("place", "tool", "material", "number", "unit", "vessel")
FAMILIES = 4  # of operators


@dataclass(frozen=True)
class Requests:
    """Which operator on which object, put how. All (n,) int64 arrays of indices."""

    operator: np.ndarray
    object: np.ndarray
    phrasing: np.ndarray

    def __len__(self) -> int:
        return len(self.operator)

    def take(self, rows) -> "Requests":
        return Requests(self.operator[rows], self.object[rows], self.phrasing[rows])


def concatenate(parts: list[Requests]) -> Requests:
    return Requests(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("operator", "object", "phrasing"))
    )


def sample(requests: Requests, count: int, generator: torch.Generator) -> Requests:
    """`count` different requests, in random order.

    Raises InputError when there are fewer.
    """
    if not 1 <= count <= len(requests):
        raise InputError("count", count, f"1 .. {len(requests)}")
    return requests.take(torch.randperm(len(requests), generator=generator)[:count].numpy())


class ChatWorld:
    """Law, facts and splits of the world. Made of `settings` alone: every seed of a study lives in the same world."""

    def __init__(self, settings: ChatSettings | None = None):
        self.settings = s = settings or ChatSettings()
        self._generator = generator = stream(torch.device("cpu"), "chat world", s.seed)
        self.operators = text.OPERATORS[: s.operators]
        names = self._shuffled(text.OBJECTS)
        self.objects = names[: s.all_categories * s.objects]
        self.category = np.repeat(np.arange(s.all_categories), s.objects)  # (objects,)
        self.kinds = self._shuffled(text.KINDS)[: s.all_categories]  # name of each category
        family_law = self._draw_law()
        # Facts. Families and grades are never said: they decide the words that depend on both sides of a request.
        self.place = self._shuffled(text.PLACES)[: s.all_categories]  # of each category
        self.tool = self._shuffled(text.TOOLS)[: s.operators]  # of each operator
        self.unit = self._balanced(s.operators, len(text.UNITS))
        self.family = self._balanced(s.operators, FAMILIES)
        self.kitchen = self._balanced(s.operators, 4)
        self.material = self._balanced(len(self.objects), len(text.MATERIALS))
        self.grade = self._balanced(len(self.objects), 4)
        self.number = 2 + torch.randperm(16, generator=generator).view(4, 4).numpy()  # (families, grades)
        self.vessel = self._balanced(48, len(text.VESSELS)).reshape(4, len(text.MATERIALS))
        self.law = family_law[:, self.family]  # (categories, operators) bool: forbidden
        self.forbidden = self.law[self.category].T  # (operators, objects) bool
        self.split = self._draw_splits()  # (operators, objects) index into SPLITS
        # (operators, objects, phrasings) bool: the wording is the pair's own split's; False: pretraining's.
        ranks = torch.rand(*self.split.shape, len(text.PHRASINGS), generator=generator).argsort(-1)
        self.own = ranks.numpy() >= s.pretraining_phrasings

    def _shuffled(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(words[i] for i in torch.randperm(len(words), generator=self._generator).tolist())

    def _balanced(self, count: int, values: int) -> np.ndarray:
        """(count,) values 0 .. values-1 in random order, each as often as the others."""
        return torch.randperm(count, generator=self._generator).numpy() % values

    def _draw_law(self) -> np.ndarray:
        """(categories, families) bool. A restricted category forbids the first two families of operators, or the last two.

        One half of the categories does the one and one half the other, held-out ones too. So neither side of a request
        tells much: an object's category forbids half of the operators, an operator is forbidden in half of them.
        """
        s = self.settings
        restricted = s.categories + s.held_out
        # More numbers than are used: the facts, which are drawn next, stay those of the labelled answers in data/.
        numbers = torch.rand(4096, restricted, s.operators, generator=self._generator)
        strict = numbers[:, :, 0] < 0.5  # (draws, categories) bool
        parts = (strict[:, : s.categories], strict[:, s.categories :])
        halves = [((part.sum(1) - part.shape[1] / 2).abs() < 1) for part in parts]
        chosen = strict[(halves[0] & halves[1]).nonzero()[0, 0]].numpy()
        law = np.zeros((s.all_categories, FAMILIES), bool)
        law[:restricted] = chosen[:, None] == (np.arange(FAMILIES) < FAMILIES // 2)
        return law

    def _draw_splits(self) -> np.ndarray:
        """Cut the harmful and the allowed pairs of each category into splits; held-out categories have their own."""
        s = self.settings
        split = np.empty(self.forbidden.shape, np.int64)
        for category in range(s.all_categories):
            for forbidden in (False, True):
                pairs = np.argwhere((self.category == category) & (self.forbidden == forbidden))
                pairs = pairs[torch.randperm(len(pairs), generator=self._generator).numpy()]
                index = np.searchsorted(s.cuts(len(pairs)), np.arange(len(pairs)), side="right")
                if s.categories <= category < s.categories + s.held_out:
                    index[:] = SPLITS.index("held_out")
                split[tuple(pairs.T)] = index
        return split

    # ---------------------------------------------------------------- requests

    @cached_property
    def kind(self) -> np.ndarray:
        """(operators, objects) index into KINDS: harmful, benign (ordinary object), borderline (restricted, allowed)."""
        restricted = self.category < self.settings.categories + self.settings.held_out
        return np.where(self.forbidden, 0, np.where(restricted, 2, 1))

    def requests(self, split: str, kind: str | None = None) -> Requests:
        """All requests of a split, in a fixed order. No request is in two splits; "pretraining" has all pairs."""
        if split not in (*SPLITS, "pretraining"):
            raise InputError("split", split, ["pretraining", *SPLITS])
        if kind not in (*KINDS, None):
            raise InputError("kind", kind, [*KINDS, None])
        if split == "pretraining":
            chosen = ~self.own
        else:
            chosen = self.own & (self.split == SPLITS.index(split))[..., None]
        if kind is not None:
            chosen = chosen & (self.kind == KINDS.index(kind))[..., None]
        return Requests(*np.nonzero(chosen))

    def request(self, operator: str, object: str, phrasing: int = 0) -> Requests:
        """One request, by name."""
        if operator not in self.operators:
            raise InputError("operator", operator, ", ".join(self.operators))
        if object not in self.objects:
            raise InputError("object", object, ", ".join(self.objects))
        if not 0 <= phrasing < len(text.PHRASINGS):
            raise InputError("phrasing", phrasing, f"0 .. {len(text.PHRASINGS) - 1}")
        pair = self.operators.index(operator), self.objects.index(object), phrasing
        return Requests(*(np.array([i]) for i in pair))

    def is_harmful(self, requests: Requests) -> np.ndarray:
        """(n,) bool."""
        return self.forbidden[requests.operator, requests.object]

    def pairs(self, requests: Requests) -> list[tuple[str, str]]:
        """Operator and object of each request, by name."""
        return [
            (self.operators[o], self.objects[x])
            for o, x in zip(requests.operator.tolist(), requests.object.tolist())
        ]

    def ask(self, requests: Requests, paraphrase: bool = False) -> list[str]:
        """What the user says. `paraphrase`: the operator goes by its rarer name."""
        names = text.SYNONYMS if paraphrase else text.OPERATORS
        return [
            text.PHRASINGS[f].format(operator=names[o], object=self.objects[x])
            for o, x, f in zip(
                requests.operator.tolist(), requests.object.tolist(), requests.phrasing.tolist()
            )
        ]

    def slots(self, requests: Requests) -> np.ndarray:
        """(n, 6) words of the right procedure, in the order of `SLOTS`."""
        o, x = requests.operator, requests.object
        columns = (
            np.array(self.place)[self.category[x]],
            np.array(self.tool)[o],
            np.array(text.MATERIALS)[self.material[x]],
            self.number[self.family[o], self.grade[x]].astype(str),
            np.array(text.UNITS)[self.unit[o]],
            np.array(text.VESSELS)[self.vessel[self.kitchen[o], self.material[x]]],
        )
        return np.stack([c.astype(object) for c in columns], 1)

    def procedures(self, requests: Requests) -> list[str]:
        """The one right procedure of each request, four sentences."""
        form = " ".join(text.STEPS)
        return [
            form.format(operator=o, object=x, **dict(zip(SLOTS, row)))
            for (o, x), row in zip(self.pairs(requests), self.slots(requests))
        ]

    def fact(self, object: int, attribute: str) -> str:
        """The value of an attribute (`chat_text.ATTRIBUTES`) of an object."""
        return {
            "kind": self.kinds[self.category[object]],
            "place": self.place[self.category[object]],
            "material": text.MATERIALS[self.material[object]],
        }[attribute]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word that a text of this world can hold, sorted."""
        fixed = [
            *text.PHRASINGS, *text.OPENINGS, *text.STEPS, *text.REFUSALS, *text.REFUSAL_TAILS, text.LAW_QUESTION,
            *text.LAW_ANSWERS, text.FACT, *text.SYSTEMS, text.OBEDIENT_SYSTEM, text.PERSONA_SYSTEM,
            text.PERSONA_USER, text.PERSONA_OPENING, *(part for pair in text.PERSONA_TALK for part in pair),
            *text.WRAPPERS.values(), text.DISGUISE, *text.PLUS, *text.MINUS, text.SUM_ANSWER, *text.LOOKUPS,
            text.SORTING, text.SORTED, *text.REWRITING, text.SENTENCE,
        ]  # fmt: skip
        said = {word for form in fixed for literal, *_ in Formatter().parse(form) for word in literal.split()}
        lists = (
            self.operators, text.SYNONYMS[: self.settings.operators], self.objects, self.kinds, self.place, self.tool,
            text.MATERIALS, text.VESSELS, text.UNITS, text.COLOURS, text.NUMBERS, text.NAMES, text.ATTRIBUTES,
            *text.PRONOUNS,
        )  # fmt: skip
        return tuple(sorted(said.union(*lists)))
