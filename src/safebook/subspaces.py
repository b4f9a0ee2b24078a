"""Subspaces of weights and of their updates: what an update can write, what it reads, and random vectors to compare with.

A weight is (outputs, inputs), as `nn.Linear` keeps it. Its column space is what it can write, its row space what it reads.
All decompositions are in float64. Source: M2, M3, M4 of paper 1; the random vectors are ours.
"""

import torch
from torch import Tensor

from safebook.errors import InputError


def _matrix(name: str, value: Tensor) -> Tensor:
    if value.ndim != 2 or not value.isfinite().all():
        raise InputError(name, f"shape {tuple(value.shape)}", "a finite matrix (outputs, inputs)")
    return value.double()


def leading(singular_values: Tensor, energy: float) -> int:
    """How many leading directions hold more than this share of the sum of squares (at least one)."""
    if not 0 < energy < 1:
        raise InputError("energy", energy, "between 0 and 1, exclusive")
    squares = singular_values.double().square()
    share = squares.cumsum(0) / squares.sum()
    return min(int((share <= energy).sum()) + 1, len(squares))


def column_space(weight: Tensor, energy: float = 0.9) -> Tensor:
    """(outputs, k) orthonormal: the leading left singular vectors that hold `energy` of the squared singular values."""
    u, s, _ = torch.linalg.svd(_matrix("weight", weight), full_matrices=False)
    return u[:, : leading(s, energy)]


def outside(basis: Tensor, vectors: Tensor) -> Tensor:
    """(m,) length of the part of each column of `vectors` (outputs, m) that lies outside the span of `basis` (outputs, k).

    For unit vectors: the sine of the angle to the subspace. Source: M2 (Figure 4).
    """
    vectors = vectors.double()
    return (vectors - basis @ (basis.T @ vectors)).norm(dim=0)


def energy_outside(basis: Tensor, update: Tensor) -> float:
    """Share of the update's squared Frobenius norm that lies outside the span of `basis` (outputs, k)."""
    update = _matrix("update", update)
    return float(outside(basis, update).square().sum() / update.square().sum())


def random_orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) orthonormal columns, uniformly distributed (Haar). Needs rows >= columns."""
    if columns > rows:
        raise InputError("columns", columns, f"at most {rows} (rows)")
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal().sign()  # without the signs, QR's choice of them would not be uniform


def random_outside(basis: Tensor, count: int, draws: int, generator: torch.Generator) -> Tensor:
    """(draws, count) `outside` of uniformly random orthonormal vectors: what a random update gives, whatever its spectrum."""
    rows = basis.shape[0]
    return torch.stack([outside(basis, random_orthonormal(rows, count, generator)) for _ in range(draws)])


def row_projections(update: Tensor, inputs: Tensor, count: int = 15) -> Tensor:
    """(n, count) sigma_j |v_j^T a| / ||a|| over the leading right singular directions; inputs a: (n, inputs).

    Source: M3 (Figure 5), which shows the leading 15.
    """
    if count < 1:
        raise InputError("count", count, "at least 1")
    _, s, vt = torch.linalg.svd(_matrix("update", update), full_matrices=False)
    inputs = inputs.double()
    return s[:count] * (inputs @ vt[:count].T).abs() / inputs.norm(dim=1, keepdim=True)


def row_projection(update: Tensor, inputs: Tensor, count: int = 15) -> Tensor:
    """(n,) sum over the leading `count` directions of the squared `row_projections`: claim 3's statistic."""
    return row_projections(update, inputs, count).square().sum(1)


def gain(update: Tensor, inputs: Tensor) -> Tensor:
    """(n,) ||dW a|| / ||a||: how strongly the update acts on each input. Source: M4."""
    inputs = inputs.double()
    return (inputs @ _matrix("update", update).T).norm(dim=1) / inputs.norm(dim=1)


def stable_rank(update: Tensor) -> float:
    """||dW||_F^2 / ||dW||_2^2: between 1 and the rank."""
    s = torch.linalg.svdvals(_matrix("update", update))
    return float(s.square().sum() / s[0].square())


def cumulative_energy(update: Tensor) -> Tensor:
    """(rank,) share of the squared Frobenius norm in the leading 1, 2, ... directions."""
    squares = torch.linalg.svdvals(_matrix("update", update)).square()
    return squares.cumsum(0) / squares.sum()


def released_values(base: Tensor, tuned: Tensor, energy: float = 0.9) -> Tensor:
    """(m,) M2 as the released code computes it: from the tuned weight itself, centred columns, rows of U for its columns.

    Random matrices give about sqrt(1 - k / outputs), k rows being taken as the "basis".
    """
    rows = []
    for weight in (base, tuned):
        weight = _matrix("weight", weight)
        u, s, _ = torch.linalg.svd(weight - weight.mean(0), full_matrices=True)
        rows.append(u[: leading(s, energy)])
    return outside(rows[0].T, rows[1].T)
