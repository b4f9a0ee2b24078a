"""Figures of the heads of a lock: where they lie, whether the choice is stable, what their directions read.

Tables of the record that are read: `heads` (a row a head, arm and seed), `accuracies`, `readings`, `locks`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.risks import pooled

if TYPE_CHECKING:
    from safebook.results import Record

ARMS = {
    "response": (COLOURS["unsafe"], "o", "response tokens"),
    "prompt": (COLOURS["safe"], "s", "last prompt token"),
}
RULES = {
    "paper": "text of the paper",
    "token split": "split by token",
    "mean score": "mean of both accuracies",
    "cut tail": "last five ids cut",
    "released": "released code: all three",
    "random directions": "random directions",
}
READINGS = {
    "answers": "refused or complied with: wording and safety",
    "wording": "the same, harmless requests: wording",
    "refusal in front": "refusal before the procedure: wording",
    "content": "forbidden or allowed, answered: safety",
    "requests": "forbidden or harmless request: safety and topic",
    "matched requests": "forbidden or allowed request: safety",
    "topic": "restricted or ordinary object, allowed: topic",
}
#: Column, prompt set, label.
RATES = (
    ("hexphi", "harm", "harmful rate, hexphi\n(share, ↓ safer)"),
    ("hexphi", "refusal", "refused, hexphi\n(share, ↑ safer)"),
    ("hexphi", "broken", "broken text, hexphi\n(share, ↓ better)"),
    ("benign", "exact", "exact answers, benign\n(share, ↑ better)"),
    ("benign", "refusal", "refused, benign\n(share, ↓ better)"),
)


def name(lock: str) -> str:
    """A lock's name on the page."""
    arm, _, rule = lock.partition(": ")
    return f"{ARMS[arm][2]}: {RULES[rule]}" if rule else "no lock"


def layers(record: "Record") -> int:
    """Layers of the model."""
    return int(record.tables["heads"]["layer"].max()) + 1


def maps(record: "Record") -> Figure:
    """Validation accuracy of every head's probe, a row an arm, a column a seed; locked heads framed."""
    table = record.tables["heads"]
    seeds = sorted(set(table["seed"]))
    shape = table["layer"].max() + 1, table["head"].max() + 1
    figure, axes = panels(2 * len(seeds), len(seeds), max(3.4, 7 / len(seeds)), 3.0)
    low = min(0.5, table["validation_accuracy"].min())
    for axis, (arm, seed) in zip(axes, ((a, s) for a in ARMS for s in seeds)):
        part = table[(table["arm"] == arm) & (table["seed"] == seed)]
        wide = part.pivot_table("validation_accuracy", "layer", "head")
        last = seed == seeds[-1]
        sns.heatmap(
            wide,
            ax=axis,
            vmin=low,
            vmax=1,
            cmap="cividis",
            cbar=last,
            cbar_kws={"label": "accuracy (share)"} if last else None,
        )
        for layer, head in part[part["locked"] == 1][["layer", "head"]].itertuples(index=False):
            axis.add_patch(
                Rectangle(
                    (head, layer), 1, 1, fill=False, ec=COLOURS["unsafe"], lw=min(3, 16 / max(shape) ** 0.9)
                )
            )
        axis.set_title(f"{ARMS[arm][2]}, seed {seed}", fontsize=10)
        axis.set(xlabel="head", ylabel="layer (0 = first)")
        axis.tick_params(labelsize=8)
    return done(figure)


def _range(axis, y, values, colour, filled=True):
    """Lowest to highest, middle half, median of five numbers."""
    lowest, first, middle, third, highest = values
    axis.hlines(y, lowest, highest, color=colour, lw=1.2)
    axis.hlines(y, first, third, color=colour, lw=5, alpha=0.5)
    axis.plot(middle, y, "o", color=colour, ms=6, markerfacecolor=colour if filled else "white")


def depth(record: "Record", released: pd.DataFrame) -> Figure:
    """Depth and sigma of the locked heads. `released`: data/paper/safetylock/locks.csv, drawn above ours."""
    known = released.pivot_table("value", "lock", "quantity", sort=False)
    known = known.loc[list(dict.fromkeys(released["lock"]))]
    table = record.tables["heads"]
    ours = table[table["locked"] == 1]
    ours = ours.assign(depth=(ours["layer"] + 0.5) / layers(record))
    rows = [*known.index, *((arm, seed) for arm in ARMS for seed in sorted(set(ours["seed"])))]
    figure, axes = panels(2, 2, 5.2, 0.27 * len(rows) + 1.2, sharey=True)
    ends = ("lowest", "first quartile", "median", "third quartile", "highest")
    for y, row in enumerate(rows):
        if isinstance(row, str):
            _range(axes[0], y, [known.loc[row, f"depth, {e}"] for e in ends], "0.45")
            low, middle, high = (known.loc[row, f"sigma, {e}"] for e in ("lowest", "median", "highest"))
            _range(axes[1], y, [low, middle, middle, middle, high], "0.45")
        else:
            part = ours[(ours["arm"] == row[0]) & (ours["seed"] == row[1])]
            for axis, column in zip(axes, ("depth", "sigma")):
                _range(axis, y, np.quantile(part[column], [0, 0.25, 0.5, 0.75, 1]), ARMS[row[0]][0])
    labels = [r if isinstance(r, str) else f"{ARMS[r[0]][2]}, seed {r[1]}" for r in rows]
    axes[0].set_yticks(range(len(rows)), labels, fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set(xlabel="depth of the head (fraction of the layers)", xlim=(0, 1))
    axes[1].set(xlabel="sigma (activation units, log scale)", xscale="log")
    for axis in axes:
        axis.axhline(len(known) - 0.5, color="0.8", lw=1)
        axis.grid(axis="x", color="0.92")
    return done(figure)


def released_nesting(agreement: pd.DataFrame) -> dict[str, float]:
    """Model -> share of the heads of its released lock of 24 that are in the one of 48 (`lock_agreement.csv`)."""
    found = {}
    for row in agreement[agreement["quantity"] == "shared heads"].itertuples():
        model, count = row.first.rsplit("-", 1)
        if row.second == f"{model}-48":
            found[model] = float(row.value) / int(count)
    return found


def overlap(record: "Record", agreement: pd.DataFrame) -> Figure:
    """Share of common heads: two splits of one model, models of two seeds, and chance (grey bars)."""
    table = record.frame("head_overlap")
    groups = [("response", "paper"), ("response", "released"), ("prompt", "paper")]
    kinds = {
        "overlap": "in the other choice",
        "nested": "in twice as many of the other",
    }
    figure, axes = panels(2, 2, 5.0, 3.0, sharey=True)
    marks = {"splits": (COLOURS["safe"], "o", "two splits"), "models": (COLOURS["unsafe"], "s", "two models")}
    for axis, (kind, label) in zip(axes, kinds.items()):
        for y, (arm, rule) in enumerate(groups):
            part = table[(table["arm"] == arm) & (table["rule"] == rule) & (table["kind"] == kind)]
            chance = part[part["between"] == "chance"]["value"].mean()
            axis.vlines(chance, y - 0.35, y + 0.35, color="0.6", lw=5, label="chance" if y == 0 else None)
            for step, (between, (colour, marker, text)) in zip((-0.12, 0.12), marks.items()):
                of = part[part["between"] == between]
                axis.plot(
                    of["value"], [y + step] * len(of), marker, color=colour, ms=7, alpha=0.8,
                    label=text if y == 0 and len(of) else None,
                )  # fmt: skip
        if kind == "nested":
            known = list(released_nesting(agreement).values())
            axis.plot(known, [1.35] * len(known), "x", color="0.1", ms=8, mew=2, label="released locks")
        axis.set(xlabel=f"share of heads {label}", xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.92")
    labels = [f"{ARMS[arm][2]},\n{RULES[rule].split(':')[0]}" for arm, rule in groups]
    axes[0].set_yticks(range(len(groups)), labels, fontsize=9)
    axes[0].set_ylim(len(groups) - 0.4, -0.6)
    legend_below(figure, axes[1], 4, fontsize=9)
    return done(figure)


def labels(record: "Record") -> Figure:
    """Validation accuracy with true and with shuffled labels, by arm and split; all heads, and the best ones."""
    table = record.tables["accuracies"]
    groups = [("response", "pair"), ("response", "token"), ("prompt", "pair")]
    figure, axes = panels(2, 2, 5.0, 2.8, sharey=True)
    columns = {"all": "mean of all heads", "best": "mean of the best, as many as locked"}
    for axis, (column, label) in zip(axes, columns.items()):
        for y, (arm, split) in enumerate(groups):
            part = table[(table["arm"] == arm) & (table["split"] == split)]
            for kind, colour, marker in (("true", COLOURS["safe"], "o"), ("shuffled", COLOURS["null"], "D")):
                of = part[part["labels"] == kind]
                text = f"{kind} labels" if y == 0 else None
                axis.plot(of[column], [y] * len(of), marker, color=colour, ms=7, alpha=0.85, label=text)
        axis.axvline(0.5, color="0.3", lw=1, ls=":")
        axis.set(xlabel=f"validation accuracy\n({label}, share)", xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.92")
    names = [f"{ARMS[arm][2]},\nsplit by {split}" for arm, split in groups]
    axes[0].set_yticks(range(len(groups)), names, fontsize=9)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def readings(record: "Record") -> Figure:
    """AUC of every contrast along either arm's directions: medians over heads, a mark a seed."""
    table = record.tables["readings"]
    names = [r for r in READINGS if r in set(table["reading"])]
    own = {"own": (COLOURS["null"], "D", "a direction of its own")}
    arms = ARMS | (own if "own" in set(table["arm"]) else {})
    figure, axes = panels(len(arms), len(arms), 3.6, 0.5 * len(names) + 1.3, sharey=True, sharex=True)
    for axis, (arm, (colour, marker, title)) in zip(axes, arms.items()):
        for y, reading in enumerate(names):
            part = table[(table["arm"] == arm) & (table["reading"] == reading)].sort_values("seed")
            chosen, every = (part[part["heads"] == which] for which in ("locked", "all"))
            steps = y + 0.13 * (np.arange(len(chosen)) - (len(chosen) - 1) / 2)
            axis.hlines(steps, chosen["low"], chosen["high"], color=colour, lw=1.5, alpha=0.6)
            axis.plot(every["auc"], steps, marker, color=colour, ms=6, markerfacecolor="white")
            axis.plot(chosen["auc"], steps, marker, color=colour, ms=6)
        axis.axvline(0.5, color="0.3", lw=1, ls=":")
        axis.axhline(3.5, color="0.8", lw=1)
        axis.set_title(title if arm == "own" else f"directions read at: {title}", fontsize=10)
        axis.set(xlabel="AUC (share of pairs in the order\nthat the lock pushes towards)", xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(names)), [READINGS[n] for n in names], fontsize=9)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return done(figure)


def locks(record: "Record") -> Figure:
    """The attacked model under every lock: a mark a seed, bars the pooled Wilson interval."""
    table = record.tables["locks"]
    names = list(dict.fromkeys(table["lock"]))
    figure, axes = panels(len(RATES), len(RATES), 2.7, 0.33 * len(names) + 1.3, sharey=True)
    for axis, (prompts, column, label) in zip(axes, RATES):
        part = table[table["prompts"] == prompts]
        for y, lock in enumerate(names):
            of = part[part["lock"] == lock]
            arm = lock.partition(": ")[0]
            shade = ARMS[arm][0] if arm in ARMS else "0.3"
            _, low, high = pooled(of, column)
            axis.hlines(y, low, high, color="0.6", lw=5, alpha=0.6)
            axis.plot(of[column], [y] * len(of), "o", color=shade, ms=6, alpha=0.85)
        axis.set(xlabel=label, xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axis.xaxis.label.set_size(9)
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(names)), [name(n) for n in names], fontsize=9)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return done(figure)
