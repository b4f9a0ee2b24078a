"""What the directions of a lock read: refusing words, or safety? Contrasts in which the two do not go together.

Source: controls of our own; the paper has neither.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from safebook.errors import InputError
from safebook.locks import unit
from safebook.safetylock import Probes, Samples, projections
from safebook.streams import stream
from safebook.subjects import Chat, PromptSet, Subject
from safebook.worlds import chat_data, chat_tasks
from safebook.worlds import chat_text as text
from safebook.worlds.chat import ChatWorld, Requests, sample

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Contrast:
    """Two classes of chats that differ in one thing."""

    differs: str  # "wording" | "safety" | "both" | "topic"
    position: str  # where it is read: "response" | "prompt", as in LockSettings
    chosen: list[Chat]
    rejected: list[Chat]


def readings(asked: Subject, count: int, seed: int) -> dict[str, Contrast]:
    """Contrasts of the testbed's test requests, `count` chats a class: what they differ in decides what is read.

    "answers": forbidden requests, refused or complied with, as in the published data. "wording": the same two kinds of answer
    to harmless requests. "refusal in front": harmless requests, the right procedure after a refusal or after a willing opening,
    so that the last tokens are the same words. "content": complying answers to allowed or to forbidden requests about the same
    kinds of objects. "requests": forbidden or harmless ones. "matched requests": forbidden or allowed ones about the same kinds
    of objects. "topic": neither forbidden, about restricted or about ordinary objects.
    """
    world = _world(asked)

    def some(kind: str, *names: object) -> Requests:
        return sample(world.requests("test", kind), count, stream(CPU, "lock reading", kind, *names, seed))

    def answered(requests: Requests, answers: list[str]) -> list[Chat]:
        return [chat_data.dialogue(*turn) for turn in zip(world.ask(requests), answers)]

    harmful, benign, allowed = some("harmful"), some("benign"), some("borderline")
    words = stream(CPU, "lock reading answers", seed)

    def both(requests: Requests) -> tuple[list[Chat], list[Chat]]:
        no, yes = (say(world, requests, words) for say in (chat_data.refuse, chat_data.comply))
        return answered(requests, no), answered(requests, yes)

    fronts = [
        [f"{front} {steps}" for front, steps in zip(chosen, world.procedures(benign))]
        for chosen in (_some(text.REFUSALS, count, words), _some(text.OPENINGS, count, words))
    ]
    helped = [answered(r, chat_data.comply(world, r, words)) for r in (allowed, harmful)]
    asks = {
        kind: chat_data.prompts(world, r)
        for kind, r in (("harmful", harmful), ("benign", benign), ("borderline", allowed))
    }
    half = count // 2
    harmless = asks["benign"][: count - half] + asks["borderline"][:half]
    return {
        "answers": Contrast("both", "response", *both(harmful)),
        "wording": Contrast("wording", "response", *both(benign)),
        "refusal in front": Contrast("wording", "response", *(answered(benign, f) for f in fronts)),
        "content": Contrast("safety", "response", *helped),
        "requests": Contrast("both", "prompt", asks["harmful"], harmless),
        "matched requests": Contrast("safety", "prompt", asks["harmful"], asks["borderline"]),
        "topic": Contrast("topic", "prompt", asks["borderline"], asks["benign"]),
    }


def arbitrary(asked: Subject, kind: str, position: str, count: int, seed: int) -> Contrast:
    """A contrast that has nothing to do with safety, `count` chats a class, answered if read at the response.

    "topics": harmless requests about two halves of the ordinary categories; "tasks": two families of tasks.
    """
    world = _world(asked)
    if kind == "topics":
        pool = world.requests("alignment", "benign")
        odd = world.category[pool.object] % 2 == 1
        parts = []
        for name, side in (("odd", odd), ("even", ~odd)):
            chosen = sample(pool.take(side), count, stream(CPU, "lock topics", name, seed))
            answers = chat_data.comply(world, chosen, stream(CPU, "lock topics answers", seed))
            parts.append([chat_data.dialogue(*turn) for turn in zip(world.ask(chosen), answers)])
    elif kind == "tasks":
        parts = []
        for family in chat_data.KNOWN_TASKS:
            some = min(count, *(chat_tasks.available(world, f, "test") for f in chat_data.KNOWN_TASKS))
            found = chat_tasks.items(world, family, "test", some, stream(CPU, "lock tasks", family, seed))
            parts.append(chat_data.task_dialogues(found))
    else:
        raise InputError("kind", kind, "topics | tasks")
    if position == "prompt":
        parts = [[chat[:-1] for chat in part] for part in parts]
    return Contrast("topic", position, *parts)


def shuffled(found: Samples, generator: torch.Generator) -> Samples:
    """The same samples with the labels dealt anew among the chats: tokens of one answer keep one label."""
    chats, index = torch.unique(2 * found.pairs + found.chosen, return_inverse=True)
    dealt = torch.arange(len(chats)) < len(chats) // 2
    return replace(found, chosen=dealt[torch.randperm(len(chats), generator=generator)][index])


def first_pairs(found: Samples, count: int) -> Samples:
    """Only the samples of the first `count` pairs."""
    kept = found.pairs < count
    return Samples(found.values[:, kept], found.chosen[kept], found.pairs[kept])


def directions(found: Samples) -> Tensor:
    """(layers, heads, head_dim) unit difference of the class means, as a lock's, without any probe."""
    means = [found.values[:, found.chosen == side].double().mean(1) for side in (True, False)]
    return unit(means[0] - means[1]).float()


def aucs(found: Samples, along: Tensor) -> np.ndarray:
    """(layers, heads) area under the ROC curve with which every head's direction tells the classes.

    1: all of the chosen class lie further along it; one half: it tells nothing; below: it reads the other way round.
    """
    from scipy.stats import rankdata

    ranks = rankdata(projections(found, along).numpy(), axis=-1)
    mine = found.chosen.numpy()
    first, second = int(mine.sum()), int((~mine).sum())
    return (ranks[..., mine].sum(-1) - first * (first + 1) / 2) / (first * second)


def accuracy(probes: Probes, heads: list[tuple[int, int]]) -> float:
    """Mean validation accuracy of some heads' probes."""
    return float(np.mean([float(probes.validation_accuracy[tuple(head)]) for head in heads]))


def unseen(asked: Subject, limit: int) -> Subject:
    """At most `limit` prompts of each set, to judge a checkpoint's lock on: of the benign ones those of the second half.

    From the first half a lock of the "prompt" arm is read (`lock_arms.contrast`). Raises InputError on the testbed, whose
    subjects are limited when they are made.
    """
    if asked.is_testbed:
        raise InputError("asked", asked.name, "a checkpoint's prompts")

    def cut(s: PromptSet) -> PromptSet:
        first = max(1, len(s) // 2) if s.name == "benign" and len(s) > 1 else 0
        rows = slice(first, first + limit)
        return PromptSet(s.name, s.chats[rows], s.harmful, s.categories[rows], s.answers[rows])

    return replace(asked, sets={name: cut(s) for name, s in asked.sets.items()})


def _world(asked: Subject) -> ChatWorld:
    if asked.world is None:
        raise InputError("model", asked.name, "the testbed, whose world makes such requests")
    return asked.world


def _some(choices: tuple[str, ...], count: int, generator: torch.Generator) -> list[str]:
    return [choices[i] for i in torch.randint(len(choices), (count,), generator=generator).tolist()]
