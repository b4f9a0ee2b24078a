"""Many locks on one model: their answers in shared batches, and the variants of a lock that part 2 compares.

Variants of one comparison displace the heads equally far (`matched`), so that none wins by being stronger alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook import safetylock
from safebook.chat_behaviour import BATCH
from safebook.errors import InputError
from safebook.generation import greedy_tokens
from safebook.llama_activations import decoder
from safebook.lock_apply import shifts_by_layer
from safebook.locks import Lock, random_heads
from safebook.messages import by_length, prompts
from safebook.safetylock import LockSettings, Probes, Samples
from safebook.subjects import PromptSet, Subject, subject

HEADS = ("by probe", "at random", "all", "worst")


def answers_under(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    locks: Sequence[Lock | None],
    chats: Sequence[Sequence[dict]],
    new_tokens: int = 512,
    batch: int = BATCH,
) -> list[list[str]]:
    """Greedy answers to every chat under every lock on all tokens; None is no lock. One list of answers a lock.

    The same answers as under `lock_apply.locked` one lock after another (in float32), in `batch` rows that different locks
    share: a batch of a small model takes hardly longer than a row of it.
    """
    shifts = [{} if lock is None else shifts_by_layer(model, lock) for lock in locks]
    asked = prompts(tokenizer, chats)
    rows = [(lock, chat) for lock in range(len(locks)) for chat in range(len(chats))]
    found = [[""] * len(chats) for _ in locks]
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        sequences = [asked[chat].tokens for _, chat in some]
        (order,) = by_length(sequences, len(some))  # in which greedy_tokens stacks them
        with _shifted(model, [shifts[some[i][0]] for i in order]):
            written = greedy_tokens(model, tokenizer, sequences, new_tokens, batch=len(some))
        for (lock, chat), new in zip(some, written, strict=True):
            found[lock][chat] = tokenizer.decode(new, skip_special_tokens=True).strip()
    return found


@contextmanager
def _shifted(model: nn.Module, rows: Sequence[dict[int, Tensor]]) -> Iterator[None]:
    """Within the block row i of every batch gets its own shifts, layer -> (heads * head_dim,), at all tokens."""
    stack, handles = decoder(model), []

    def shift(layer: int):
        whole = next(row[layer] for row in rows if layer in row)
        added = torch.stack([row.get(layer, torch.zeros_like(whole)) for row in rows])[:, None]

        def hook(_module, arguments):
            return (arguments[0] + added.to(arguments[0]), *arguments[1:])

        return hook

    try:
        for layer in sorted({layer for row in rows for layer in row}):
            handles.append(stack.layers[layer].self_attn.o_proj.register_forward_pre_hook(shift(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def outcomes(
    asked: Subject,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    locks: Sequence[Lock | None],
    style: str = "plain",
) -> list[dict[str, float]]:
    """What each lock does to the subject's one harmful set and to its set "benign". One row a lock:

    of harmful requests `n`, `attack_success`, `refusal`, on the testbed `harm`, `harmfulness`, `broken`; of harmless ones
    `benign_n`, `benign_refusal`, on the testbed `exact`, `benign_broken`.
    """
    name = harmful_set(asked)
    chats = [*asked.chats(name, style), *asked.chats("benign", style)]
    batch = BATCH if asked.is_testbed else 15  # of the paper, for real checkpoints
    cut, found = len(asked.sets[name]), []
    for texts in answers_under(model, tokenizer, locks, chats, asked.new_tokens, batch):
        harmful, benign = asked.rates(name, texts[:cut]), asked.rates("benign", texts[cut:])
        harmful.pop("exact", None)
        row = harmful | {f"benign_{key}": benign[key] for key in ("n", "refusal")}
        if asked.is_testbed:
            row |= {"exact": benign["exact"], "benign_broken": benign["broken"]}
        found.append(row)
    return found


def harmful_set(asked: Subject) -> str:
    """Name of the harmful set that is swept over."""
    return "hexphi" if asked.is_testbed else "harmful"


def prompt_parts(
    model: str, size: str, samples: int, curve_samples: int, **files: str
) -> tuple[Subject, Subject, Subject]:
    """(the subject that locks are read from, requests for curves, requests for tests), which share no prompt.

    `samples`, `curve_samples`: most harmful requests of the tests and of the curves; half as many harmless ones. On the
    testbed the curves have the validation split. A checkpoint's prompts are cut in half, its harmless ones after the part
    that the lock of arm "prompt" reads (`lock_arms.contrast`). Raises InputError as `subjects.subject` does.
    """
    asked = subject(model, size, **files)
    if asked.is_testbed:
        curves, tests = subject(model, size, split="validation"), asked
        return asked, _some(curves, curve_samples), _some(tests, samples)
    harmful, benign = (len(asked.sets[name]) for name in ("harmful", "benign"))
    read = max(1, benign // 2)
    for name, count, least in (("harmful_prompts", harmful, 2), ("benign_prompts", benign, 3)):
        if count < least:
            raise InputError(name, f"{count} prompts", f"{least} or more")
    parts = []
    for half in (0, 1):
        rows = {"harmful": _half(0, harmful, half), "benign": _half(read, benign, half)}
        parts.append(replace(asked, sets={k: _keep(asked.sets[k], v) for k, v in rows.items()}))
    return asked, _some(parts[0], curve_samples), _some(parts[1], samples)


def _half(start: int, stop: int, which: int) -> list[int]:
    middle = start + max(1, (stop - start) // 2)
    return list(range(start, middle) if which == 0 else range(middle, stop))


def _some(asked: Subject, most: int) -> Subject:
    """At most so many harmful requests, evenly through the set, and half as many harmless ones; no other set."""
    wanted = {harmful_set(asked): most, "benign": -(-most // 2)}
    sets = {}
    for name, limit in wanted.items():
        count = len(asked.sets[name])
        rows = np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()
        sets[name] = _keep(asked.sets[name], rows)
    return replace(asked, sets=sets)


def _keep(found: PromptSet, rows: Sequence[int]) -> PromptSet:
    lists = {name: [getattr(found, name)[i] for i in rows] for name in ("chats", "categories", "answers")}
    requests = None if found.requests is None else found.requests.take(np.array(rows))
    return replace(found, **lists, requests=requests)


def matched(lock: Lock, displacement: float) -> Lock:
    """The lock at the strength that displaces the heads this far in all (`Lock.displacement`), its sign kept."""
    own = lock.displacement()
    if not own > 0:
        raise InputError("lock", f"a displacement of {own}", "a lock that moves something")
    return replace(lock, alpha=lock.alpha * displacement / own)


def equal_shifts(lock: Lock) -> Lock:
    """The same heads and directions, every head shifted as far as the others, all together as far as before."""
    even = lock.sigma.double().square().mean().sqrt().float()
    return replace(lock, sigma=even.expand(len(lock.sigma)).clone())


def choose(found: Probes, how: str, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """(layer, head) by one of `HEADS`: the best probes, uniformly at random, all heads, the worst probes."""
    if how not in HEADS:
        raise InputError("how", how, " | ".join(HEADS))
    layers, heads = found.scores.shape
    if how == "by probe":
        return safetylock.top_heads(found, count)
    if how == "at random":
        return random_heads(layers, heads, count, generator)
    ranked = safetylock.top_heads(found, layers * heads)
    return ranked if how == "all" else ranked[-count:]


def spread_within(samples: Samples, found: Probes) -> Probes:
    """The probes with the spread within the classes, without fitting them again."""
    along = safetylock.projections(samples, found.directions)
    for side in (True, False):
        part = samples.chosen == side
        along[..., part] -= along[..., part].mean(-1, keepdim=True)
    return replace(found, sigma=along.std(-1, correction=0).float())


def along_weights(samples: Samples, lock: Lock, settings: LockSettings, generator: torch.Generator) -> Lock:
    """The lock's heads with the weights of their probes as directions. Fits these heads alone; `generator` as `probe` had it."""
    values = torch.stack([samples.values[layer, :, head] for layer, head in lock.heads], 1)[None]
    found = safetylock.probe(replace(samples, values=values), replace(settings, direction="probe"), generator)
    return replace(lock, directions=found.directions[0], sigma=found.sigma[0])


def removed(without: float, under: float) -> float:
    """Share of a rate that a lock removes; negative if it adds; nought where there was nothing to remove."""
    return (without - under) / without if without > 0 else 0.0


def kept(without: float, under: float) -> float:
    """Share of a rate that is left under a lock; nought where there was nothing to keep."""
    return under / without if without > 0 else 0.0
