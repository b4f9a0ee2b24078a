"""Other ways to look at two clusters of activations: a kernel distance, and clusters found without labels.

Source: appendix topics of paper 1 (K-means with two distances, RBF distance).
"""

import torch
from torch import Tensor

from safebook.errors import InputError


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
