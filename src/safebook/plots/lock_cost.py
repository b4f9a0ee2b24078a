"""Figures of what a lock costs: seconds of every step, training to the same harm, what is left, tokens a second.

Scalars of the record that are read: `seconds`, `reached`, `target`, `unlocked`; tables: `training`, `methods`, `decoding`.
"""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, log_ticks, panels

if TYPE_CHECKING:
    from safebook.results import Record

ARMS = {"response": COLOURS["unsafe"], "prompt": COLOURS["safe"]}
METHODS = {
    "none": "no defence",
    "lock, response": "lock (response)",
    "lock, prompt": "lock (prompt)",
    "random directions, response": "random (response)",
    "random directions, prompt": "random (prompt)",
    "safety SFT": "safety SFT",
    "DPO": "DPO",
    "editing": "editing of one matrix",
    "harm vector": "harm vector subtracted",
}
SHADES = {
    "none": COLOURS["null"],
    "lock, response": COLOURS["unsafe"],
    "lock, prompt": COLOURS["safe"],
    "random directions, response": COLOURS["unsafe"],
    "random directions, prompt": COLOURS["safe"],
}
REPAIRS = ("safety SFT", "DPO", "editing", "harm vector")
VERSIONS = {"bias": "lock in the bias", "hook": "lock by hooks", "none again": "unlocked, again"}
#: Column, label.
MEASURES = (
    ("harm", "harmful rate\n(share, ↓ safer)"),
    ("attack_success", "ASR\n(share, ↓ safer)"),
    ("harmful_broken", "broken, harmful requests\n(share, ↓ better)"),
    ("exact", "exact answers, benign\n(share, ↑ better)"),
    ("benign_refusal", "refusals, benign\n(share, ↓ better)"),
    ("borderline_refusal", "refusals, borderline\n(share, ↓ better)"),
)


def name(method: str) -> str:
    """A method's name in the book."""
    return METHODS.get(method, method)


def stated(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Step -> lowest and highest number of seconds that the paper states for it.

    `table`: data/paper/safetylock/stated.csv.
    """
    steps = {"time to lock one fine-tuned model": "distribute", "time to extract a lock": "extract"}
    found = {}
    for quantity, step in steps.items():
        rows = table[table["quantity"] == quantity]
        values = [float(row.value) * (60 if row.unit == "min" else 1) for row in rows.itertuples()]
        found[step] = (min(values), max(values))
    return found


def times(record: "Record", printed: dict[str, tuple[float, float]]) -> Figure:
    """Seconds of every step on a logarithmic axis: a row a step, dots are seeds, bands what the paper states."""
    frame = record.frame("seconds")
    rows = [
        (step, {"step": step}) for step in ("load model", "extract", "distribute, cold", "distribute, warm")
    ]
    methods = [m for m in REPAIRS if "method" in frame and m in set(frame["method"])]
    rows += [(f"{name(m)}, as safe as the lock", {"step": "repair", "method": m}) for m in methods]
    figure, (axis,) = panels(1, 1, 9.0, 0.42 * len(rows) + 1.6)
    missing = frame_of(record, "reached") if methods else None
    for y, (_, labels) in enumerate(rows):
        part = frame[(frame[list(labels)] == pd.Series(labels)).all(axis=1)]
        for shift, (arm, shade) in zip((-0.15, 0.15), ARMS.items()):
            own = part[part["arm"] == arm]
            for row in own.itertuples():
                given_up = "method" in labels and not missing[labels["method"], arm, row.seed]
                fill = {"markerfacecolor": "none"} if given_up else {}
                axis.plot(row.value, y + shift, "o", color=shade, ms=6.5, alpha=0.85, **fill)
        step = labels["step"].split(",")[0]
        if step in printed:
            low, high = printed[step]
            axis.plot([low, high], [y, y], color="0.55", lw=7, alpha=0.35, solid_capstyle="butt", zorder=0)
    for arm, shade in ARMS.items():
        axis.plot([], [], "o", color=shade, label=f"lock read at the {arm}")
    axis.plot([], [], color="0.55", lw=7, alpha=0.35, label="the paper, on larger models")
    if methods:
        axis.plot([], [], "o", color="0.4", markerfacecolor="none", label="hollow: given up before")
    axis.set(xscale="log", xlabel="seconds (log scale, ← faster)", ylabel="step")
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", color="0.92")
    legend_below(figure, axis, 2, fontsize=9)
    return done(figure)


def frame_of(record: "Record", metric: str) -> dict[tuple[str, str, int], float]:
    """(method, arm, seed) -> value."""
    frame = record.frame(metric)
    return {(row.method, row.arm, row.seed): row.value for row in frame.itertuples()}


def training(record: "Record") -> Figure:
    """Validation: harmful rate against seconds; a panel a method, a line a seed, dashed lines are the locks' rates."""
    table, target, before = record.tables["training"], record.frame("target"), record.scalars("unlocked")
    figure, axes = panels(len(REPAIRS), 2, 4.6, 3.1, sharey=True)
    for axis, method in zip(axes, REPAIRS):
        part = table[table["method"] == method]
        for seed, line in part.groupby("seed"):
            axis.plot(line["seconds"], line["harm"], "o-", color="0.3", lw=1.2, ms=4.5, alpha=0.8)
            axis.plot(line["seconds"].min(), before[seed], "x", color="0.3", ms=7, mew=1.6)
        for arm, shade in ARMS.items():
            for value in target[target["arm"] == arm]["value"]:
                axis.axhline(value, color=shade, lw=1.2, ls="--", alpha=0.8)
        axis.set(xscale="log", ylim=(-0.04, 1.04), xlabel="seconds (log scale)")
        log_ticks(axis)
        axis.set_ylabel("harmful rate, validation\n(share, ↓ safer)")
        axis.set_title(name(method), fontsize=10)
    axes[0].plot([], [], "o-", color="0.3", ms=4.5, label="a seed")
    axes[0].plot([], [], "x", color="0.3", mew=1.6, ls="", label="before")
    for arm, shade in ARMS.items():
        axes[0].plot([], [], color=shade, ls="--", label=f"lock read at the {arm}")
    legend_below(figure, axes[0], 4, fontsize=9)
    return done(figure)


def methods(record: "Record") -> Figure:
    """The model after each method, on test requests: a row a method, a panel a measure, dots are seeds."""
    table = record.tables["methods"]
    shown = [m for m in MEASURES if m[0] in table]
    known = [m for m in METHODS if m in set(table["method"])]
    figure, axes = panels(len(shown), min(3, len(shown)), 3.8, 0.34 * len(known) + 1.2, sharey=True)
    for axis, (column, label) in zip(axes, shown):
        for y, method in enumerate(known):
            part = table[table["method"] == method]
            shade = SHADES.get(method, COLOURS["comply"])
            fill = {"markerfacecolor": "none"} if method.startswith("random") else {}
            axis.plot(part[column], [y] * len(part), "o", color=shade, ms=6, alpha=0.85, **fill)
            axis.plot(part[column].mean(), y, "|", color="0.1", ms=13, mew=1.5)
        axis.set(xlabel=label, xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(known)), [name(m) for m in known])
    axes[0].set_ylim(len(known) - 0.5, -0.5)
    for axis in axes[:: min(3, len(shown))]:
        axis.set_ylabel("method")
    return done(figure)


def decoding(record: "Record") -> Figure:
    """Slowdown of each round against the unlocked model; a panel an arm, a colour a seed's median."""
    table = record.tables["decoding"]
    wide = table.pivot_table("tokens_per_second", ["arm", "seed", "round"], "version").reset_index()
    figure, axes = panels(len(ARMS), 2, 4.6, 3.3, sharey=True)
    for axis, (arm, shade) in zip(axes, ARMS.items()):
        part = wide[wide["arm"] == arm]
        for x, version in enumerate(VERSIONS):
            slower = 100 * (part["none"] / part[version] - 1)
            for number, (_, own) in enumerate(slower.groupby(part["seed"])):
                at = x + 0.14 * (number - (part["seed"].nunique() - 1) / 2)
                axis.plot([at] * len(own), own, "o", color=shade, ms=4, alpha=0.5)
                axis.plot(at, own.median(), "_", color="0.1", ms=14, mew=2)
        axis.axhline(0, color="0.6", lw=1, ls=":")
        axis.set_xticks(range(len(VERSIONS)), VERSIONS.values(), fontsize=9)
        axis.set(
            xlabel="version",
            ylabel="slowdown (%, ↓ faster)",
            title=f"lock read at the {arm}",
            xlim=(-0.5, 2.5),
        )
    return done(figure)
