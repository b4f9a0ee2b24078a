"""The update of a Llama's gate projections, layer by layer: what it can write and what it reads, against exact nulls.

The gate projection stands where the first MLP matrix of paper 1's small model stands. Real ones are large, so weights come
straight from the files, one layer at a time, and all decompositions are of (width, width) products of them, in float64:
a tenth of the work of a singular value decomposition, with the same result for the directions that matter.
Source: M2, M3, M4 of paper 1 on Llama; the nulls are ours.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from safebook import llama
from safebook.errors import InputError
from safebook.subjects import TESTBED
from safebook.subspaces import leading, random_orthonormal

COUNT = 15  # leading directions of M3, as many as Figure 5 shows
GATE = "model.layers.{}.mlp.gate_proj.weight"
SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size")


def check_family(model: str, base: str, control: str = "") -> None:
    """Are these checkpoints of one shape, with one vocabulary? Reads configurations and tokenizers, no weights.

    `control` may be left out; with model="testbed" both others must be. Raises InputError that names the checkpoint which is
    missing, is no Llama, or does not fit `model`.
    """
    if model == TESTBED:
        for parameter, given in {"base": base, "control": control}.items():
            if given:
                raise InputError(parameter, given, 'empty with model="testbed", which has its own')
        return
    if not base:
        raise InputError(
            "base", base, f"the checkpoint that {model} was aligned from: a folder or owner/name"
        )
    shapes = {}
    for parameter, checkpoint in {"model": model, "base": base, "control": control}.items():
        if not checkpoint:
            continue
        try:
            folder = llama.find(checkpoint, llama.SMALL_FILES)
            config = llama.check_architecture(folder, checkpoint)
            template = None if parameter == "model" else model
            llama.load_tokenizer(folder, checkpoint, config["vocab_size"], template)
        except InputError as error:  # the loader knows one parameter, and here there are three
            raise InputError(parameter, checkpoint, error.allowed) from error
        shapes[parameter] = {name: config[name] for name in SHAPE}
        if shapes[parameter] != shapes["model"]:
            raise InputError(
                parameter, f"{checkpoint}: {shapes[parameter]}", f"model's shape {shapes['model']}"
            )


def weights(checkpoint: str, parameter: str = "model") -> Path:
    """The folder of a checkpoint with all of its weights, downloaded if need be; InputError if they are no safetensors."""
    try:
        folder = llama.find(checkpoint, llama.SMALL_FILES + llama.WEIGHTS)
        llama.check_weights(folder, checkpoint)
    except InputError as error:
        raise InputError(parameter, checkpoint, error.allowed) from error
    return folder


def gate(folder: Path, layer: int, device: torch.device | str = "cpu") -> Tensor:
    """(hidden, width) float64 gate projection of one layer, read from the safetensors of a checkpoint's folder."""
    name, index = GATE.format(layer), folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.exists():
        file = json.loads(index.read_text(encoding="utf-8"))["weight_map"][name]
    with safe_open(folder / file, "pt") as tensors:
        return tensors.get_tensor(name).to(device, torch.float64)


def update(
    before: Path, after: Path, layer: int, device: torch.device | str = "cpu", parameter: str = "base"
) -> tuple[Tensor, Tensor]:
    """The weight of `before` and the change from it to `after`, (hidden, width) float64 each.

    Raises InputError, naming `parameter`, if there is no change: then there is nothing to measure.
    """
    weight = gate(before, layer, device)
    change = gate(after, layer, device) - weight
    if not change.any():
        allowed = (
            f"a checkpoint whose gate projections differ from model's; those of layer {layer + 1} do not"
        )
        raise InputError(parameter, str(before if parameter == "base" else after), allowed)
    return weight, change


# ------------------------------------------------------------------------------------------------ column space


@dataclass(frozen=True)
class Outside:
    """How much of an update lies outside the column space of a weight, and what random updates of its spectrum give."""

    basis: int  # dimensions of the column space
    energy: float  # share of the update's squared Frobenius norm outside
    expected: float  # mean of that share over random updates, exact
    spread: float  # its standard deviation over random updates, exact
    median: float  # median length outside of the update's leading left singular directions
    expected_median: float  # of a random direction

    @property
    def excess(self) -> float:
        return self.energy - self.expected

    @property
    def z(self) -> float:
        """Standard deviations of random updates by which the energy outside lies above their mean."""
        return self.excess / self.spread


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, largest first, and right singular vectors (columns) of a matrix, from its W^T W."""
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0).clamp(min=0), vectors.flip(1)


def outside(weight: Tensor, change: Tensor, energy: float = 0.9) -> Outside:
    """M2 of one layer, (hidden, width) each, for the leading left singular vectors with `energy` of the squared ones.

    With B = W V / s, B^T dW = V^T W^T dW / s, so that no (hidden, hidden) or singular value decomposition is needed.
    Null: the left singular vectors of dW are uniformly random orthonormal ones. The share of one of them outside k of m
    dimensions is Beta((m - k) / 2, k / 2); those of two of them have covariance -variance / (m - 1), as all m sum to m - k.
    """
    from scipy.stats import beta

    m = len(weight)
    squares, right = _spectrum(weight.T @ weight)
    k = leading(squares.sqrt(), energy)
    inside = (right[:, :k].T @ (weight.T @ change)) / squares[:k, None].sqrt()  # B^T dW
    share, directions = _spectrum(change.T @ change)
    total = share.sum()
    kept = leading(share.sqrt(), energy)
    lengths = (1 - (inside @ directions[:, :kept]).square().sum(0) / share[:kept]).clamp(0, 1).sqrt()
    weights = share / total
    one = 2 * k * (m - k) / (m * m * (m + 2))
    variance = one * (m * float(weights.square().sum()) - 1) / (m - 1)
    return Outside(
        basis=k,
        energy=float(1 - inside.square().sum() / total),
        expected=1 - k / m,
        spread=variance**0.5,
        median=float(lengths.median()),
        expected_median=float(beta((m - k) / 2, k / 2).median()) ** 0.5,
    )


# ------------------------------------------------------------------------------------------------ row space


def reader(change: Tensor) -> Tensor:
    """(width, width) S V^T of an update: it reads an input exactly as the update does, whatever it then writes."""
    squares, right = _spectrum(change.T @ change)
    return squares.sqrt()[:, None] * right.T


def reading(read: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """What a `reader` reads of inputs (n, width): "projection" (M3, energy of the leading 15 directions) and "gain" (M4),
    (n,) each, relative to the squared and to the plain length of the input. Compare `subspaces.row_projection`, `gain`."""
    inputs = inputs.to(read.device, torch.float64)
    square = (inputs @ read.T).square() / inputs.square().sum(1, keepdim=True)
    return {"projection": square[:, :COUNT].sum(1), "gain": square.sum(1).sqrt()}


def rotated(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """(n, width) the inputs, turned by one uniformly random rotation; lengths and angles between them stay.

    What the update reads of these is what an update with the same singular values and random right singular vectors
    reads of the inputs: the null of M3 and M4.
    """
    flat = inputs.double().cpu()
    q, r = torch.linalg.qr(flat.T)  # the span of the inputs, and the inputs in it
    return (random_orthonormal(flat.shape[1], q.shape[1], generator) @ r).T
