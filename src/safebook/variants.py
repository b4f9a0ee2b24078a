"""Other ways to look at two clusters of activations: each output position, a kernel distance, clusters found without labels.

Source: appendix topics of paper 1 (K-means with two distances, single positions, RBF distance).
"""

import torch
from torch import Tensor, nn

from safebook.activations import CHUNK, captured
from safebook.errors import InputError
from safebook.worlds.pcfg import Batch


@torch.no_grad()
def at_positions(model: nn.Module, batch: Batch, window: int) -> Tensor:
    """(samples, window, hidden) units of the last MLP after the GELU, at `window` positions from `>` on."""
    if window < 1:
        raise InputError("window", window, ">= 1")
    offsets = torch.arange(window, device=batch.tokens.device)
    tokens = batch.tokens[:, : int(batch.decision.max()) + window]
    parts = []
    with captured([model.blocks[-1].mlp.act]) as last:
        for piece, start in zip(tokens.split(CHUNK), batch.decision.split(CHUNK)):
            model(piece)
            rows = torch.arange(len(piece), device=piece.device)[:, None]
            parts.append(last[0][rows, start[:, None] + offsets].float())
    return torch.cat(parts)


def bandwidth(points: Tensor) -> float:
    """Median of the distances between different points (n, units): the median heuristic."""
    value = float(torch.nn.functional.pdist(points.double()).median())
    if value <= 0:
        raise InputError("points", "median distance 0", "points that differ")
    return value


def kernel_distance(points: Tensor, safe: Tensor, unsafe: Tensor, width: float) -> Tensor:
    """(n,) tau with distances in the feature space of the kernel k(x, y) = exp(-||x - y||^2 / (2 width^2)).

    The squared distance of x to the mean of a cluster there is 1 - 2 mean_j k(x, y_j) + mean_jl k(y_j, y_l). `points`
    (n, units), the clusters (m, units) of other samples; positive means nearer to the safe cluster.
    """
    if not width > 0:
        raise InputError("width", width, "> 0")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * width**2))

    def distance(cluster: Tensor) -> Tensor:
        cluster = cluster.double()
        square = 1 - 2 * kernel(points.double(), cluster).mean(1) + kernel(cluster, cluster).mean()
        return square.clamp_min(0).sqrt()

    return distance(unsafe) - distance(safe)


def two_means(points: Tensor, generator: torch.Generator, cosine: bool = False) -> Tensor:
    """(n,) bool: which of two clusters K-means puts each point in; `cosine`: of the points at length 1.

    The best of ten starts, without any label.
    """
    from sklearn.cluster import KMeans

    points = torch.nn.functional.normalize(points.double(), dim=1) if cosine else points.double()
    start = int(torch.randint(2**31 - 1, (), generator=generator))
    return torch.tensor(KMeans(2, n_init=10, random_state=start).fit_predict(points.numpy()) == 1)


def agreement(found: Tensor, labels: Tensor) -> float:
    """Share of points in the cluster of their own label, the better of the two namings: 0.5 .. 1 for equal classes."""
    if found.shape != labels.shape:
        raise InputError("labels", tuple(labels.shape), f"shape {tuple(found.shape)}")
    share = float((found == labels).double().mean())
    return max(share, 1 - share)
