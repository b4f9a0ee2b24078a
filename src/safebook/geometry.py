"""Distances between clusters of activations, and the shape of a cluster. Statistics are accumulated in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from safebook.errors import InputError


def cluster_distance(
    points: Tensor, mean_safe: Tensor, mean_unsafe: Tensor, metric: str = "euclidean"
) -> Tensor:
    """(n,) tau(x) = ||x - mu_unsafe|| - ||x - mu_safe||: positive means nearer to the safe cluster.

    `points` is (n, units), the means (units,). metric "cosine": cos(x, mu_safe) - cos(x, mu_unsafe), same sign
    convention (the published cosine version has the opposite sign). Source: paper 1, Eq. 2.
    """
    points, mean_safe, mean_unsafe = points.double(), mean_safe.double(), mean_unsafe.double()
    if metric == "euclidean":
        return (points - mean_unsafe).norm(dim=-1) - (points - mean_safe).norm(dim=-1)
    if metric == "cosine":
        return torch.cosine_similarity(points, mean_safe, -1) - torch.cosine_similarity(
            points, mean_unsafe, -1
        )
    raise InputError("metric", metric, ["euclidean", "cosine"])


@dataclass(frozen=True)
class Separation:
    """How far apart two clusters lie, in three scales."""

    index: float  # S = mean tau(safe) - mean tau(unsafe), in units of the activations
    scaled: float  # S / pooled standard deviation of tau
    nearest_mean_accuracy: (
        float  # share of samples nearer to the mean of their own cluster, classes weighing the same
    )


def separation(tau_safe: Tensor, tau_unsafe: Tensor) -> Separation:
    """Summarise tau of safe and unsafe samples, (n,) each. A pooled deviation of 0 gives a scaled separation of 0."""
    safe, unsafe = tau_safe.double(), tau_unsafe.double()
    index = float(safe.mean() - unsafe.mean())
    pooled = float(((safe.var() + unsafe.var()) / 2).sqrt())
    accuracy = float(((safe > 0).double().mean() + (unsafe < 0).double().mean()) / 2)
    return Separation(index, index / pooled if pooled > 0 else 0.0, accuracy)


def spectrum(points: Tensor) -> Tensor:
    """(min(n, units),) singular values of mean-centred activations (n, units), largest first. Source: M7 of paper 1."""
    points = points.double()
    return torch.linalg.svdvals(points - points.mean(0))
