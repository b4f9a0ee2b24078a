"""SPF: remove from every step's gradient what it writes into the low-rank directions of a safety gradient.

At each step: the safety gradient of one fixed anchor (a harmful request and its refusal) at the current weights; if its
inner product with the utility gradient, over all blocks, is negative, then G_u <- (I - U U^T) G_u in every block, U the top
k left singular vectors of the block's safety gradient. It happens on the accumulated gradient, before clipping and the
optimiser. The safety gradient itself is never added. Source: paper 3, Sec. 4.2, Algorithm 1; the switches of
`SPFSettings` beyond the defaults are controls of ours.

    spf = SPF(objective, anchor)
    train(model, objective, batches, settings, transform=spf)
    pandas.DataFrame(spf.records)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from safebook.errors import InputError
from safebook.gradients import (
    KINDS,
    METHODS,
    NOISE,
    as_matrix,
    bare,
    block_gradients,
    blocks,
    leading_directions,
    working,
)
from safebook.subspaces import random_orthonormal
from safebook.training import Objective

Bases = tuple[Tensor, Tensor]  # (m, k) and (n, k') orthonormal columns; k = 0 removes nothing

_CHOICES = {
    "test": ("global", "block", "always"),
    "side": ("left", "right", "both"),
    "subspace": ("safety", "random", "utility"),
    "project": ("gradient", "update"),
    "method": METHODS,
}


@dataclass(frozen=True)
class SPFSettings:
    """The defaults are paper 3's as its replication read them, but for `method` and `tolerance`, which are ours."""

    #: Directions a block, at most min(m, n); or, below 1, their share of m (of n on the right side), at least one. On
    #: small models use a share: 20 of 4096 is 0.5 %. An adapter's matrix A has m = r outputs, so that rank >= r removes
    #: its whole gradient.
    rank: int | float = 20
    test: str = "global"  # "global" = all blocks or none; "block" = each by its own sign; "always" = all
    side: str = "left"  # directions of the outputs ("left"), of the inputs ("right"), or "both"
    subspace: str = "safety"  # controls of equal rank: "random", or "utility" = that of the batch `control`
    frozen: bool = False  # find the subspace once, at the weights of the first step; the test stays current
    project: str = "gradient"  # or "update" = the optimiser's change of the weights; see `projecting_updates`
    method: str = "exact"  # or "low-rank" = randomised SVD, for large matrices
    tolerance: float = NOISE  # least singular value that counts, as a share of the largest; 0 = all do
    exclude: tuple[str, ...] = ()  # kinds of tensors neither tested nor changed: see `gradients.blocks`

    def __post_init__(self):
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        if not whole and not (isinstance(self.rank, float) and 0 < self.rank < 1):
            raise InputError("rank", self.rank, "a whole number >= 1, or a share of the outputs in (0, 1)")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(name, getattr(self, name), allowed)
        if not isinstance(self.frozen, bool):
            raise InputError("frozen", self.frozen, "True or False")
        if not 0 <= self.tolerance < 1:
            raise InputError("tolerance", self.tolerance, "0 .. 1, exclusive")
        if not isinstance(self.exclude, tuple) or not set(self.exclude) <= set(KINDS):
            raise InputError("exclude", self.exclude, f"a tuple of some of {KINDS}")

    def directions(self, size: int) -> int:
        """Directions of a side of this size."""
        return self.rank if isinstance(self.rank, int) else max(1, round(self.rank * size))


def project(matrix: Tensor, bases: Bases, side: str = "left") -> tuple[Tensor, int]:
    """(I - U U^T) G on the left, G (I - V V^T) on the right; and how many directions that removes.

    A vector (m, 1) has directions on the left alone, so that it loses its part along the safety gradient on any side.
    """
    (left, right), removed = bases, 0
    vector = matrix.shape[1] == 1
    if side != "right" or vector:
        matrix, removed = matrix - left @ (left.T @ matrix), left.shape[1]
    if side != "left" and not vector:
        matrix, removed = matrix - (matrix @ right) @ right.T, removed + right.shape[1]
    return matrix, removed


@dataclass
class SPF:
    """The transform for `training.train`; in another loop, call it once a step, after the last backward pass.

    The same seed gives the same run. With "safety" and "exact" nothing but the records is carried from step to step, so
    that a run that goes on from a checkpoint is exact; call `freeze` at the first weights for a frozen subspace.
    """

    objective: Objective  # (model, batch) -> loss; the same as in training
    anchor: object  # batch with the one request and its refusal
    settings: SPFSettings = SPFSettings()
    generator: torch.Generator | None = None  # on the CPU, alike in all processes; for "random", "low-rank"
    control: object | None = None  # batch for subspace="utility"; give it as many tokens as the anchor
    #: One a step: "step"; "safety_loss" of the anchor before the step; "conflict": cosine of utility and safety gradient
    #: over all blocks; "residual": the same after the projection, in units of the norms before; "acted"; "removed": share
    #: of the utility gradient's energy; "blocks", "directions": how many were removed; both norms. For
    #: project="update", the utility gradient is the weights' change, negated.
    records: list[dict] = field(default_factory=list)
    _frozen: dict[str, Bases] | None = field(default=None, repr=False)
    _pending: tuple | None = field(default=None, repr=False)  # what `project_update` needs

    def __post_init__(self):
        s = self.settings
        if s.subspace == "utility" and self.control is None:
            raise InputError("control", None, 'a batch for subspace="utility"')
        drawn = s.subspace == "random" or s.method == "low-rank"
        if drawn and (self.generator is None or self.generator.device.type != "cpu"):
            raise InputError("generator", self.generator, "a torch.Generator on the CPU")

    def __call__(self, model: nn.Module) -> None:
        """Change the gradients that `model` holds; with project="update", note the weights for `project_update`.

        Blocks without a utility gradient get none, blocks without a safety gradient keep theirs.
        """
        model = bare(model)
        parameters = blocks(model, self.settings.exclude)
        loss, safety, control = self._gradients(model)
        if self.settings.frozen and self._frozen is None:
            self._frozen = self._all_bases(safety, control)
        if self.settings.project == "update":
            self._check_projected(parameters)
            before = {name: p.detach().clone() for name, p in parameters.items()}
            self._pending = (before, loss, safety, control)
            return
        held = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        if not held:
            raise InputError("model", "no gradients", "a model after its backward pass")
        utility = {name: as_matrix(gradient) for name, gradient in held.items()}
        self._project(utility, lambda n, new: held[n].copy_(new.view_as(held[n])), loss, safety, control)

    def freeze(self, model: nn.Module) -> None:
        """Find the subspace of settings.frozen now, at these weights."""
        self._frozen = None  # else the control's gradient would not be taken again
        self._frozen = self._all_bases(*self._gradients(bare(model))[1:])

    @torch.no_grad()
    def project_update(self, model: nn.Module) -> None:
        """After the optimiser's step: project what it did to the weights since the call, if that raises the safety loss.

        The change of the weights, negated, takes the place of the utility gradient: momentum, scaling and weight decay
        included. The optimiser's own state is not touched.
        """
        if self._pending is None:
            raise InputError(
                "project_update", "no step noted", 'a call of the transform with project="update" first'
            )
        model = bare(model)
        before, *rest = self._pending
        self._pending = None
        parameters = blocks(model, self.settings.exclude)
        utility = {n: as_matrix(before[n] - p) for n, p in parameters.items()}
        self._project(utility, lambda n, new: parameters[n].copy_(before[n] - new.view_as(before[n])), *rest)

    def _check_projected(self, parameters: dict[str, nn.Parameter]) -> None:
        """The last step was projected, or it was none (a scaler of float16 gradients skips some)."""
        if self._pending and any((self._pending[0][n] != p).any() for n, p in parameters.items()):
            allowed = (
                'a loop in `projecting_updates`, or with `project_update` after each step, or "gradient"'
            )
            raise InputError("project", "update", allowed)

    def _gradients(self, model: nn.Module) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        """Loss and gradient of the anchor, and the control's gradient if it will be needed (else empty)."""
        s, control = self.settings, {}
        loss, safety = block_gradients(model, self.objective, self.anchor, s.exclude)
        if s.subspace == "utility" and self._frozen is None:
            _, control = block_gradients(model, self.objective, self.control, s.exclude)
        return loss, safety, control

    def _all_bases(self, safety: dict[str, Tensor], control: dict[str, Tensor]) -> dict[str, Bases]:
        with strict(next(iter(safety.values())).device):
            return {name: self._bases(name, safety, control) for name in safety}

    def _bases(self, name: str, safety: dict[str, Tensor], control: dict[str, Tensor]) -> Bases:
        """The directions to remove from one block: the safety gradient's, or as many of a control."""
        sides = self._leading(safety[name])
        if self.settings.subspace == "utility":
            others = self._leading(control.get(name, torch.zeros_like(safety[name])))
            return tuple(other[:, : side.shape[1]] for other, side in zip(others, sides))
        if self.settings.subspace == "random":
            return tuple(random_orthonormal(*side.shape, self.generator).to(side) for side in sides)
        return sides

    def _leading(self, gradient: Tensor) -> Bases:
        s = self.settings
        ranks = [s.directions(size) for size in gradient.shape]
        sides = leading_directions(gradient, max(ranks), s.tolerance, s.method, self.generator)
        return tuple(side[:, :rank] for side, rank in zip(sides, ranks))

    @torch.no_grad()
    def _project(
        self,
        utility: dict[str, Tensor],
        write: Callable[[str, Tensor], None],
        loss: float,
        safety: dict[str, Tensor],
        control: dict[str, Tensor],
    ) -> None:
        """Test, hand each new block to `write` at once (a model may fill the memory), add the step's record."""
        s, both = self.settings, [name for name in utility if name in safety]
        with strict(next(iter(safety.values())).device):
            inner = _numbers([_dot(utility[n], safety[n]) for n in both])
            norm_u, norm_s = (
                float(_numbers([_dot(g, g) for g in found.values()]).sum().sqrt())
                for found in (utility, safety)
            )
            hit = {
                "global": (inner.sum() < 0).expand(len(both)),
                "block": inner < 0,
                "always": torch.ones(len(both), dtype=torch.bool),
            }[s.test]
            if s.frozen:  # a block without a safety gradient when the subspace was found has none
                hit = hit & torch.tensor([name in self._frozen for name in both], dtype=torch.bool)
            removed, after, directions = [], [], 0
            for name in (n for n, act in zip(both, hit.tolist()) if act):
                bases = self._frozen[name] if s.frozen else self._bases(name, safety, control)
                old = working(utility[name])
                new, used = project(old, bases, s.side)
                directions += used
                removed.append(_dot(old, old) - _dot(new, new))
                after.append(_dot(new, safety[name]))
                write(name, new)
        scale = norm_u * norm_s or 1.0
        self.records.append(
            {
                "step": len(self.records),
                "safety_loss": loss,
                "conflict": float(inner.sum()) / scale,
                "residual": float(inner[~hit].sum() + _numbers(after).sum()) / scale,
                "acted": bool(hit.any()),
                "removed": float(_numbers(removed).sum()) / (norm_u**2 or 1.0),
                "blocks": len(after),
                "directions": directions,
                "utility_norm": norm_u,
                "safety_norm": norm_s,
            }
        )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two blocks, a float64 scalar on their device."""
    return (working(a).flatten() @ working(b).flatten()).double()


def _numbers(scalars: list[Tensor]) -> Tensor:
    """(n,) on the CPU, in one transfer; a model may be spread over several devices."""
    return (
        torch.stack([x.to(scalars[0].device) for x in scalars]).cpu() if scalars else torch.zeros(0).double()
    )


@contextmanager
def strict(device: torch.device) -> Iterator[None]:
    """Float32 products in float32: with TF32 or autocast, U is orthonormal to three digits only."""
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        products.fp32_precision = before


@contextmanager
def projecting_updates(spf: SPF, model: nn.Module) -> Iterator[None]:
    """For project="update": `spf.project_update(model)` runs after every step of an optimiser that holds the model's weights.

    with projecting_updates(spf, model):
        train(model, objective, batches, settings, transform=spf)
    """
    if spf.settings.project != "update":
        raise InputError("project", spf.settings.project, "update")
    own = {id(p) for p in model.parameters()}

    def after(optimizer: torch.optim.Optimizer, _arguments, _options) -> None:
        if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            spf.project_update(model)

    handle = register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        handle.remove()
