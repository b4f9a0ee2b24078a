"""Interventions on a fine-tuning update: scale it, add it to another model, cut it down, or patch in its activations.

Every function returns a new model and leaves its inputs as they are. Source: M6 and appendix topics of paper 1.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from safebook.activations import captured
from safebook.errors import InputError
from safebook.subspaces import column_space

State = dict[str, Tensor]

#: The matrices whose update is cut down: the first matrix of every MLP, the one that paper 1 analyses.
MATRICES = "mlp.c_fc.weight"


def _with(model: nn.Module, state: State) -> nn.Module:
    new = copy.deepcopy(model)
    new.load_state_dict(state)
    return new.eval().requires_grad_(False)


def _same_names(parameter: str, first: State, second: State) -> None:
    if first.keys() != second.keys():
        raise InputError(parameter, sorted(first.keys() ^ second.keys()), "tensors of the same names")


def interpolate(base: nn.Module, tuned: nn.Module, alpha: float) -> nn.Module:
    """theta_base + alpha (theta_tuned - theta_base), all parameters; exact at 0 and 1, an extrapolation beyond.

    Two protocols' solutions as `base` and `tuned` give the straight path between them.
    """
    start, end = base.state_dict(), tuned.state_dict()
    _same_names("tuned", start, end)
    return _with(base, {name: torch.lerp(start[name], end[name], float(alpha)) for name in start})


def update(base: nn.Module, tuned: nn.Module) -> State:
    """dW of every tensor: tuned minus base."""
    start, end = base.state_dict(), tuned.state_dict()
    _same_names("tuned", start, end)
    return {name: end[name] - start[name] for name in start}


def add(model: nn.Module, direction: State, alpha: float = 1.0) -> nn.Module:
    """theta + alpha dW: a protocol's update added to another protocol's model."""
    state = model.state_dict()
    _same_names("direction", state, direction)
    return _with(model, {name: state[name] + alpha * direction[name] for name in state})


def rescaled(direction: State, like: State) -> State:
    """The direction, each tensor at the Frobenius norm of its namesake in `like`. A tensor of zeros stays so."""
    _same_names("like", direction, like)

    def at_norm(tensor: Tensor, norm: Tensor) -> Tensor:
        own = tensor.norm()
        return tensor * (norm / own) if own > 0 else tensor

    return {name: at_norm(tensor, like[name].norm()) for name, tensor in direction.items()}


def random_direction(like: State, generator: torch.Generator) -> State:
    """Gaussian tensors of the shapes and Frobenius norms of `like`: the control of a direction."""
    drawn = {name: torch.empty_like(tensor).normal_(generator=generator) for name, tensor in like.items()}
    return rescaled(drawn, like)


def _split(change: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The part of a matrix in `count` of its singular directions, and the rest, both float64.

    The leading ones, or with a generator that many of them at random.
    """
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    if not 0 <= count <= len(values):
        raise InputError("count", count, f"0 .. {len(values)}")
    order = range(len(values)) if generator is None else torch.randperm(len(values), generator=generator)
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[torch.as_tensor(list(order[:count]), dtype=torch.long)] = True
    parts = [left[:, mask] * values[mask] @ right[mask] for mask in (chosen, ~chosen)]
    return parts[0], parts[1]


def _cut(base: nn.Module, tuned: nn.Module, count: int, generator, keep: bool) -> nn.Module:
    start, state = base.state_dict(), tuned.state_dict()
    _same_names("tuned", start, state)
    for name in [name for name in state if name.endswith(MATRICES)]:
        inside, outside = _split(state[name] - start[name], count, generator)
        rest = inside if keep else outside
        state[name] = (start[name].double() + rest).to(state[name].dtype)
    return _with(tuned, state)


def without_directions(
    base: nn.Module, tuned: nn.Module, count: int, generator: torch.Generator | None = None
) -> nn.Module:
    """The tuned model, but the update of every layer's W_fc lacks its `count` leading singular directions.

    All other tensors stay tuned: the question is what these directions of W_fc, which paper 1 analyses, do. With a
    generator: `count` directions of the same update at random (the control).
    """
    return _cut(base, tuned, count, generator, keep=False)


def only_directions(
    base: nn.Module, tuned: nn.Module, count: int, generator: torch.Generator | None = None
) -> nn.Module:
    """The tuned model, but the update of every layer's W_fc has its `count` leading singular directions alone."""
    return _cut(base, tuned, count, generator, keep=True)


def angles(base: nn.Module, tuned: nn.Module, energy: float = 0.9) -> list[Tensor]:
    """Per layer (hidden,): radians between each row of the tuned W_fc and the row space of the base's W_fc."""
    found = []
    for before, after in zip(base.blocks, tuned.blocks):
        basis, rows = column_space(before.mlp.c_fc.weight.T, energy), after.mlp.c_fc.weight.double()
        inside = (rows @ basis).norm(dim=1)
        found.append(torch.atan2((rows - rows @ basis @ basis.T).norm(dim=1), inside))
    return found


def units_by_angle(base: nn.Module, tuned: nn.Module) -> list[Tensor]:
    """Per layer (hidden,): indices of the units, those first whose rows of the tuned W_fc lie farthest from the row space."""
    return [angle.argsort(descending=True, stable=True) for angle in angles(base, tuned)]


def leading(order: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """Of each layer's units in order, the first `fraction`."""
    if not 0 <= fraction <= 1:
        raise InputError("fraction", fraction, "0 .. 1")
    return [units[: round(fraction * len(units))] for units in order]


def patched(base: nn.Module, tuned: nn.Module, units: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """A model that computes like the base, but with these hidden units (after the GELU) of the tuned model's own run.

    `units` holds indices for each layer. Both models read the same tokens; call it with (batch, time) ids for logits.
    """
    if len(units) != len(base.blocks) or len(units) != len(tuned.blocks):
        raise InputError("units", f"{len(units)} layers", f"{len(base.blocks)} layers")
    for chosen, block in zip(units, base.blocks):
        hidden = block.mlp.c_fc.out_features
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < hidden:
            raise InputError("units", chosen.tolist(), f"indices 0 .. {hidden - 1}")

    def replace(chosen: Tensor, source: Tensor):
        def hook(_module, _inputs, output):
            output = output.clone()
            output[..., chosen] = source[..., chosen]
            return output

        return hook

    def model(tokens: Tensor) -> Tensor:
        with captured([block.mlp.act for block in tuned.blocks]) as sources:
            tuned(tokens)
        handles = []
        try:
            for block, chosen, source in zip(base.blocks, units, sources):
                handles.append(block.mlp.act.register_forward_hook(replace(chosen, source)))
            return base(tokens)
        finally:
            for handle in handles:
                handle.remove()

    return model


def fall(values: Sequence[float]) -> float:
    """How far a curve falls, first value to last, less all that it rises on the way; a rise gives a negative number.

    A curve that falls steadily gives its whole fall; noise around a constant gives about 0.
    """
    curve = torch.tensor([float(value) for value in values], dtype=torch.float64)
    return float(curve[0] - curve[-1] - curve.diff().clamp_min(0).sum())


def largest_rise(values: Sequence[float]) -> float:
    """The most that a curve rises from one point to any later one; 0 if it never does."""
    curve = torch.tensor([float(value) for value in values], dtype=torch.float64)
    return float((curve - curve.cummin(0).values).max())
