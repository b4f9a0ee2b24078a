"""Gradients block by block, and their geometry: spectra, cosines, overlap of the directions they write.

A block is one trainable tensor, as a matrix (m, n) = (outputs, inputs). Its gradient is the sum over token positions of
an output vector times an input vector, so that its rank is at most the number of positions that carry a signal: compare
gradients only at equal numbers of sequences and of answer tokens (`equal_tokens`). Source: paper 3, Sec. 4.1; the
formulas of the overlap and of the energy ratio are those of its sister paper. Chance levels and token counts are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safebook import subspaces
from safebook.errors import InputError
from safebook.training import Objective

#: Kinds of tensors that can be left out of the blocks.
KINDS = ("vectors", "embeddings", "head")
METHODS = ("exact", "low-rank")
#: Singular values below this share of the largest are rounding noise of float32; their vectors are arbitrary.
NOISE = 1e-5


def as_matrix(tensor: Tensor) -> Tensor:
    """(m, n) view of a tensor: vectors become one column (m, 1), the axes after the first are joined."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.ndim else tensor.reshape(1, 1)


def bare(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper, whose hooks do not bear a second gradient in one step.

    Every process has the same weights and the same anchor, so that each finds the same safety gradient by itself.
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def blocks(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Name -> trainable tensor; a tied one comes once. With adapters (LoRA), these are the adapters' matrices.

    `exclude`: kinds that are not blocks: "vectors" (gains and biases), "embeddings", "head" (output embedding). A tied
    matrix is both of the last two. Default: everything is a block, as in the replication of paper 3.

    Raises InputError for an unknown kind, a model without trainable tensors, or one whose tensors are sharded.
    """
    if not set(exclude) <= set(KINDS) or isinstance(exclude, str):
        raise InputError("exclude", exclude, f"a tuple of some of {KINDS}")
    model = bare(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    get = getattr(model, "get_output_embeddings", lambda: getattr(model, "head", None))
    last = get()
    head = {id(p) for p in last.parameters()} if isinstance(last, nn.Module) else set()
    found = {}
    for name, parameter in model.named_parameters():
        kinds = {
            "vectors": parameter.ndim < 2,
            "embeddings": id(parameter) in embeddings,
            "head": id(parameter) in head,
        }
        if parameter.requires_grad and not any(kinds[kind] for kind in exclude):
            found[name] = parameter
    if not found:
        raise InputError(
            "model", type(model).__name__, "one with trainable tensors: call model.requires_grad_(True)"
        )
    if any(type(p).__name__ in ("DTensor", "FlatParameter") or p.numel() == 0 for p in found.values()):
        raise InputError("model", type(model).__name__, "whole tensors: FSDP and ZeRO keep pieces of them")
    return found


def block_gradients(
    model: nn.Module, objective: Objective, batch: object, exclude: Sequence[str] = ()
) -> tuple[float, dict[str, Tensor]]:
    """Loss on `batch`, and name -> (m, n) gradient of it at the model's weights, in the weights' dtype.

    Blocks that the loss does not depend on are absent. The model is in evaluation mode meanwhile (no dropout), and the
    gradients that it holds, its weights and modes are left as they were. The pass runs in the model's own precision;
    an objective may use `torch.autocast` itself.

    Raises InputError as `blocks` does, FloatingPointError for a loss or gradient that is not finite.
    """
    model = bare(model)
    parameters = blocks(model, exclude)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.enable_grad():
            loss = objective(model, batch)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for module, mode in modes:
            module.training = mode
    gradients = {name: as_matrix(g.detach()) for name, g in zip(parameters, found) if g is not None}
    broken = [name for name, g in gradients.items() if not g.isfinite().all()]
    if not gradients:
        raise InputError("objective", "no gradient", "a loss that depends on the blocks")
    if broken or not loss.isfinite():
        raise FloatingPointError(f"loss {float(loss.detach())}; gradients that are not finite: {broken[:3]}")
    return float(loss.detach()), gradients


def working(gradient: Tensor) -> Tensor:
    """The matrix in float32, or in float64 if it is: decompositions need it."""
    gradient = as_matrix(gradient)
    return gradient if gradient.dtype == torch.float64 else gradient.float()


def leading_directions(
    gradient: Tensor,
    rank: int,
    tolerance: float = NOISE,
    method: str = "exact",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """(m, k) and (n, k) leading left and right singular vectors, k = min(rank, m, n) or less.

    Parameters
    ----------
    tolerance : directions whose singular value is below this share of the largest do not count, since in a gradient of
        few tokens they are arbitrary; 0 = keep them, as the replication of paper 3 does. A zero gradient has none.
    method : "exact" = thin SVD; "low-rank" = `torch.svd_lowrank` with 5 more directions and 2 power iterations.
    generator : on the CPU; needed by "low-rank", whose start is random. Torch's global stream is not touched.
    """
    if rank < 1:
        raise InputError("rank", rank, ">= 1")
    if method not in METHODS:
        raise InputError("method", method, METHODS)
    matrix = working(gradient)
    if method == "exact":
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        v = vt.T
    else:
        if generator is None:
            raise InputError("generator", None, 'a torch.Generator for method="low-rank"')
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(matrix, q=min(rank + 5, *matrix.shape), niter=2)
    kept = min(rank, int(((s > 0) & (s >= tolerance * s[0])).sum()))
    return u[:, :kept], v[:, :kept]


# Insight I: spectra.


def singular_values(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name -> (min(m, n),) float64 singular values, largest first."""
    return {name: torch.linalg.svdvals(as_matrix(g).double()) for name, g in gradients.items()}


def explained_ratio(gradient: Tensor, ranks: Sequence[int]) -> Tensor:
    """(len(ranks),) CER(k): share of the squared Frobenius norm in the leading k directions. NaN for a zero gradient.

    Source: paper 3, Sec. 4.1 (cumulative explained ratio).
    """
    if not len(ranks) or min(ranks) < 1:
        raise InputError("ranks", ranks, "numbers of directions >= 1")
    energy = subspaces.cumulative_energy(as_matrix(gradient))
    return energy[[min(rank, len(energy)) - 1 for rank in ranks]]


def equal_tokens(
    *masks: Tensor, tokens: int | None = None, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Loss masks (rows, time), bool, cut to the same number of rows and of targets in every row.

    Gradients under the results have the same bound on their rank. The first rows are kept: take the same rows of the
    batch. `tokens`: targets a row; None = as many as the shortest row has. `generator`: choose them at random instead of
    the first ones of each row.
    """
    rows = min(len(mask) for mask in masks)
    cut = [mask[:rows] for mask in masks]
    least = min(int(mask.sum(1).min()) for mask in cut)
    wanted = least if tokens is None else tokens
    if not 1 <= wanted <= least:
        raise InputError("tokens", wanted, f"1 .. {least}, the targets of the shortest row")
    found = []
    for mask in cut:
        if generator is None:
            order = mask.cumsum(1).where(mask, mask.shape[1] + 1)
        else:
            drawn = torch.rand(mask.shape, generator=generator, dtype=torch.float64).to(mask.device)
            order = drawn.where(mask, 2.0)
        chosen = order.argsort(dim=1, stable=True)[:, :wanted]
        found.append(torch.zeros_like(mask).scatter(1, chosen, True))
    return found


# Insight II: conflict.


def _same_blocks(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    if set(a) != set(b):
        raise InputError("gradients", sorted(set(a) ^ set(b))[:3], "two gradients with the same blocks")


def _inner(a: Tensor, b: Tensor) -> float:
    return float(a.double().flatten() @ b.double().flatten())


def block_cosines(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Name -> cosine between two gradients of a block; NaN where one is zero. Raises InputError if blocks differ."""
    _same_blocks(a, b)
    found = {}
    for name in a:
        norms = (_inner(a[name], a[name]) * _inner(b[name], b[name])) ** 0.5
        found[name] = _inner(a[name], b[name]) / norms if norms else float("nan")
    return found


def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Cosine over all blocks at once: below 0 is the conflict that SPF tests. Raises InputError if blocks differ."""
    _same_blocks(a, b)
    inner, squares_a, squares_b = (sum(_inner(x[n], y[n]) for n in a) for x, y in ((a, b), (a, a), (b, b)))
    norms = (squares_a * squares_b) ** 0.5
    return inner / norms if norms else float("nan")


def removed_share(utility: Tensor, safety: Tensor, rank: int, tolerance: float = NOISE) -> float:
    """Share of a utility gradient's energy in the safety gradient's top `rank` left directions: what SPF removes.

    A random subspace of k directions holds k / m of it on average.
    """
    left, _ = leading_directions(safety.double(), rank, tolerance)
    return 1 - subspaces.energy_outside(left, as_matrix(utility))


# Insight III: one sample is enough.


def overlap(a: Tensor, b: Tensor, rank: int, tolerance: float = NOISE) -> float:
    """phi = ||U_a^T U_b||_F^2 / min(rank U_a, rank U_b) of the top `rank` left directions, between 0 and 1.

    Source: paper 3, Sec. 4.1 (Frobenius overlap); 1 = the smaller subspace lies in the larger. NaN for a zero gradient.
    """
    u_a, u_b = _left_pair(a, b, rank, tolerance)
    smaller = min(u_a.shape[1], u_b.shape[1])
    return float((u_a.T @ u_b).square().sum() / smaller) if smaller else float("nan")


def overlap_chance(outputs: int, rank_a: int, rank_b: int | None = None) -> float:
    """Expected `overlap` of independent random subspaces: k / m; of different ranks, the larger of them / m."""
    ranks = (rank_a, rank_a if rank_b is None else rank_b)
    if not 1 <= min(ranks) <= max(ranks) <= outputs:
        raise InputError("rank", ranks, f"1 .. {outputs}")
    return max(ranks) / outputs


def principal_angles(a: Tensor, b: Tensor, rank: int, tolerance: float = NOISE) -> Tensor:
    """(min(k_a, k_b),) angles in radians, smallest first, between the top `rank` left directions of two gradients.

    The mean squared cosine of them is the `overlap`.
    """
    from scipy.linalg import subspace_angles  # keeps small angles, which the arc cosine rounds to 0

    u_a, u_b = _left_pair(a, b, rank, tolerance)
    if not min(u_a.shape[1], u_b.shape[1]):
        return torch.zeros(0, dtype=torch.float64)
    return torch.from_numpy(subspace_angles(u_a.cpu().numpy(), u_b.cpu().numpy())[::-1].copy())


def _left_pair(a: Tensor, b: Tensor, rank: int, tolerance: float) -> tuple[Tensor, Tensor]:
    a, b = as_matrix(a), as_matrix(b)
    if a.shape[0] != b.shape[0]:
        raise InputError("gradients", (tuple(a.shape), tuple(b.shape)), "two matrices with as many outputs")
    return tuple(leading_directions(x.double(), rank, tolerance)[0] for x in (a, b))
