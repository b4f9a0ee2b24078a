"""Figures of a lock's transfer: densities, cosines and divergences between a base model and its children, and harm under locks.

Tables of the record that are read: `cosines`, `divergences`, `curves` (densities), `rates`, and `changes` on the testbed.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, log_ticks, panels, risks
from safebook.plots.risks import pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

ARMS = {"response": "response tokens", "prompt": "last prompt token"}
NAMES = {
    "halves": "two halves of the base model's chats",
    "aligned_sft": "ancestor: before preference training",
    "pretrained": "ancestor: before alignment",
    "other seed": "aligned model of another seed",
    "aligned": "aligned",
}
SIDES = {"safe": "refusing answer, forbidden request", "unsafe": "complying answer, harmless request"}
LEVELS = ("level1_10", "level2", "level3")
#: Contrast -> colour, marker, what it is.
CONTRASTS = {
    "safety": (COLOURS["unsafe"], "o", "safety"),
    "topics": (COLOURS["safe"], "s", "topics"),
    "tasks": (COLOURS["comply"], "^", "tasks"),
    "shuffled": (COLOURS["null"], "D", "shuffled labels"),
}
#: Lock -> colour, what it is.
LOCKS = {
    "none": ("0.2", "no lock"),
    "base": (COLOURS["unsafe"], "base model's lock"),
    "own": ("#cc78bc", "own lock"),
    "other seed": (COLOURS["safe"], "lock of another seed"),
    "random directions": (COLOURS["null"], "random directions"),
}
#: Prompt set, column, label; a checkpoint's rates lack some columns.
RATES = (
    ("harmful", "harm", "harmful rate\n(share, ↓ safer)"),
    ("harmful", "refusal", "harmful requests refused\n(share, ↑ safer)"),
    ("harmful", "broken", "broken text, harmful requests\n(share, ↓ better)"),
    ("benign", "exact", "exact answers, benign\n(share, ↑ better)"),
    ("benign", "refusal", "refused, benign\n(share, ↓ better)"),
)


def name(model: str) -> str:
    """A model's name on the page."""
    return NAMES.get(model, risks.name(model))


def in_order(models) -> list[str]:
    """Children first, then ancestors, the other seed and the halves."""
    found = dict.fromkeys(models)
    last = [m for m in ("aligned_sft", "pretrained", "other seed", "halves") if m in found]
    return [*risks.in_order(m for m in found if m not in last), *last]


def three(models) -> list[str]:
    """The paper's three levels, or a checkpoint's children."""
    found = in_order(models)
    return [m for m in found if m in LEVELS] or [
        m for m in found if m not in ("halves", "other seed", "aligned")
    ]


def densities(record: "Record") -> Figure:
    """Base model filled, a child as lines, a row an arm, a column a child; safe and unsafe in their colours."""
    table = record.tables["curves"]
    children = [m for m in in_order(table["model"]) if m != "aligned"] or ["aligned"]
    figure, axes = panels(2 * len(children), len(children), 3.7, 2.6)
    for axis, (arm, child) in zip(axes, ((a, c) for a in ARMS for c in children)):
        part = table[table["arm"] == arm]
        for side, marker in (("safe", "-"), ("unsafe", "--")):
            base, own = (
                part[(part["model"] == m) & (part["class"] == side)].sort_values("at")
                for m in ("aligned", child)
            )
            colour, text = COLOURS[side], SIDES[side]
            axis.fill_between(
                base["at"], base["density"], color=colour, alpha=0.3, lw=0, label=f"{text}: base"
            )
            axis.plot(own["at"], own["density"], marker, color=colour, lw=1.6, label=f"{text}: fine-tuned")
        layer, head = part[["layer", "head"]].iloc[0]
        axis.set_title(f"{name(child)}\n{ARMS[arm]}, layer {layer}, head {head}", fontsize=9)
        axis.set(xlabel="projection (activation units)", ylabel="density (per unit)")
        axis.set_ylim(bottom=0)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def _rows(axis: "Axes", models: list[str]) -> None:
    axis.set_yticks(range(len(models)), [name(m) for m in models], fontsize=9)
    axis.set_ylim(len(models) - 0.5, -0.5)


def _by_model(
    axis: "Axes", part: pd.DataFrame, column: str, models: list[str], y: float, **look: object
) -> None:
    """A mark a seed on the rows of the models, shifted by `y`."""
    found = part[part["model"].isin(models)]
    rows = found["model"].map({m: i for i, m in enumerate(models)}) + y
    axis.plot(found[column], rows, ls="", **look)


def cosines(record: "Record", bound: float) -> Figure:
    """Median cosine of every contrast, a row a model, a column an arm; locked heads filled, all heads hollow."""
    table = record.tables["cosines"]
    models = in_order(table["model"])
    kinds = [k for k in CONTRASTS if k in set(table["contrast"])]
    figure, axes = panels(2, 2, 5.0, 0.42 * len(models) + 1.6, sharey=True)
    for axis, (arm, title) in zip(axes, ARMS.items()):
        for step, kind in zip(np.linspace(-0.27, 0.27, len(kinds)), kinds):
            colour, marker, text = CONTRASTS[kind]
            part = table[(table["arm"] == arm) & (table["contrast"] == kind)]
            look = {"marker": marker, "color": colour, "ms": 5.5, "alpha": 0.85}
            every, chosen = (part[part["heads"] == which] for which in ("all", "locked"))
            _by_model(axis, every, "cosine", models, step, **look, markerfacecolor="none")
            _by_model(axis, chosen, "cosine", models, step, **look, label=text)
        axis.axvline(bound, color="0.2", lw=1, ls=":", label="paper: above this")
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="cosine of the directions, base and child\n(median over heads)")
        axis.set_xlim(right=1.03)
        axis.grid(axis="y", color="0.92")
    axes[0].plot([], [], "o", color="0.4", markerfacecolor="none", label="hollow: all heads")
    _rows(axes[0], models)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def divergences(record: "Record") -> Figure:
    """Log10 of the relative KL, a row a model, a column an arm; lines hold the middle four fifths of the heads."""
    table = record.tables["divergences"]
    models = in_order(table["model"])
    figure, axes = panels(2, 2, 5.0, 0.34 * len(models) + 1.6, sharey=True)
    looks = {
        "safety": (COLOURS["unsafe"], "o", "along the lock"),
        "random": (COLOURS["null"], "D", "random directions"),
    }
    for axis, (arm, title) in zip(axes, ARMS.items()):
        for step, (kind, (colour, marker, text)) in zip((-0.15, 0.15), looks.items()):
            part = table[(table["arm"] == arm) & (table["direction"] == kind)]
            rows = part["model"].map({m: i for i, m in enumerate(models)}) + step
            axis.hlines(rows, part["low"], part["high"], color=colour, lw=1.2, alpha=0.4)
            axis.plot(part["ratio"], rows, marker, color=colour, ms=5.5, alpha=0.85, label=text)
        axis.axvline(0, color="0.3", lw=1, ls=":")
        axis.axvline(-1, color="0.6", lw=1, ls=":")
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="log10 of KL(base, child) over KL(classes)\n(← densities stay)")
        axis.grid(axis="y", color="0.92")
    _rows(axes[0], models)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def growth(record: "Record", bound: float) -> Figure:
    """Above: cosine of every contrast against the change of the weights, level 1. Below: harm against the cosine of safety."""
    table = record.tables["cosines"]
    table = table[(table["heads"] == "locked") & table["model"].str.fullmatch(r"level1_\d+")]
    table = table.merge(record.tables["changes"], on=["seed", "model"])
    rates = record.tables["rates"]
    harm = rates[rates["prompts"] != "benign"].set_index(["seed", "model", "arm", "lock"])["harm"]
    figure, axes = panels(4, 2, 4.8, 3.0)
    for column, (arm, title) in enumerate(ARMS.items()):
        above, below = axes[column], axes[2 + column]
        for kind, (colour, marker, text) in CONTRASTS.items():
            part = table[(table["arm"] == arm) & (table["contrast"] == kind)]
            means = part.groupby("model")[["change", "cosine"]].mean().sort_values("change")
            above.plot(means["change"], means["cosine"], color=colour, lw=1.2)
            above.plot(part["change"], part["cosine"], marker, color=colour, ms=5.5, alpha=0.85, label=text)
        above.axhline(bound, color="0.2", lw=1, ls=":", label="paper: above this")
        above.set_title(f"{title}: 10 to 10,000 harmful rows", fontsize=10)
        above.set(
            xscale="log", xlabel="change of the weights (relative, log scale)", ylabel="cosine (median)"
        )
        log_ticks(above)
        safety = table[(table["arm"] == arm) & (table["contrast"] == "safety")]
        keys = list(zip(safety["seed"], safety["model"]))
        for lock, whose in (("none", "both"), ("base", arm)):
            colour, text = LOCKS[lock]
            rates_here = [harm[s, m, whose, lock] for s, m in keys]
            marker = "o" if lock == "base" else "x"
            below.plot(safety["cosine"], rates_here, marker, color=colour, ms=6, alpha=0.85, label=text)
        below.set(xlabel="cosine of safety (median)", ylabel="harmful rate (share, ↓ safer)")
        below.set_ylim(-0.04, 1.04)
        below.locator_params(axis="x", nbins=4)
        below.legend(fontsize=8, frameon=False)
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def locks(record: "Record") -> Figure:
    """Every lock on the three levels (or on a checkpoint's children): a mark a seed, bars the pooled Wilson interval."""
    table = record.tables["rates"]
    shown = three(table["model"])
    columns = [(p, c, text) for p, c, text in RATES if c in table]
    rows = [("both", "none"), *((arm, k) for arm in ARMS for k in LOCKS if k != "none")]
    rows = [r for r in rows if ((table["arm"] == r[0]) & (table["lock"] == r[1])).any()]
    figure, axes = panels(len(shown) * len(columns), len(columns), 2.7, 0.26 * len(rows) + 1.1, sharey=True)
    places = [(model, *column) for model in shown for column in columns]
    for number, (axis, (model, prompts, column, label)) in enumerate(zip(axes, places)):
        part = table[(table["model"] == model) & ((table["prompts"] == "benign") == (prompts == "benign"))]
        for y, (arm, lock) in enumerate(rows):
            of = part[(part["arm"] == arm) & (part["lock"] == lock)]
            if len(of):
                _, low, high = pooled(of, column)
                axis.hlines(y, low, high, color="0.6", lw=5, alpha=0.6)
                axis.plot(of[column], [y] * len(of), "o", color=LOCKS[lock][0], ms=5.5, alpha=0.85)
        axis.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1], xlabel=label)
        axis.xaxis.label.set_size(9)
        axis.grid(axis="y", color="0.92")
        if number % len(columns) == 0:
            axis.set_title(name(model), fontsize=10, loc="left")
    texts = [LOCKS[lock][1] + ("" if arm == "both" else f", {ARMS[arm]}") for arm, lock in rows]
    axes[0].set_yticks(range(len(rows)), texts)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for axis in axes[:: len(columns)]:
        axis.tick_params(axis="y", labelsize=8)
    return done(figure)
