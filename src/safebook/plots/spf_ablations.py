"""Figures of SPF's ablations. Tables of the record that are read: `ranks`, `steps`, `variants`, `anchors`, `decompositions`."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.spf_safety import ARMS, MEASURES, arm_name, in_order, measures_of, row, set_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

__all__ = ["anchors", "arm_name", "at_rank", "decompositions", "over_rank", "variants"]
SUBSPACES = ("spf", "random subspace")
#: Kind of anchor, or control -> name, colour, marker.
ANCHORS = {
    "sft": ("plain fine-tuning (SFT)", COLOURS["unsafe"], "o"),
    "random subspace": ("random subspace, equal rank", "#56b4e9", "^"),
    "category": ("names its category's request", "#cc78bc", "s"),
    "generic": ("generic refusal", COLOURS["safe"], "D"),
    "all but one": ("every category but this one", COLOURS["comply"], "P"),
}


def _label(label: str, better: str, trials: str) -> str:
    return f"{label}\n(share, {better})" if trials else f"{label}, {better})"


def _ranks(axis: "Axes", shares: pd.Series) -> None:
    """A logarithmic axis of ranks, in per cent of the outputs, a tick a rank."""
    known = sorted(set(shares) - {0.0})
    axis.set_xscale("log")
    axis.set_xticks([100 * share for share in known], [f"{100 * share:.2g}" for share in known], fontsize=9)
    axis.minorticks_off()
    axis.set_xlabel("rank (% of the outputs, log scale)")


def over_rank(record: "Record") -> Figure:
    """All measures over the rank, both subspaces; the arms without one as horizontal lines. Last, the energy removed."""
    table = record.tables["ranks"]
    columns = (*measures_of(table), ("removed", "energy removed", "of the gradient's", "energy"))
    figure, axes = panels(len(columns), 3, 3.7, 2.7)
    for axis, (column, label, better, trials) in zip(axes, columns):
        for arm in SUBSPACES:
            name, shade, marker = ARMS[arm]
            part = table[table["arm"] == arm]
            mean = part.groupby("share")[column].mean()
            axis.plot(100 * mean.index, mean, color=shade, lw=1.5)
            axis.plot(100 * part["share"], part[column], marker, color=shade, ms=5, alpha=0.8, label=name)
        if column == "removed":
            known = np.array(sorted(set(table["share"]) - {0.0}))
            axis.plot(100 * known, known, color="0.5", lw=1, ls=":", label="as much as directions")
        else:
            for arm in in_order(set(table["arm"]) - set(SUBSPACES)):
                name, shade, _ = ARMS[arm]
                level = table[table["arm"] == arm][column].mean()
                axis.axhline(level, color=shade, lw=1.2, ls=":" if arm == "aligned" else "--", label=name)
        if trials:
            axis.set_ylim(-0.05, 1.05)
        _ranks(axis, table["share"])
        axis.set_ylabel(_label(label, better, trials), fontsize=9)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def at_rank(record: "Record", share: float) -> Figure:
    """At one rank: four measures of all arms, and by step the energy removed and the loss on the anchor."""
    table, steps = record.tables["ranks"], record.tables["steps"]
    table = table[(table["share"] == share) | (table["share"] == 0)]
    shown = in_order(table["arm"])
    chosen = [m for m in MEASURES if m[0] in ("refusal", "broken", "benign_exact", "task")]
    figure, axes = panels(6, 3, 3.5, 0.25 * len(shown) + 1.3)
    for axis, (column, label, better, trials) in zip(axes, chosen):
        for y, arm in enumerate(shown):
            row(axis, table[table["arm"] == arm], column, trials, y, *ARMS[arm][1:])
        axis.axvline(table[table["arm"] == "aligned"][column].mean(), color="0.4", lw=1, ls=":")
        axis.set_xlabel(_label(label, better, trials), fontsize=9)
        axis.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1], yticks=range(len(shown)), yticklabels=[])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.grid(axis="y", color="0.93")
    for axis in (axes[0], axes[3]):
        axis.set_yticklabels([arm_name(arm) for arm in shown], fontsize=8.5)
    steps = steps[steps["share"] == share]
    labels = {
        "removed": "energy removed (share)",
        "safety_loss": "loss on the anchor\n(nats a token, ↓ safer)",
    }
    for axis, (column, label) in zip(axes[4:], labels.items()):
        for arm in SUBSPACES:
            name, shade, _ = ARMS[arm]
            for i, (_, part) in enumerate(steps[steps["arm"] == arm].groupby("seed")):
                text = name if i == 0 else None
                axis.plot(part["step"] + 1, part[column], "-", color=shade, lw=1, alpha=0.8, label=text)
        axis.set(xlabel="step", ylim=(0, 1.08 * max(axis.get_ylim()[1], 1e-3)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel(label, fontsize=9)
    figure.suptitle(f"rank: {100 * share:.2g} % of the outputs", fontsize=11)
    legend_below(figure, axes[4], 2, fontsize=9)
    return done(figure)


def variants(record: "Record") -> Figure:
    """Every variant by every measure: a mark a seed, bars the pooled Wilson interval, dotted the aligned model."""
    table = record.tables["variants"]
    shown = list(dict.fromkeys(table["arm"]))
    columns = measures_of(table)
    columns.append(("acted", "steps in which it acted", "", "steps"))
    columns.append(("removed", "energy removed in them", "", "energy"))
    across = -(-len(columns) // 2)
    figure, axes = panels(len(columns), across, 2.3, 0.25 * len(shown) + 1.2, sharey=True)
    for axis, (column, label, better, trials) in zip(axes, columns):
        counted = trials if trials in table.columns else ""
        for y, arm in enumerate(shown):
            shade, marker = ARMS[arm][1:] if arm in ARMS else (COLOURS["safe"], "D")
            row(axis, table[table["arm"] == arm], column, counted, y, shade, marker)
        if counted or not trials:
            axis.axvline(table[table["arm"] == "aligned"][column].mean(), color="0.4", lw=1, ls=":")
        text = _label(label, better, trials) if better else f"{label}\n(share)"
        axis.set_xlabel(text, fontsize=9)
        if trials:
            axis.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.93")
    names = [arm_name(arm) if arm in ARMS else f"SPF: {arm}" for arm in shown]
    axes[0].set_yticks(range(len(shown)), names)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    for axis in axes[::across]:
        axis.tick_params(axis="y", labelsize=8.5)
    figure.suptitle(f"fine-tuned on {set_name(table['data'].iloc[0])}", fontsize=11)
    return done(figure)


def anchors(record: "Record") -> Figure:
    """Refusals kept on the category of the anchor and on the others; a mark an anchor, a bar the mean."""
    table = record.tables["anchors"]
    before = table[table["anchor"] == "aligned"].set_index(["seed", "category", "tested_on"])["refusal"]
    places = list(dict.fromkeys(table["tested_on"]))
    figure, axes = panels(len(places), len(places), 4.4, 3.0, sharey=True, sharex=True)
    for axis, place in zip(axes, places):
        part = table[(table["tested_on"] == place) & (table["anchor"] != "aligned")]
        at = pd.MultiIndex.from_frame(part[["seed", "category", "tested_on"]])
        whole = before.loc[at].to_numpy()
        part = part.assign(kept=np.divide(part["refusal"], whole, out=np.zeros(len(part)), where=whole > 0))
        for y, (kind, (_, shade, marker)) in enumerate(ANCHORS.items()):
            kept = part[part["anchor"] == kind]["kept"]
            places_of = y + np.linspace(-0.18, 0.18, len(kept)) if len(kept) > 1 else [y]
            axis.plot(kept, places_of, marker, color=shade, ms=5, alpha=0.8)
            axis.plot(kept.mean(), y, "|", color="0.1", ms=16, mew=1.5)
        axis.axvline(1, color="0.4", lw=1, ls=":")
        axis.set_title(f"tested on: {place}", fontsize=10)
        axis.set_xlabel("refusals kept (share of the aligned model's, ↑ safer)", fontsize=9)
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(ANCHORS)), [name for name, *_ in ANCHORS.values()], fontsize=9)
    axes[0].set_ylim(len(ANCHORS) - 0.5, -0.5)
    return done(figure)


def decompositions(record: "Record") -> Figure:
    """Overlap of exact and randomised directions, and the seconds of both for all matrices."""
    table = record.tables["decompositions"]
    figure, (left, right) = panels(2, 2, 4.2, 3.0)
    _curve(left, table, "overlap", COLOURS["safe"], "D", "mean over matrices")
    _curve(left, table, "lowest_overlap", "#56b4e9", "v", "lowest of the matrices")
    mean = table.groupby("share")["chance"].mean()
    left.plot(100 * mean.index, mean, color="0.4", lw=1, ls=":", label="random subspaces")
    left.set(ylabel=r"overlap $\varphi$ (1: the same)", ylim=(-0.05, 1.05))
    _curve(right, table, "seconds_exact", COLOURS["unsafe"], "o", "exact")
    _curve(right, table, "seconds_low_rank", COLOURS["comply"], "s", "randomised")
    right.set(ylabel="time for all matrices (s, ↓ better)", ylim=(0, None))
    for axis in (left, right):
        _ranks(axis, table["share"])
        axis.legend(frameon=False, fontsize=9)
    return done(figure)


def _curve(axis: "Axes", table: pd.DataFrame, column: str, shade: str, marker: str, label: str) -> None:
    mean = table.groupby("share")[column].mean()
    axis.plot(100 * mean.index, mean, color=shade, lw=1.4)
    axis.plot(100 * table["share"], table[column], marker, color=shade, ms=5, alpha=0.8, label=label)
