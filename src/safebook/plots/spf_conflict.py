"""Figures of the conflict of safety and utility gradients: by set, by layer, by step, and what fine-tuning did meanwhile.

Tables of the record that are read: `cosines`, `layers`, and on the testbed `steps` and `behaviour`.
"""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from safebook.plots import done, legend_below, panels, spf_safety
from safebook.plots.spf import ANCHORS, KINDS, STAGES, kinds, name, stages, whole_steps

if TYPE_CHECKING:
    from safebook.results import Record

#: Arm -> name, colour, mark.
ARMS = {arm: spf_safety.ARMS[arm] for arm in ("aligned", "sft", "spf", "random subspace", "mixing")}
#: Column of `behaviour`, label.
MEASURES = (
    ("refusal", "refused, harmful\n(share, ↑ safer)"),
    ("harm", "harmful rate\n(share, ↓ safer)"),
    ("broken", "broken text, harmful\n(share, ↓ better)"),
    ("benign_exact", "exact, benign\n(share, ↑ better)"),
    ("task", "the set's task, right\n(share, ↑ better)"),
)
COSINE = "cosine with the task's gradient\n(← conflict)"


def set_name(data: str) -> str:
    """A fine-tuning set's name on the page."""
    return "harmful rows" if data == "harm" else name(data)


def arm_name(arm: str) -> str:
    """An arm's name on the page."""
    return ARMS[arm][0]


def cosines(record: "Record") -> Figure:
    """Mean cosine over anchors and batches, over all blocks: a row a set, a panel a stage, a mark a seed."""
    table = record.tables["cosines"]
    shown, rows = stages(record), kinds(table, "set")
    figure, axes = panels(len(shown), len(shown), 4.0, 0.48 * len(rows) + 1.5, sharey=True)
    for axis, stage in zip(axes, shown):
        part = table[table["stage"] == stage]
        for step, (anchor, (text, colour, marker)) in zip(np.linspace(-0.27, 0.27, 4), ANCHORS.items()):
            of = part[part["anchor"] == anchor]
            at = of["set"].map({kind: i for i, kind in enumerate(rows)}) + step
            axis.hlines(at, of["low"], of["high"], color=colour, lw=1.5, alpha=0.35)
            axis.plot(of["mean"], at, marker, color=colour, ms=5, alpha=0.85, label=text)
        axis.axvline(0, color="0.2", lw=1, ls=":")
        axis.set(xlabel=COSINE)
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(rows)), [name(kind) for kind in rows], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def by_layer(record: "Record") -> Figure:
    """Cosine against the layer, aligned model: a panel a set, a line an anchor (mean over seeds), bands over single cosines."""
    table = record.tables["layers"]
    table = table[table["stage"] == "aligned"]
    rows, depth = kinds(table, "set"), int(max(record.frame("layers")["value"]))
    figure, axes = panels(len(rows), 3, 4.0, 2.7, sharex=True, sharey=True)
    ends = [-1, *range(depth), depth]
    for axis, kind in zip(axes, rows):
        for anchor, (text, colour, marker) in ANCHORS.items():
            part = table[(table["set"] == kind) & (table["anchor"] == anchor)]
            means = part.groupby("layer")[["mean", "low", "high"]].mean()
            axis.fill_between(means.index, means["low"], means["high"], color=colour, alpha=0.12, lw=0)
            axis.plot(means.index, means["mean"], marker + "-", color=colour, lw=1.3, ms=4, label=text)
        axis.axhline(0, color="0.2", lw=1, ls=":")
        step = max(1, depth // 4)
        ticks = [n for n in ends if n in (-1, depth) or n % step == 0]
        names = {-1: "in", depth: "out"}
        axis.set_xticks(ticks, [names.get(n, str(n)) for n in ticks], fontsize=8)
        axis.set_title(KINDS[kind][0], fontsize=10)
        axis.grid(axis="y", color="0.92")
    for axis in axes:
        axis.set_xlabel("layer (in, out: embeddings, head)")
    for axis in axes[::3]:
        axis.set_ylabel("cosine (↓ conflict)")
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def steps(record: "Record") -> Figure:
    """Plain fine-tuning: above, the cosine at every step; below, each anchor's loss. Lines are means over seeds, dots seeds."""
    table = record.tables["steps"]
    table = table[table["arm"] == "sft"]
    shown = [data for data in record.parameters["sets"] if data in set(table["set"])]
    figure, axes = panels(2 * len(shown), len(shown), 3.5, 2.7, sharex=True)
    for number, data in enumerate(shown):
        for axis, column in ((axes[number], "cosine"), (axes[len(shown) + number], "anchor_loss")):
            for anchor, (text, colour, marker) in ANCHORS.items():
                part = table[(table["set"] == data) & (table["anchor"] == anchor)]
                means = part.groupby("step")[column].mean()
                axis.plot(part["step"] + 1, part[column], marker, color=colour, ms=2.5, alpha=0.25)
                axis.plot(means.index + 1, means, color=colour, lw=1.4, label=text)
            axis.grid(color="0.92")
        axes[number].axhline(0, color="0.2", lw=1, ls=":")
        axes[number].set_title(set_name(data), fontsize=10)
        axes[len(shown) + number].set_xlabel("step")
        whole_steps(axes[len(shown) + number])
    axes[0].set_ylabel("cosine (↓ conflict)")
    axes[len(shown)].set_ylabel("loss of the anchor\n(nats a token)")
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def behaviour(record: "Record") -> Figure:
    """Before and after fine-tuning: a row a set and arm, a mark a seed; the hollow mark is the aligned model."""
    table = record.tables["behaviour"]
    rows = [(data, arm) for data in record.parameters["sets"] for arm in ARMS if arm != "aligned"]
    rows = [r for r in rows if ((table["set"] == r[0]) & (table["arm"] == r[1])).any()]
    figure, axes = panels(len(MEASURES), len(MEASURES), 2.6, 0.36 * len(rows) + 1.3, sharey=True)
    for axis, (column, label) in zip(axes, MEASURES):
        for y, (data, arm) in enumerate(rows):
            _, colour, marker = ARMS[arm]
            before, after = (
                table[(table["set"] == data) & (table["arm"] == a)][column] for a in ("aligned", arm)
            )
            axis.plot(before, [y] * len(before), "o", color="0.35", ms=8, markerfacecolor="none")
            axis.plot(after, [y] * len(after), marker, color=colour, ms=5, alpha=0.85)
        axis.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1], xlabel=label)
        axis.xaxis.label.set_size(9)
        axis.grid(axis="y", color="0.92")
    axes[0].plot([], [], "o", color="0.35", ms=8, markerfacecolor="none", label="aligned, before")
    axes[0].set_yticks(
        range(len(rows)), [f"{set_name(data)}: {arm_name(arm)}" for data, arm in rows], fontsize=9
    )
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    legend_below(figure, axes[0], 1, fontsize=9)
    return done(figure)


def defended(record: "Record") -> Figure:
    """One set under plain fine-tuning, SPF and its random control: cosine with the anchor, and the anchor's loss."""
    table = record.tables["steps"]
    table = table[(table["set"] == record.parameters["defended"]) & (table["anchor"] == "refusal")]
    figure, axes = panels(2, 2, 4.6, 3.0)
    labels = {
        "cosine": "cosine before any\nprojection (↓ conflict)",
        "anchor_loss": "loss of the anchor\n(nats a token)",
    }
    for axis, (column, label) in zip(axes, labels.items()):
        for arm in (a for a in ARMS if a in set(table["arm"])):
            text, colour, marker = ARMS[arm]
            part = table[table["arm"] == arm]
            means = part.groupby("step")[column].mean()
            axis.plot(part["step"] + 1, part[column], marker, color=colour, ms=3, alpha=0.3)
            axis.plot(means.index + 1, means, color=colour, lw=1.4, label=text)
        axis.set(xlabel="step")
        axis.set_ylabel(label, fontsize=10)
        whole_steps(axis)
        axis.grid(color="0.92")
    axes[0].axhline(0, color="0.2", lw=1, ls=":")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)
