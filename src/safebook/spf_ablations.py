"""What the ablations of SPF vary: its switches, the wording and the category of the anchor, how its directions are found.

Source: paper 3's ablations (rank; anchors by category against a generic one); the other variants are controls of ours.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from safebook.errors import InputError
from safebook.gradients import leading_directions, overlap_chance
from safebook.spf_arms import CPU
from safebook.streams import stream
from safebook.worlds import chat_data
from safebook.worlds import chat_text as text
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_data import Dialogue

#: Variant -> arm of `spf_arms.fine_tune`, changes to SPF's settings. "other SVD" stands for the one that is not in use.
VARIANTS = {
    "as published": ("spf", {}),
    "other SVD": ("spf", {"method": "other"}),
    "conflict tested block by block": ("spf", {"test": "block"}),
    "no conflict test": ("spf", {"test": "always"}),
    "directions of the inputs": ("spf", {"side": "right"}),
    "directions of both sides": ("spf", {"side": "both"}),
    "subspace of the first step": ("spf", {"frozen": True}),
    "the optimiser's update projected": ("spf", {"project": "update"}),
    "without embeddings, head, gains": ("spf", {"exclude": ("vectors", "embeddings", "head")}),
    "random subspace": ("random subspace", {}),
    "utility subspace": ("utility subspace", {}),
}
METHODS = ("exact", "low-rank")
#: Kinds of anchors. In this world every request belongs to a category: what can be generic are the words of the refusal.
ANCHORS = ("generic", "category", "all but one")


def changes(variant: str, method: str) -> tuple[str, dict]:
    """Arm and changed settings of a variant when `method` is the SVD in use. Raises InputError for an unknown one."""
    if variant not in VARIANTS:
        raise InputError("variant", variant, ", ".join(VARIANTS))
    if method not in METHODS:
        raise InputError("method", method, METHODS)
    arm, changed = VARIANTS[variant]
    other = METHODS[1 - METHODS.index(method)]
    return arm, {"method": method} | {k: other if v == "other" else v for k, v in changed.items()}


# -------------------------------------------------------------------- anchors


def own_categories(world: ChatWorld, seed: int, count: int) -> list[int]:
    """`count` different restricted categories, those that the anchors of a seed are about. Raises InputError for too many."""
    most = world.settings.categories
    if not 1 <= count <= most:
        raise InputError("anchors", count, f"1 .. {most}")
    return torch.randperm(most, generator=stream(CPU, "anchor categories", seed))[:count].tolist()


def anchor(world: ChatWorld, kind: str, category: int, seed: int) -> list[Dialogue]:
    """The rows of an anchor, forbidden requests of the alignment split with their refusals.

    "generic": one request of the category, refused in words that fit any request; "category": the same request and refusal,
    and a sentence that names what was asked for; "all but one": a generic row of every other category.

    Raises InputError for another kind or an unknown category.
    """
    if kind not in ANCHORS:
        raise InputError("kind", kind, ANCHORS)
    if not 0 <= category < world.settings.categories:
        raise InputError("category", category, f"0 .. {world.settings.categories - 1}")
    if kind == "all but one":
        others = [c for c in range(world.settings.categories) if c != category]
        return [row for c in others for row in anchor(world, "generic", c, seed)]
    pool = world.requests("alignment", "harmful")
    pool = pool.take(np.flatnonzero(world.category[pool.object] == category))
    generator = stream(CPU, "anchor", category, seed)  # the same request and refusal for both kinds
    asked = pool.take(torch.randint(len(pool), (1,), generator=generator).numpy())
    refusal = text.REFUSALS[int(torch.randint(len(text.REFUSALS), (), generator=generator))]
    if kind == "category":
        operator, object = world.pairs(asked)[0]
        named = next(tail for tail in text.REFUSAL_TAILS if "{object}" in tail)
        refusal = f"{refusal} {named.format(operator=operator, object=object)}"
    return [chat_data.dialogue(world.ask(asked)[0], refusal)]


def inside_and_outside(
    refused: Mapping[int, tuple[int, float]], category: int
) -> dict[str, tuple[int, float]]:
    """ "own category" and "other categories" -> prompts, share refused, from `spf_measures.by_category`."""
    parts = {
        "own category": [v for c, v in refused.items() if c == category],
        "other categories": [v for c, v in refused.items() if c != category],
    }
    for where, found in parts.items():
        if not found:
            raise InputError(
                "category", category, f"one of {sorted(refused)}, and not the only one ({where})"
            )
    counts = {where: sum(n for n, _ in found) for where, found in parts.items()}
    return {
        where: (counts[where], sum(n * share for n, share in found) / counts[where])
        for where, found in parts.items()
    }


# -------------------------------------------------------------------- finding the directions


def agreement(
    gradients: Mapping[str, torch.Tensor], share: float, generator: torch.Generator
) -> dict[str, float]:
    """Exact against low-rank directions of all matrices (vectors have one direction, and no choice).

    Returns `overlap` (phi of the two subspaces, mean over matrices), `lowest_overlap`, `chance` (phi of random ones), and the
    seconds that each decomposition took for all matrices together.
    """
    overlaps, chances, seconds = [], [], dict.fromkeys(METHODS, 0.0)
    for gradient in gradients.values():
        if gradient.shape[1] == 1:
            continue
        rank, bases = max(1, round(share * gradient.shape[0])), {}
        for method in METHODS:
            started = time.perf_counter()
            bases[method], _ = leading_directions(gradient, rank, method=method, generator=generator)
            seconds[method] += time.perf_counter() - started
        smaller = min(basis.shape[1] for basis in bases.values())
        if smaller:
            overlaps.append(float((bases["exact"].T @ bases["low-rank"]).square().sum() / smaller))
            chances.append(overlap_chance(gradient.shape[0], smaller))
    if not overlaps:
        raise InputError("gradients", len(gradients), "at least one matrix with a gradient that is not zero")
    return {
        "overlap": float(np.mean(overlaps)),
        "lowest_overlap": min(overlaps),
        "chance": float(np.mean(chances)),
        "seconds_exact": seconds["exact"],
        "seconds_low_rank": seconds["low-rank"],
    }


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's correlation; nought where one of the two does not vary, since then nothing follows the other."""
    from scipy.stats import spearmanr

    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(spearmanr(x, y).statistic)
