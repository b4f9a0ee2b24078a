"""Part 2's arms: where a lock is read, how many heads and how strong, and the locks that it is compared with.

"response" reads the last tokens of refusing and of complying answers, as published; "prompt" reads the last token before
the answer, of harmful and of harmless requests. Both push towards refusal.
"""

from dataclasses import dataclass, replace

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook import safetylock
from safebook.errors import InputError
from safebook.locks import Lock, random_directions, random_heads
from safebook.safetylock import LockSettings, Probes
from safebook.streams import stream
from safebook.subjects import Chat, Subject
from safebook.worlds import chat_data
from safebook.worlds.chat import sample

CPU = torch.device("cpu")
ARMS = ("response", "prompt")
CONTROLS = ("random directions", "random heads")
PAIRS = 100  # preference pairs, as published; as many requests of either kind at the prompt


@dataclass(frozen=True)
class Strength:
    """How many heads of all are locked, and how strongly."""

    heads: int
    alpha: float


#: size -> arm -> strength, chosen on validation requests: data/tuning.
STRENGTHS = {
    "smoke": {"response": Strength(2, 6.0), "prompt": Strength(3, 2.0)},
    "laptop": {"response": Strength(8, 2.0), "prompt": Strength(24, 0.75)},
    "paper": {"response": Strength(24, 6.0), "prompt": Strength(24, 2.0)},
}


def strength(size: str, arm: str) -> Strength:
    """The arm's setting at a size. Raises InputError for an unknown one."""
    if size not in STRENGTHS:
        raise InputError("size", size, " | ".join(STRENGTHS))
    if arm not in ARMS:
        raise InputError("arm", arm, " | ".join(ARMS))
    return STRENGTHS[size][arm]


def contrast(asked: Subject, arm: str, seed: int = 0) -> tuple[list[Chat], list[Chat]]:
    """(chosen, rejected) chats from which an arm's lock is read; none of them is a test prompt.

    On the testbed all come from the alignment split: for "prompt", forbidden requests against harmless ones, a half of them
    borderline. With a checkpoint, "prompt" contrasts the pairs' requests with the first half of the benign prompts: judge
    over-refusal on the other half.
    """
    if arm not in ARMS:
        raise InputError("arm", arm, " | ".join(ARMS))
    if arm == "response":
        return asked.pairs
    if not asked.is_testbed:
        benign = asked.sets["benign"].chats
        requests = [chat[:-1] for chat in asked.pairs[0]]
        return requests, list(benign[: max(1, len(benign) // 2)])
    count = len(asked.pairs[0])

    def some(kind: str, wanted: int) -> list[Chat]:
        drawn = sample(
            asked.world.requests("alignment", kind), wanted, stream(CPU, "lock requests", kind, seed)
        )
        return chat_data.prompts(asked.world, drawn)

    return some("harmful", count), some("benign", count - count // 2) + some("borderline", count // 2)


def probes(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    asked: Subject,
    arm: str,
    seed: int,
    settings: LockSettings | None = None,
) -> Probes:
    """Probes, directions and spreads of all heads of a model; `settings` but for the position, which is the arm's."""
    settings = replace(settings or safetylock.DEFAULT, position=arm)
    found = safetylock.samples(model, tokenizer, *contrast(asked, arm, seed), settings)
    return safetylock.probe(found, settings, stream(CPU, "lock split", arm, seed))


def lock_of(found: Probes, size: str, arm: str, heads: int | None = None, alpha: float | None = None) -> Lock:
    """The arm's lock, at the size's own number of heads and strength unless others are given."""
    own = strength(size, arm)
    picked = safetylock.top_heads(found, own.heads if heads is None else heads)
    return safetylock.make_lock(found, picked, own.alpha if alpha is None else alpha, {"arm": arm})


def control_of(kind: str, lock: Lock, found: Probes, seed: int) -> Lock:
    """A lock to compare with, of the same number of heads and the same displacement.

    "random directions" on the same heads; or "random heads", with their own directions.
    """
    if kind not in CONTROLS:
        raise InputError("kind", kind, " | ".join(CONTROLS))
    generator = stream(CPU, "lock control", kind, seed)
    if kind == "random directions":
        return random_directions(lock, generator)
    picked = random_heads(*found.sigma.shape, len(lock.heads), generator, exclude=lock.heads)
    drawn = safetylock.make_lock(found, picked, lock.alpha, {"arm": "random heads"})
    return replace(drawn, alpha=lock.alpha * lock.displacement() / drawn.displacement())
