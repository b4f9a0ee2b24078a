"""What a lock costs in seconds and memory: to write it into a model, to run with it; and training that does the same job.

Times are wall-clock seconds of this machine. What is compared is timed in turns, a round of each after the other, so that
whatever else the machine does falls on all alike.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from safebook.errors import InputError
from safebook.llama_activations import decoder, evaluating, input_device
from safebook.lock_apply import bias_edit, locked
from safebook.locks import Lock, unit
from safebook.repairs import checks
from safebook.training import Recipe, train

#: Llama-3-8B's shapes: its public configuration.
SHAPES = {
    "vocab_size": 128256,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
}
LEAST_MEMORY = 40e9  # bytes of a GPU on which these shapes are timed, in bfloat16


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device | str = "cpu") -> tuple[float, object]:
    """How long a call takes, and what it returns. Waits for the device before and after."""
    place = torch.device(device)
    _wait(place)
    started = time.perf_counter()
    result = call()
    _wait(place)
    return time.perf_counter() - started, result


def distribution(model: nn.Module, lock: Lock, repeats: int) -> list[float]:
    """Seconds of `bias_edit`, each on the model without a bias; the first one is cold. The model ends as it was."""
    if not isinstance(repeats, int) or repeats < 1:
        raise InputError("repeats", repeats, ">= 1")
    found, device = [], input_device(model)
    for _ in range(repeats):
        taken, undo = seconds(lambda: bias_edit(model, lock), device)
        undo()
        found.append(taken)
    return found


@contextmanager
def biased(model: nn.Module, lock: Lock) -> Iterator[None]:
    """Within the block the lock is in the bias."""
    undo = bias_edit(model, lock)
    try:
        yield
    finally:
        undo()


def decode(model: LlamaForCausalLM, tokens: torch.Tensor, new_tokens: int) -> None:
    """Read the prompts (rows, time) and write exactly `new_tokens` tokens after each: no answer ends early."""
    cache, current = None, tokens.to(input_device(model))
    with evaluating(model):
        for _ in range(new_tokens):
            out = model(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, current = out.past_key_values, out.logits[:, -1:].argmax(-1)


def rates(
    model: LlamaForCausalLM, lock: Lock, tokens: torch.Tensor, new_tokens: int, rounds: int
) -> pd.DataFrame:
    """Tokens a second at equal lengths, a row a round and version, timed in turns after a first round that is not counted.

    "none" twice, the second as "none again": what the same model differs from itself is noise. "bias" and "hook" are the
    two ways of `lock_apply`. The order turns by one place every round.
    """
    versions: dict[str, Callable[[], AbstractContextManager]] = {
        "none": nullcontext,
        "bias": lambda: biased(model, lock),
        "hook": lambda: locked(model, lock),
        "none again": nullcontext,
    }
    found, names = [], list(versions)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            with versions[name]():
                taken, _ = seconds(lambda: decode(model, tokens, new_tokens), input_device(model))
            if number:
                written = tokens.shape[0] * new_tokens
                found.append({"version": name, "round": number, "tokens_per_second": written / taken})
    return pd.DataFrame(found)


def slowdown(table: pd.DataFrame, version: str) -> float:
    """Median over rounds of the rate of "none" over that of the version, minus 1: above 0 = slower."""
    wide = table.pivot(index="round", columns="version", values="tokens_per_second")
    return float((wide["none"] / wide[version] - 1).median())


# -------------------------------------------------------------------- training that does the same job


@dataclass(frozen=True)
class Point:
    """A state on the way of a training run."""

    step: int
    seconds: float  # of training, without the checks on the way
    harm: float


class _Reached(Exception):
    """The lowest target is reached."""


def train_until(
    model: nn.Module, recipe: Recipe, harm: Callable[[nn.Module], float], target: float, trained: str = ""
) -> list[Point]:
    """Train in place until the harmful rate is at or below the target, or the recipe's steps are over.

    Checked after 1, 2, 4, ... steps. `trained`: train only the parameters whose name holds this text; "" = all.
    """
    device, points, checked = next(model.parameters()).device, [], [0.0]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("trained", trained, "part of the name of a parameter")
    steps = iter(checks(recipe.settings.iterations))

    def drawn(iteration: int) -> object:
        batch = recipe.batches(iteration)
        return batch.to(device) if hasattr(batch, "to") else batch

    def check(model: nn.Module) -> dict:
        _wait(device)
        entered = time.perf_counter()
        points.append(Point(next(steps), entered - started - checked[0], harm(model)))
        checked[0] += time.perf_counter() - entered
        if points[-1].harm <= target:
            raise _Reached
        return {}

    started = time.perf_counter()
    at = checks(recipe.settings.iterations)
    with suppress(_Reached):
        train(model, recipe.objective, drawn, recipe.settings, evaluate=check, evaluate_at=at)
    model.requires_grad_(False).eval()
    return points


def first(points: list[Point], target: float) -> tuple[Point, bool]:
    """The first point at or below the target; where there is none the last one, and False: it took longer than that."""
    return next(((p, True) for p in points if p.harm <= target), (points[-1], False))


def training_memory(model: nn.Module, trained: str = "") -> int:
    """Bytes that AdamW training adds to a model: a gradient and two moments of each trained weight. Counted, not measured.

    Activations, which depend on the batch, are left out.
    """
    return 3 * sum(p.numel() * p.element_size() for n, p in model.named_parameters() if trained in n)


def lock_memory(model: nn.Module, lock: Lock) -> int:
    """Bytes of the biases that the lock adds to a model without any."""
    layers = decoder(model).layers
    return sum(
        layers[layer].self_attn.o_proj.weight[:, 0].numel()
        * layers[layer].self_attn.o_proj.weight.element_size()
        for layer in {layer for layer, _ in lock.heads}
    )


def most_distant_layer(chosen: torch.Tensor, rejected: torch.Tensor) -> int:
    """The layer whose states (layers, n, width) of the two kinds of answer lie furthest apart, for their length.

    Where an edit is made; after DINM, which edits the "toxic layer". Source: paper 2's editing baseline, most likely DINM.
    """
    gap = (chosen - rejected).double().norm(dim=-1).mean(1)
    return int((gap / chosen.double().norm(dim=-1).mean(1)).argmax())


# -------------------------------------------------------------------- true shapes


def has_room() -> bool:
    """Is there a CUDA GPU on which Llama-3-8B's shapes can be timed?"""
    if not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_properties(0).total_memory >= LEAST_MEMORY


def random_lock(
    heads: list[tuple[int, int]], channels: int, sigma: float, generator: torch.Generator
) -> Lock:
    """A lock with random directions: what it costs does not depend on them."""
    directions = unit(torch.randn(len(heads), channels, generator=generator))
    return Lock(heads, directions, torch.full((len(heads),), sigma))


def true_shapes(
    heads: list[tuple[int, int]],
    sigma: float,
    generator: torch.Generator,
    repeats: int = 50,
    rounds: int = 5,
    new_tokens: int = 64,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    shapes: Mapping[str, int] = SHAPES,
) -> dict[str, object]:
    """Distribution, decoding and extraction's forward passes with random weights of Llama-3-8B's shapes.

    `cold`, `warm` (list): seconds of the bias edit. `rates`: table of `rates`, 15 prompts of 64 tokens. `forward`: seconds of
    200 chats of 64 tokens, as many as an extraction reads; its probes are not part of it. `extra`: bytes on the device that the
    lock added for good, `peak`: at most on the way; 0 where the device does not count them.
    """
    place = torch.device(device)
    config = LlamaConfig(**shapes)
    with place:
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
    lock = random_lock(heads, config.head_dim, sigma, generator)
    counts = place.type == "cuda"
    held = torch.cuda.memory_allocated(place) if counts else 0
    if counts:
        torch.cuda.reset_peak_memory_stats(place)
    cold, undo = seconds(lambda: bias_edit(model, lock), place)
    extra = torch.cuda.memory_allocated(place) - held if counts else 0
    peak = torch.cuda.max_memory_allocated(place) - held if counts else 0
    undo()
    warm = distribution(model, lock, repeats)
    tokens = torch.randint(config.vocab_size, (200, 64), generator=generator)

    def read() -> None:
        with evaluating(model):
            for rows in tokens.split(16):
                decoder(model)(input_ids=rows.to(place), use_cache=False)

    read()
    forward, _ = seconds(read, place)
    table = rates(model, lock, tokens[:15], new_tokens, rounds)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"cold": cold, "warm": warm, "rates": table, "forward": forward, "extra": extra, "peak": peak,
            "weights": weights, "device": torch.cuda.get_device_name(place) if counts else "cpu"}  # fmt: skip
