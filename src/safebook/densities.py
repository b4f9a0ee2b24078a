"""Densities of numbers on a line, and how far two of them lie apart (Kullback-Leibler), by Gaussian kernels.

Source: Figure 2 of paper 2 compares such densities by eye; its estimator and bandwidth are not stated, so that these are ours.
"""

import numpy as np
from scipy.special import logsumexp

from safebook.errors import InputError

POINTS = 200


def bandwidth(values: np.ndarray) -> float:
    """Silverman's rule of thumb: 0.9 min(standard deviation, interquartile range / 1.34) n^(-1/5).

    Raises InputError for fewer than two values, or for values that are not finite or all the same.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all() or x.min() == x.max():
        raise InputError("values", f"shape {x.shape}", "a row of finite numbers that differ, two or more")
    low, high = np.quantile(x, [0.25, 0.75])
    spread = min(s for s in (x.std(), (high - low) / 1.34) if s > 0)
    return float(0.9 * spread * len(x) ** -0.2)


def log_density(values: np.ndarray, at: np.ndarray, width: float) -> np.ndarray:
    """(len(at),) log of the kernel estimate: a Gaussian of standard deviation `width` on every value."""
    if not width > 0:
        raise InputError("width", width, "above 0")
    steps = (np.asarray(at, np.float64)[:, None] - np.asarray(values, np.float64)) / width
    return logsumexp(-0.5 * steps**2, axis=1) - np.log(len(values) * width * np.sqrt(2 * np.pi))


def grid(values: np.ndarray, width: float, points: int = POINTS) -> np.ndarray:
    """(points,) evenly over the values and five bandwidths around them."""
    return np.linspace(np.min(values) - 5 * width, np.max(values) + 5 * width, points)


def divergence(
    first: np.ndarray, second: np.ndarray, width: float | None = None, points: int = POINTS
) -> float:
    """KL(first || second) in nats between two samples, both smoothed with one bandwidth: that of `first`, unless given.

    The integral is a sum over a grid on which the first density lies, with at least four points a bandwidth. The estimate is
    above zero for two samples of one distribution, the more so the smaller they are: compare it with that of two halves.
    """
    h = bandwidth(first) if width is None else width
    reach = np.ptp(np.asarray(first, np.float64)) + 10 * h
    at = grid(first, h, max(points, int(np.ceil(4 * reach / h))))
    p, q = log_density(first, at, h), log_density(second, at, h)
    weights = np.exp(p)
    return float(max(0.0, np.sum(weights * (p - q)) / np.sum(weights)))
