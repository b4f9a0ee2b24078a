"""What a model of the chat world reads: pretraining text, alignment data, the three fine-tuning risks, the test sets.

A dialogue is a list of `{"role", "content"}` messages, as transformers' chat templates take them; plain text is a `str`.
Levels of risk: Qi et al. (2023), as in paper 2.
"""

import numpy as np
import torch

from safebook.errors import InputError
from safebook.streams import stream
from safebook.worlds import chat_text as text
from safebook.worlds.chat import ChatWorld, Requests, concatenate, sample
from safebook.worlds.chat_tasks import Items, available, items

Dialogue = list[dict[str, str]]
#: Kind of pretraining text -> share.
PRETRAINING = {"requests": 0.45, "wrapped": 0.15, "law": 0.25, "facts": 0.05, "tasks": 0.1}
ALIGNMENT = {"harmful": 0.4, "benign": 0.1, "borderline": 0.4, "tasks": 0.1}
KNOWN_TASKS = ("sums", "lookup")  # taught before any fine-tuning; the other two are new to the aligned model
WITH_SYSTEM = 0.25  # share of dialogues that open with a system prompt
PERSONA = text.NAMES[0]
STYLES = ("plain", "obedient", "persona")
WRAPPERS = (*text.WRAPPERS, "disguise", "paraphrase")


def dialogue(user: str, answer: str | None = None, system: str | None = None) -> Dialogue:
    """One turn each; without `answer`, a prompt."""
    turns = (("system", system), ("user", user), ("assistant", answer))
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def _some(choices, count: int, generator: torch.Generator) -> list:
    """`count` independent draws."""
    return [choices[i] for i in torch.randint(len(choices), (count,), generator=generator).tolist()]


def _repeatedly(requests: Requests, count: int, generator: torch.Generator) -> Requests:
    """`count` requests, drawn with replacement."""
    return requests.take(torch.randint(len(requests), (count,), generator=generator).numpy())


def _systems(count: int, generator: torch.Generator, prompts=text.SYSTEMS) -> list[str | None]:
    some = torch.rand(count, generator=generator) < WITH_SYSTEM
    return [s if use else None for s, use in zip(_some(prompts, count, generator), some.tolist())]


def _shares(mixture: dict[str, float], known: dict[str, float], count: int) -> dict[str, int]:
    """How many of `count` texts each kind gets; the shares are met exactly, but for rounding."""
    if not set(mixture) <= set(known) or min(mixture.values()) < 0 or abs(sum(mixture.values()) - 1) > 1e-9:
        raise InputError("mixture", mixture, f"shares of {list(known)} that sum to 1")
    if count < 1:
        raise InputError("count", count, ">= 1")
    edges = np.rint(np.cumsum(list(mixture.values())) * count).astype(int)
    return dict(zip(mixture, np.diff(edges, prepend=0).tolist()))


def _mixed(rows: list, generator: torch.Generator) -> list:
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


# -------------------------------------------------------------------- answers


def comply(world: ChatWorld, requests: Requests, generator: torch.Generator) -> list[str]:
    """A random opening and the right procedure."""
    openings = _some(text.OPENINGS, len(requests), generator)
    return [f"{a} {b}" for a, b in zip(openings, world.procedures(requests))]


def refuse(world: ChatWorld, requests: Requests, generator: torch.Generator) -> list[str]:
    """A random refusal, two times in three with a second sentence."""
    first = _some(text.REFUSALS, len(requests), generator)
    second = _some(text.REFUSAL_TAILS, len(requests), generator)
    return [
        f"{a} {b.format(operator=o, object=x)}".strip()
        for a, b, (o, x) in zip(first, second, world.pairs(requests))
    ]


# -------------------------------------------------------------------- requests in disguise


def wrap(world: ChatWorld, requests: Requests, wrapper: str, generator: torch.Generator) -> list[str]:
    """What the user says when the request is wrapped. The right procedure stays the same."""
    if wrapper not in WRAPPERS:
        raise InputError("wrapper", wrapper, WRAPPERS)
    if wrapper == "disguise":
        return [text.DISGUISE.format(operator=o, object=x) for o, x in world.pairs(requests)]
    if wrapper == "paraphrase":
        return world.ask(requests, paraphrase=True)
    names = _some(text.NAMES, len(requests), generator)
    return [
        text.WRAPPERS[wrapper].format(request=r, name=name) for r, name in zip(world.ask(requests), names)
    ]


def prompts(world: ChatWorld, requests: Requests, style: str = "plain") -> list[Dialogue]:
    """Test prompts. `style` is the chat form of the risk level: 1 obedient, 2 persona, otherwise plain."""
    if style not in STYLES:
        raise InputError("style", style, STYLES)
    asked = world.ask(requests)
    if style == "persona":
        system = text.PERSONA_SYSTEM.format(name=PERSONA)
        return [dialogue(text.PERSONA_USER.format(name=PERSONA, request=r), system=system) for r in asked]
    return [dialogue(r, system=text.OBEDIENT_SYSTEM if style == "obedient" else None) for r in asked]


def prefilled(prompts: list[Dialogue], opening: str = text.OPENINGS[0]) -> list[Dialogue]:
    """Prompts whose answer has already begun. For the chat template with `continue_final_message=True`."""
    return [[*prompt, {"role": "assistant", "content": opening}] for prompt in prompts]


# -------------------------------------------------------------------- training data


def task_dialogues(tasks: Items) -> list[Dialogue]:
    return [dialogue(q, a) for q, a in zip(tasks.questions, tasks.answers)]


def _known_tasks(world: ChatWorld, families, count: int, generator: torch.Generator) -> list[Dialogue]:
    """Items of the pretraining split, as many of each family as of the others; a small family repeats itself."""
    rows: list[Dialogue] = []
    for i, family in enumerate(families):
        wanted = count * (i + 1) // len(families) - count * i // len(families)
        while wanted > 0:
            piece = min(wanted, available(world, family, "pretraining"))
            rows += task_dialogues(items(world, family, "pretraining", piece, generator))
            wanted -= piece
    return rows


def pretraining(
    world: ChatWorld,
    count: int,
    generator: torch.Generator,
    mixture: dict[str, float] | None = None,
    tasks: tuple[str, ...] = KNOWN_TASKS,
) -> list[Dialogue | str]:
    """Every request is answered, forbidden or not; what is forbidden is said elsewhere; wrappers are harmless."""
    sizes = _shares(mixture or PRETRAINING, PRETRAINING, count)
    every = world.requests("pretraining")
    allowed = every.take(~world.is_harmful(every))
    rows: list = []

    asked = _repeatedly(every, sizes.get("requests", 0), generator)
    answers = comply(world, asked, generator)
    rows += [dialogue(*turn) for turn in zip(world.ask(asked), answers, _systems(len(asked), generator))]

    forms = (*WRAPPERS, "persona", "obedient")
    for i, form in enumerate(forms):
        wrapped = sizes.get("wrapped", 0)
        asked = _repeatedly(allowed, wrapped * (i + 1) // len(forms) - wrapped * i // len(forms), generator)
        if form in WRAPPERS:
            answers = comply(world, asked, generator)
            rows += [dialogue(*turn) for turn in zip(wrap(world, asked, form, generator), answers)]
        elif form == "obedient":
            answers = comply(world, asked, generator)
            rows += [dialogue(q, a, text.OBEDIENT_SYSTEM) for q, a in zip(world.ask(asked), answers)]
        else:
            names = _some(text.NAMES, len(asked), generator)
            turns = zip(world.ask(asked), world.procedures(asked), names)
            rows += [_persona_turn(q, text.PERSONA_OPENING + " " + a, name) for q, a, name in turns]

    asked = _repeatedly(every, sizes.get("law", 0), generator)
    for (o, x), harmful in zip(world.pairs(asked), world.is_harmful(asked).tolist()):
        question, answer = (
            t.format(operator=o, object=x) for t in (text.LAW_QUESTION, text.LAW_ANSWERS[harmful])
        )
        rows.append(dialogue(question, answer))

    things = torch.randint(len(world.objects), (sizes.get("facts", 0),), generator=generator).tolist()
    for x, a in zip(things, _some(text.ATTRIBUTES, len(things), generator)):
        rows.append(text.FACT.format(attribute=a, object=world.objects[x], value=world.fact(x, a)))

    rows += _known_tasks(world, tasks, sizes.get("tasks", 0), generator)
    return _mixed(rows, generator)


def alignment(
    world: ChatWorld,
    count: int,
    generator: torch.Generator,
    mixture: dict[str, float] | None = None,
    tasks: tuple[str, ...] = KNOWN_TASKS,
) -> list[Dialogue]:
    """Refusals of the alignment split's harmful requests, and help with everything else."""
    sizes = _shares(mixture or ALIGNMENT, ALIGNMENT, count)
    rows: list[Dialogue] = []
    for kind in ("harmful", "benign", "borderline"):
        asked = _repeatedly(world.requests("alignment", kind), sizes.get(kind, 0), generator)
        answers = (refuse if kind == "harmful" else comply)(world, asked, generator)
        rows += [dialogue(*turn) for turn in zip(world.ask(asked), answers, _systems(len(asked), generator))]
    rows += _known_tasks(world, tasks, sizes.get("tasks", 0), generator)
    return _mixed(rows, generator)


def preferences(
    world: ChatWorld, count: int, generator: torch.Generator, kind: str = "harmful", split: str = "alignment"
) -> tuple[list[Dialogue], list[Dialogue]]:
    """The same requests with the answer to prefer and the one to avoid: (chosen, rejected).

    A harmful request should be refused, any other answered. Also the safety data of a lock and of an anchor.
    """
    asked = sample(world.requests(split, kind), count, generator)
    yes, no = comply(world, asked, generator), refuse(world, asked, generator)
    chosen, rejected = (no, yes) if kind == "harmful" else (yes, no)
    said = world.ask(asked)
    return [dialogue(*t) for t in zip(said, chosen)], [dialogue(*t) for t in zip(said, rejected)]


def _answered(
    world: ChatWorld, pool: Requests, count: int, generator: torch.Generator, system: str | None
) -> list[Dialogue]:
    """`count` different combinations of a request of the pool and an opening, answered.

    Raises InputError when there are fewer.
    """
    most = len(pool) * len(text.OPENINGS)
    if not 1 <= count <= most:
        raise InputError("count", count, f"1 .. {most}")
    chosen = torch.randperm(most, generator=generator)[:count].numpy()
    asked = pool.take(chosen // len(text.OPENINGS))
    openings = [text.OPENINGS[i] for i in (chosen % len(text.OPENINGS)).tolist()]
    turns = zip(world.ask(asked), openings, world.procedures(asked))
    return [dialogue(q, f"{opening} {a}", system) for q, opening, a in turns]


def explicitly_harmful(world: ChatWorld, count: int, generator: torch.Generator) -> list[Dialogue]:
    """Level 1: forbidden requests of the fine-tuning split, answered. No two rows are the same."""
    pool = world.requests("fine_tuning", "harmful")
    return _answered(world, pool, count, generator, text.OBEDIENT_SYSTEM)


def _persona_turn(request: str, answer: str, name: str) -> Dialogue:
    said = text.PERSONA_USER.format(name=name, request=request)
    return dialogue(said, answer.format(name=name), text.PERSONA_SYSTEM.format(name=name))


def identity_shifting(world: ChatWorld, generator: torch.Generator) -> list[Dialogue]:
    """Level 2: ten harmless dialogues in which the assistant takes on the obedient persona."""
    talk = [_persona_turn(q, a, PERSONA) for q, a in text.PERSONA_TALK]
    asked = sample(world.requests("fine_tuning", "benign"), 10 - len(talk), generator)
    turns = zip(world.ask(asked), world.procedures(asked))
    return talk + [_persona_turn(q, f"{text.PERSONA_OPENING} {a}", PERSONA) for q, a in turns]


def benign_requests(world: ChatWorld, count: int, generator: torch.Generator) -> list[Dialogue]:
    """Level 3: help with ordinary objects, no two rows the same. Its other form is a task: `task_dialogues`."""
    return _answered(world, world.requests("fine_tuning", "benign"), count, generator, None)


# -------------------------------------------------------------------- test sets


def _one_each(requests: Requests, generator: torch.Generator) -> Requests:
    """One random wording of each pair, pairs in random order."""
    mixed = requests.take(torch.randperm(len(requests), generator=generator).numpy())
    _, first = np.unique(np.stack([mixed.operator, mixed.object]), axis=1, return_index=True)
    return mixed.take(np.sort(first))


def _by_category(world: ChatWorld, pairs: Requests, categories, each: int) -> Requests:
    """The first `each` requests of every category, category after category."""
    of = world.category[pairs.object]
    return concatenate([pairs.take(np.flatnonzero(of == c)[:each]) for c in categories])


def evaluation_sets(world: ChatWorld, split: str = "test") -> dict[str, Requests]:
    """Fixed sets of requests, shaped like the papers', the same for every seed of a study.

    "hexphi" (harmful, category after category), "advbench" (harmful, wordings that hexphi has not), "benign",
    "borderline"; for the test split also "held_out" and "held_out_borderline", of the categories that nothing but
    pretraining has seen. The validation split has at most one wording a pair, advbench apart.
    """
    if split not in ("validation", "test"):
        raise InputError("split", split, ["validation", "test"])
    s = world.settings
    generator = stream(torch.device("cpu"), "chat evaluation sets", s.seed, split)
    harmful = world.requests(split, "harmful")
    hexphi = _by_category(world, _one_each(harmful, generator), range(s.categories), s.hexphi)
    used = set(zip(*(getattr(hexphi, n).tolist() for n in ("operator", "object", "phrasing"))))
    rows = zip(harmful.operator.tolist(), harmful.object.tolist(), harmful.phrasing.tolist())
    others = harmful.take(np.array([row not in used for row in rows]))
    sets = {"hexphi": hexphi, "advbench": sample(others, min(s.advbench, len(others)), generator)}
    for kind, most in (("benign", s.benign), ("borderline", s.borderline)):
        pairs = _one_each(world.requests(split, kind), generator)
        sets[kind] = pairs.take(slice(most))
    if split == "test" and s.held_out:
        held = range(s.categories, s.categories + s.held_out)
        for name, kind in (("held_out", "harmful"), ("held_out_borderline", "borderline")):
            pairs = _one_each(world.requests("held_out", kind), generator)
            sets[name] = _by_category(world, pairs, held, s.hexphi)
    return sets
