"""What is measured on gradients: how few directions hold them, how far they agree, layer by layer and step by step.

Ranks are numbers of directions, or shares of a matrix's outputs, as in `SPFSettings`. Source: paper 3, Sec. 4.1, Insights I to III
(see `gradients` for the definitions); the count of targets that carry a signal, and chance, are ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from safebook.chat_objectives import answer_loss
from safebook.errors import InputError
from safebook.gradients import (
    NOISE,
    as_matrix,
    bare,
    block_gradients,
    blocks,
    cosine,
    leading_directions,
    singular_values,
)
from safebook.llama_activations import decoder, evaluating, input_device
from safebook.spf import SPFSettings
from safebook.training import Objective
from safebook.worlds.chat_tokens import ChatBatch

Rank = int | float
Gradients = dict[str, Tensor]
EMBEDDINGS, WHOLE = -1, "all"  # beside 0, 1, ... for the layers; what comes after them has the next number


def layer_of(name: str, layers: int) -> int:
    """Number of the layer that a block belongs to: -1 the embeddings, `layers` the last gain and the head."""
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else EMBEDDINGS if "embed_tokens" in name else layers


def matrix_of(name: str) -> str:
    """Which of a layer's matrices: q_proj, ..., down_proj."""
    return name.removesuffix(".weight").split(".")[-1]


def _counts(ranks: Sequence[Rank], outputs: int, most: int) -> list[int]:
    """Directions that each rank means for a matrix that has `most` of them."""
    return [min(SPFSettings(rank=rank).directions(outputs), most) for rank in ranks]


# -------------------------------------------------------------------- Insight I


@dataclass(frozen=True)
class Spectra:
    """Of one gradient or of some, of the same matrices."""

    names: list[str]  # of the matrices
    ratios: Tensor  # (gradients, matrices, ranks) cumulative explained ratio; NaN where a gradient is zero
    sigma: Tensor  # (gradients, matrices, first) singular values over the largest; 0 beyond the last
    rank: Tensor  # (gradients, matrices) singular values above the noise


def spectra(
    model: nn.Module,
    batches: Sequence[ChatBatch],
    ranks: Sequence[Rank],
    first: int = 32,
    objective: Objective = answer_loss,
) -> Spectra:
    """Spectra of the gradient on each batch, of the matrices that are trainable."""
    if not len(batches):
        raise InputError("batches", 0, "at least one")
    ratios, sigma, rank, names = [], [], [], []
    for batch in batches:
        _, gradients = block_gradients(model, objective, batch)
        names, rows = list(gradients), []
        for name, values in singular_values(gradients).items():
            energy = values.square().cumsum(0)
            counts = _counts(ranks, len(gradients[name]), len(values))
            scaled = torch.zeros(first, dtype=values.dtype)
            shown = values[:first].cpu()
            scaled[: len(shown)] = shown / shown[0]
            above = (values > NOISE * values[0]).sum().double().cpu()
            rows.append(((energy[[k - 1 for k in counts]] / energy[-1]).cpu(), scaled, above))
        for kept, part in zip((ratios, sigma, rank), zip(*rows)):
            kept.append(torch.stack(part))
    return Spectra(names, torch.stack(ratios), torch.stack(sigma), torch.stack(rank))


def signal(model: nn.Module, batch: ChatBatch) -> dict[str, float]:
    """How much a batch has to teach: `loss` in nats a target, `targets`, and how many of them carry the gradient.

    The gradient of a target's logits is p - e, the predicted distribution minus the target's, and that of a matrix a sum over
    targets that pass through it. `effective` = (sum of squared lengths)^2 / sum of their squares: n if all of n are equally
    surprising, 1 if a single one is. A gradient that few targets carry has few directions, whatever it is about.
    """
    batch = batch.to(input_device(model))
    with evaluating(model):
        states = decoder(model)(input_ids=batch.tokens[:, :-1]).last_hidden_state[batch.loss_mask]
        logs = model.get_output_embeddings()(states).double().log_softmax(-1)
    own = logs.gather(1, batch.tokens[:, 1:][batch.loss_mask][:, None])[:, 0]
    energy = logs.exp().square().sum(1) - 2 * own.exp() + 1
    effective = energy.sum().square() / energy.square().sum()
    return {"loss": float(-own.mean()), "targets": len(own), "effective": float(effective)}


# -------------------------------------------------------------------- Insight II


def inner_products(first: Sequence[Gradients], second: Sequence[Gradients]) -> dict[str, Tensor]:
    """Name -> (len(first), len(second)) inner products of that block's gradients, in float64."""
    names = [set(g) for g in (*first, *second)]
    if any(found != names[0] for found in names):
        raise InputError("gradients", "different blocks", "gradients with the same blocks")

    def rows(gradients: Sequence[Gradients], name: str) -> Tensor:
        return torch.stack([g[name].double().flatten() for g in gradients])

    return {name: (rows(first, name) @ rows(second, name).T).cpu() for name in first[0]}


def layer_cosines(
    first: Sequence[Gradients], second: Sequence[Gradients], layers: int
) -> dict[int | str, Tensor]:
    """Layer (see `layer_of`), and "all" -> (len(first), len(second)) cosines over all blocks of it."""
    inner = inner_products(first, second)
    squares = [
        {name: torch.stack([g[name].double().square().sum().cpu() for g in part]) for name in inner}
        for part in (first, second)
    ]
    groups: dict[int | str, list[str]] = {WHOLE: list(inner)}
    for name in inner:
        groups.setdefault(layer_of(name, layers), []).append(name)
    return {
        group: sum(inner[n] for n in names)
        / (sum(squares[0][n] for n in names)[:, None] * sum(squares[1][n] for n in names)).sqrt()
        for group, names in groups.items()
    }


@dataclass
class Watch:
    """A transform for `training.train` that changes nothing: at every step, the cosine of the task's gradient with each anchor's.

    All at the current weights and over all blocks that have both, as SPF's test has it.
    """

    anchors: dict[str, ChatBatch]
    objective: Objective = answer_loss
    records: list[dict] = field(default_factory=list)  # one a step and anchor: step, anchor, cosine, loss
    _step: int = field(default=0, repr=False)

    def __call__(self, model: nn.Module) -> None:
        held = {n: p.grad for n, p in blocks(bare(model)).items() if p.grad is not None}
        utility = {name: as_matrix(gradient) for name, gradient in held.items()}
        for name, batch in self.anchors.items():
            loss, safety = block_gradients(model, self.objective, batch)
            both = utility.keys() & safety.keys()
            found = cosine({n: utility[n] for n in both}, {n: safety[n] for n in both})
            self.records.append({"step": self._step, "anchor": name, "cosine": found, "anchor_loss": loss})
        self._step += 1


# -------------------------------------------------------------------- Insight III


def left_bases(gradients: Gradients, ranks: Sequence[Rank]) -> dict[str, Tensor]:
    """Name -> (m, k) leading left singular vectors, enough for the largest of the ranks, fewer where a gradient has fewer."""
    return {
        name: leading_directions(g.double(), max(_counts(ranks, *g.shape)))[0]
        for name, g in gradients.items()
    }


def overlaps(
    first: dict[str, Tensor], second: dict[str, Tensor], ranks: Sequence[Rank]
) -> tuple[Tensor, Tensor]:
    """(matrices, ranks) overlap phi of two gradients' bases, and its chance level; NaN where a gradient is zero.

    As `gradients.overlap` and `overlap_chance`, but for many ranks at the price of one decomposition.
    """
    found, chance = [], []
    for name, a in first.items():
        b, outputs = second[name], len(a)
        squares = (a.T @ b).square()
        for k in _counts(ranks, outputs, outputs):
            sizes = min(k, a.shape[1]), min(k, b.shape[1])
            known = min(sizes) > 0
            found.append(float(squares[: sizes[0], : sizes[1]].sum()) / min(sizes) if known else float("nan"))
            chance.append(max(sizes) / outputs if known else float("nan"))
    shape = len(first), len(ranks)
    return torch.tensor(found, dtype=torch.float64).view(shape), torch.tensor(
        chance, dtype=torch.float64
    ).view(shape)


def captured(bases: dict[str, Tensor], gradients: Gradients, rank: Rank) -> tuple[Tensor, Tensor]:
    """(matrices,) share of a gradient's energy that lies in the bases' leading directions, and what random ones would hold.

    It is what SPF would remove of the gradient, had it found these directions.
    """
    held, chance = [], []
    for name, basis in bases.items():
        gradient = gradients[name].double()
        used = basis[:, : _counts([rank], *basis.shape)[0]]
        whole = gradient.square().sum()
        held.append(float((used.T @ gradient).square().sum() / whole) if whole else float("nan"))
        chance.append(used.shape[1] / len(basis))
    return torch.tensor(held, dtype=torch.float64), torch.tensor(chance, dtype=torch.float64)
