"""What a step of SPF costs in seconds and in memory, against a plain step of fine-tuning.

Every version does one whole training step on the same model: forward and backward pass, its own change of the gradients,
clipping, AdamW. The versions take turns, a round of each after the other, so that whatever else the machine does falls on all
alike, and ratios are taken round by round. The learning rate is next to nothing, so that all steps meet the same weights.
Seconds are those of the clock on a GPU, and of the processor (all threads) without one.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from safebook.baselines import mixed
from safebook.baselines_gradients import surgery
from safebook.chat_objectives import answer_loss
from safebook.errors import InputError
from safebook.gradients import block_gradients, leading_directions
from safebook.llama_activations import input_device
from safebook.llama_settings import LlamaSettings
from safebook.lock_cost import SHAPES
from safebook.settings import TrainingSettings
from safebook.spf import SPF, SPFSettings
from safebook.streams import stream
from safebook.tensor_peak import TensorPeak
from safebook.training import optimizer
from safebook.worlds.chat_tokens import ChatBatch

CPU = torch.device("cpu")
RATE = 1e-12
#: Version -> name of its decomposition; "" for those that have none.
SPF_VERSIONS = {"spf, no conflict": "", "spf, full SVD": "exact", "spf, randomised SVD": "low-rank"}
VERSIONS = ("sft", "sft again", "mixing", "surgery", *SPF_VERSIONS)
#: What an SPF step consists of beside the plain step.
PARTS = ("anchor's gradient", "full SVD", "randomised SVD")


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """How long a call takes, and what it returns."""
    if device.type != "cuda":
        started = time.process_time()  # another program's turn does not count
        result = call()
        return time.process_time() - started, result
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


class Steps:
    """Training steps of every version on one model, which stays as it is but for rounding.

    batch, anchor : the utility batch and the one safety row.
    rank : of SPF, as in `SPFSettings`.
    """

    def __init__(self, model: nn.Module, batch: ChatBatch, anchor: ChatBatch, rank: int | float):
        self.model, self.batch, self.anchor, self.rank = model.train(), batch, anchor, rank
        self.model.requires_grad_(True)
        self.device = input_device(model)
        settings = TrainingSettings(1, 1, RATE, RATE, 0, 1, betas=(0.5, 0.999), weight_decay=0.0)
        self.optimise = optimizer(model, settings)
        _, safety = block_gradients(model, answer_loss, anchor)
        _, utility = block_gradients(model, answer_loss, batch)
        inner = sum(float(g.flatten().float() @ safety[n].flatten().float()) for n, g in utility.items())
        #: Times this, the anchor's loss makes the two gradients conflict.
        self.sign = 1.0 if inner < 0 else -1.0

    def _kind(self, version: str) -> tuple[Callable, Callable | None]:
        """Objective and transform of a version."""
        if version not in VERSIONS:
            raise InputError("version", version, ", ".join(VERSIONS))
        if version in SPF_VERSIONS:
            sign = self.sign if SPF_VERSIONS[version] else -self.sign
            method = SPF_VERSIONS[version] or "exact"
            settings = SPFSettings(rank=self.rank, method=method)
            drawn = stream(CPU, "spf cost")
            return answer_loss, SPF(lambda m, b: sign * answer_loss(m, b), self.anchor, settings, drawn)
        if version == "mixing":
            return mixed(answer_loss, self.anchor), None
        return answer_loss, surgery(answer_loss, self.anchor) if version == "surgery" else None

    def step(self, version: str) -> SPF | Callable | None:
        """One training step; returns the transform, whose records say what it did."""
        objective, transform = self._kind(version)
        self.optimise.zero_grad(set_to_none=True)
        objective(self.model, self.batch).backward()
        if transform:
            transform(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimise.step()
        return transform

    def rounds(self, count: int, versions: tuple[str, ...] = VERSIONS) -> pd.DataFrame:
        """Seconds, a row a round and version, after a first round that is not counted. The order turns by one place a round."""
        if not isinstance(count, int) or count < 1:
            raise InputError("count", count, ">= 1")
        found = []
        for number in range(count + 1):
            turn = number % len(versions)
            for version in (*versions[turn:], *versions[:turn]):
                taken, _ = seconds(lambda version=version: self.step(version), self.device)
                if number:
                    found.append({"version": version, "round": number, "seconds": taken})
        return pd.DataFrame(found)

    def parts(self, count: int) -> pd.DataFrame:
        """Seconds of what SPF adds, piece by piece: the anchor's gradient, and the directions of all blocks in two ways."""
        found, drawn = [], stream(CPU, "spf cost parts")
        for number in range(count + 1):
            taken, (_, safety) = seconds(
                lambda: block_gradients(self.model, answer_loss, self.anchor), self.device
            )
            times = {"anchor's gradient": taken}
            for part, method in (("full SVD", "exact"), ("randomised SVD", "low-rank")):
                times[part], _ = seconds(
                    lambda method=method, safety=safety: self._directions(safety, method, drawn), self.device
                )
            if number:
                found += [{"part": part, "round": number, "seconds": value} for part, value in times.items()]
        return pd.DataFrame(found)

    def _directions(self, safety: Mapping[str, Tensor], method: str, generator: torch.Generator) -> None:
        settings = SPFSettings(rank=self.rank)
        for gradient in safety.values():
            ranks = [settings.directions(size) for size in gradient.shape]
            leading_directions(gradient, max(ranks), method=method, generator=generator)

    def peak(self, version: str) -> int:
        """Bytes that a step holds at most beside weights and the optimiser's state: gradients, activations, what SPF keeps."""
        self.step(version)  # the optimiser's state is there
        self.optimise.zero_grad(set_to_none=True)
        return self._most(lambda: self.step(version))

    def added(self, version: str) -> int:
        """Bytes that a version's change of the gradients holds at most, the backward pass behind it; 0 for those without one."""
        objective, transform = self._kind(version)
        self.optimise.zero_grad(set_to_none=True)
        objective(self.model, self.batch).backward()
        return self._most(lambda: transform(self.model)) if transform else 0

    def _most(self, call: Callable[[], object]) -> int:
        """The most bytes that a call holds at once, above what was there before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            call()
            return torch.cuda.max_memory_allocated(self.device) - before
        with TensorPeak() as peak:
            call()
        return peak.most


# -------------------------------------------------------------------- ratios


def time_ratio(table: pd.DataFrame, version: str, conflicts: float = 1.0) -> float:
    """Median over rounds of a version's seconds over those of "sft"; of SPF's, with this share of conflicting steps."""
    wide = table.pivot(index="round", columns="version", values="seconds")
    taken = wide[version]
    if SPF_VERSIONS.get(version):
        taken = conflicts * taken + (1 - conflicts) * wide["spf, no conflict"]
    return float((taken / wide["sft"]).median())


# -------------------------------------------------------------------- true shapes


def random_batch(
    vocabulary: int, rows: int, tokens: int, targets: int, generator: torch.Generator
) -> ChatBatch:
    """Rows of equal length whose last `targets` tokens count. What they say makes no difference to what a step costs."""
    if not 1 <= targets < tokens:
        raise InputError("targets", targets, f"1 .. {tokens - 1}")
    words = torch.randint(vocabulary, (rows, tokens), generator=generator)
    mask = torch.zeros(rows, tokens - 1, dtype=torch.bool)
    mask[:, -targets:] = True
    return ChatBatch(words, mask, torch.full((rows,), tokens))


def random_llama(
    shapes: Mapping[str, int], layers: int, device: str, dtype: torch.dtype, seed: int = 0
) -> LlamaForCausalLM:
    """Random weights of these shapes (as in `lock_cost.SHAPES`), cut to so many layers."""
    config = LlamaConfig(**{**shapes, "num_hidden_layers": layers})
    before = torch.get_default_dtype()
    with torch.device(device), torch.random.fork_rng([device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        try:
            torch.set_default_dtype(dtype)
            return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)


def true_shapes(
    rounds: int,
    rank: int = 20,
    rows: int = 16,
    tokens: int = 256,
    anchor_tokens: int = 40,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    shapes: Mapping[str, int] = SHAPES,
) -> dict[str, object]:
    """Steps at an 8B Llama's shapes with random weights: of one layer and of two, with embedding and head, on this device.

    A model of all layers with AdamW's state needs more memory than most cards have. Layers cost alike, so that a step of the
    whole is one of one layer plus so many times what the second layer adds.

    `steps`: table with `layers`, `version`, `round`, `seconds`; the randomised SVD alone, since the full one of the largest
    matrices takes minutes. `svd`: seconds of both decompositions of single matrices. `peaks`: (layers, version) -> bytes.
    """
    generator, versions = stream(CPU, "true shapes"), ("sft", "spf, no conflict", "spf, randomised SVD")
    batch = random_batch(shapes["vocab_size"], rows, tokens, tokens // 2, generator)
    anchor = random_batch(shapes["vocab_size"], 1, anchor_tokens, min(17, anchor_tokens // 2), generator)
    tables, peaks = [], {}
    for layers in (1, 2):
        model = random_llama(shapes, layers, device, dtype)
        place = input_device(model)
        steps = Steps(model, batch.to(place), anchor.to(place), rank)
        tables.append(steps.rounds(rounds, versions).assign(layers=layers))
        peaks |= {(layers, version): steps.peak(version) for version in versions}
        if layers == 1:
            svd = _single_matrices(steps, rank, generator)
        del model, steps
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    return {"steps": pd.concat(tables), "svd": svd, "peaks": peaks, "device": name}


def _single_matrices(steps: Steps, rank: int, generator: torch.Generator) -> pd.DataFrame:
    """Seconds of the decompositions of the layer's matrices, one of each shape, and of the head by the randomised one."""
    _, safety = block_gradients(steps.model, answer_loss, steps.anchor)
    found, seen = [], set()
    for name, gradient in safety.items():
        shape = tuple(gradient.shape)
        if shape in seen or shape[1] == 1:
            continue
        seen.add(shape)
        for method in ("low-rank", "exact")[: 1 + ("layers" in name)]:
            label = {"low-rank": "randomised SVD", "exact": "full SVD"}[method]
            taken, _ = seconds(
                lambda g=gradient, m=method: leading_directions(g, rank, method=m, generator=generator),
                steps.device,
            )
            found.append({"outputs": shape[0], "inputs": shape[1], "method": label, "seconds": taken})
    return pd.DataFrame(found)


def whole(one: float, two: float, layers: int) -> float:
    """A model of so many layers, from one layer's and two layers' (embedding and head in both)."""
    return one + (layers - 1) * (two - one)


def widened(settings: LlamaSettings, width: int, vocabulary: int) -> LlamaSettings:
    """A Llama of another width in the same proportions, with two layers: how does the ratio depend on the matrices?"""
    hidden = max(8, round(width * settings.hidden / settings.width))
    return replace(settings, vocabulary=vocabulary, layers=2, width=width, hidden=hidden)
