"""What a lock is: heads, directions and spreads. And locks to compare it with: random heads, random directions.

Source: paper 2 ("Meta-SafetyLock", the artefact that it stores). The random ones are ours.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safebook.errors import InputError

ALPHA = 6.0  # the released code's strength


@dataclass(frozen=True, eq=False)
class Lock:
    """Heads, directions and spreads: all that is needed to lock a model of the same shape."""

    heads: Sequence[tuple[int, int]]  # K x (layer, head), both from 0
    directions: Tensor  # (K, head_dim) float32 unit
    sigma: Tensor  # (K,) float32, in units of the activations
    alpha: float = ALPHA  # default strength; negative "unlocks"
    meta: dict = field(default_factory=dict)  # plain values: where it comes from

    def __post_init__(self):
        heads = tuple((int(layer), int(head)) for layer, head in self.heads)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "alpha", strength(self.alpha))
        if not heads or len(set(heads)) < len(heads) or min(min(h) for h in heads) < 0:
            raise InputError("heads", heads, "at least one (layer, head), every one once, counted from 0")
        for name, shape in (("directions", (len(heads), -1)), ("sigma", (len(heads),))):
            value = getattr(self, name)
            same = value.ndim == len(shape) and len(value) == len(heads)
            if not same or value.dtype != torch.float32 or not value.isfinite().all():
                raise InputError(
                    name, f"{tuple(value.shape)} {value.dtype}", f"finite float32 of shape {shape}"
                )
        norms = self.directions.double().norm(dim=1)
        if ((norms - 1).abs() > 1e-3).any():  # directions that were stored in float16 are off by up to 5e-4
            raise InputError("directions", norms.tolist(), "vectors of length 1")
        if (self.sigma < 0).any():
            raise InputError("sigma", self.sigma.tolist(), "0 or more")
        try:  # it is written into files
            json.dumps(self.meta, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError("meta", self.meta, f"plain finite values: {error}") from error

    def shifts(self, alpha: float | None = None) -> Tensor:
        """(K, head_dim) alpha * sigma * u: what is added to the heads' outputs."""
        size = self.alpha if alpha is None else strength(alpha)
        return size * self.sigma[:, None] * self.directions

    def displacement(self, alpha: float | None = None) -> float:
        """sqrt(sum of (alpha sigma)^2): length of all shifts together, to compare locks of different K or alpha."""
        return float(self.shifts(alpha).double().norm())


def strength(alpha: float) -> float:
    """alpha, if it is a finite number."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError("alpha", alpha, "a finite number")
    return float(alpha)


def unit(vectors: Tensor) -> Tensor:
    """Of length 1; a zero stays zero."""
    return torch.nan_to_num(vectors / vectors.norm(dim=-1, keepdim=True), nan=0.0)


def random_heads(
    layers: int, heads: int, count: int, generator: torch.Generator, exclude: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """(layer, head) of `count` heads, uniformly without replacement and without `exclude`: a control of the choice."""
    known = {tuple(head) for head in exclude}
    free = [(layer, head) for layer in range(layers) for head in range(heads) if (layer, head) not in known]
    check_count(len(free), count)
    return [free[i] for i in torch.randperm(len(free), generator=generator)[:count].tolist()]


def check_count(total: int, count: int) -> int:
    """`total`, if so many heads can be chosen from it."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= total:
        raise InputError("heads", count, f"1 .. {total}")
    return total


def random_directions(lock: Lock, generator: torch.Generator) -> Lock:
    """The same heads, sigmas and strength with uniformly random directions: every head's shift keeps its norm."""
    drawn = torch.randn(lock.directions.shape, generator=generator, dtype=torch.float64)
    drawn = unit(drawn) * lock.directions.double().norm(dim=1, keepdim=True)
    return Lock(lock.heads, drawn.float(), lock.sigma, lock.alpha, {**lock.meta, "directions": "random"})
