"""Figures of part 3's theory: what a projection keeps, speed, drift within its bound, steps against safety.

Tables of the record that are read: `retained`, `looks`, `steps`; scalars: `kept`, `bound`, `steps_against_safety`, `rising`.
"""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.spf_safety import SETS, set_name

if TYPE_CHECKING:
    from safebook.results import Record

#: Arm -> name in the book, colour, marker. The order of all figures.
ARMS = {
    "sft": ("plain fine-tuning (SFT)", COLOURS["unsafe"], "o"),
    "spf": ("SPF", COLOURS["safe"], "D"),
    "spf, complete": ("SPF, complete", "#56b4e9", "d"),
    "spf, update": ("SPF, update", "#cc78bc", "P"),
    "random subspace": ("random subspace, equal rank", COLOURS["null"], "^"),
    "mixing": ("loss mixing, same anchor", COLOURS["comply"], "s"),
}
#: Whose directions -> name, colour, marker.
SUBSPACES = {
    "safety": ("directions of the anchor", COLOURS["safe"], "D"),
    "random": ("random directions", COLOURS["null"], "^"),
    "utility": ("directions of one row of the set", "#ca9161", "o"),
}
OPTIMISERS = {"sgd": "SGD", "adamw 0.5": "AdamW, momentum of the paper", "adamw 0.9": "AdamW, usual momentum"}


def name(arm: str) -> str:
    """An arm's name in the book."""
    return ARMS[arm][0]


def reported(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Optimiser -> (steps whose applied update raises the anchor's loss to first order, of how many), of the replication.

    `table`: data/paper/spf/replication_steps.csv.
    """
    rows = table[table["quantity"] == "steps whose applied update raises the anchor loss to first order"]
    return {
        f"adamw {float(row.beta1):g}": (float(row.value), float(row.unit.rsplit(" ", 1)[1]))
        for row in rows.itertuples()
    }


def retained(record: "Record") -> Figure:
    """Energy kept against the rank: a panel a data set, marks are batches (hollow: no conflict), dashed the lemma."""
    table = record.tables["retained"]
    known = [d for d in (*SETS, *sorted(set(table["data"]) - set(SETS))) if d in set(table["data"])]
    figure, axes = panels(len(known), min(3, len(known)), 4.0, 3.1, sharey=True)
    subspaces = [s for s in SUBSPACES if s in set(table["subspace"])]
    for axis, data in zip(axes, known):
        part = table[table["data"] == data]
        for number, subspace in enumerate(subspaces):
            _, colour, marker = SUBSPACES[subspace]
            own = part[part["subspace"] == subspace]
            shift = 1.07 ** (number - (len(subspaces) - 1) / 2)
            for conflict, fill in ((True, {}), (False, {"mfc": "none"})):
                some = own[(own["cosine"] < 0) == conflict]
                axis.plot(
                    100 * some["share"] * shift,
                    some["retained"],
                    marker,
                    color=colour,
                    ms=4.5,
                    alpha=0.6,
                    **fill,
                )
            mean = own.groupby("share")["retained"].mean()
            axis.plot(100 * mean.index * shift, mean, color=colour, lw=1.4)
        lemma = part.groupby("share")["expected"].mean()
        axis.plot(100 * lemma.index, lemma, "k--", lw=1.2)
        axis.set(xscale="log", ylim=(-0.04, 1.06), xlabel="rank (% of a matrix's outputs, log scale)")
        axis.set_title(set_name(data), fontsize=10)
        axis.set_xticks(100 * lemma.index, [f"{100 * share:.2g}" for share in lemma.index])
        axis.minorticks_off()
    for axis in axes[:: min(3, len(known))]:
        axis.set_ylabel("energy of the gradient kept\n(share)")
    for subspace in subspaces:
        label, colour, marker = SUBSPACES[subspace]
        axes[0].plot([], [], marker, ls="-", color=colour, label=label)
    axes[0].plot([], [], "o", color="0.4", mfc="none", label="hollow: no conflict")
    axes[0].plot([], [], "k--", lw=1.2, label="the lemma")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def _arms(table: pd.DataFrame) -> list[str]:
    return [arm for arm in ARMS if arm in set(table["arm"])]


def speed(record: "Record") -> Figure:
    """Utility loss by step under SGD; a panel a data set, a line a seed; dashed plain fine-tuning, stretched."""
    table = record.tables["looks"]
    table = table[table["optimiser"] == "sgd"]
    sets = record.parameters["data"]
    figure, axes = panels(len(sets), 2, 5.2, 3.6)
    for axis, data in zip(axes, sets):
        part = table[table["data"] == data]
        kept = record.scalars("kept", data=data, arm="spf", optimiser="sgd")
        for arm in _arms(part):
            _, colour, marker = ARMS[arm]
            for seed, line in part[part["arm"] == arm].groupby("seed"):
                axis.plot(
                    line["iteration"], line["loss"], marker, ls="-", color=colour, lw=1.2, ms=4, alpha=0.8
                )
                if arm == "sft":
                    axis.plot(
                        line["iteration"] / max(kept[seed], 1e-6), line["loss"], "--", color="0.2", lw=1
                    )
        axis.set(xlabel="step (SGD)", ylabel="loss on rows of the set\n(nats a token, ↓ learned)")
        axis.set_xlim(-0.5, 1.3 * part["iteration"].max())
        axis.set_title(set_name(data), fontsize=10)
    _legend(figure, axes[0], _arms(table), ("--", "SFT, its steps over SPF's kept energy"))
    return done(figure)


def _legend(figure: Figure, axis, arms: list[str], more: tuple[str, str]) -> None:
    for arm in arms:
        axis.plot([], [], ARMS[arm][2], ls="-", color=ARMS[arm][1], label=name(arm))
    axis.plot([], [], more[0], color="0.2", lw=1.2, label=more[1])
    legend_below(figure, axis, 3, fontsize=9)


def drift(record: "Record") -> Figure:
    """Rise of the safety loss by step: a row a data set, a column an optimiser; thin: held-out; dotted: SPF's bound."""
    steps, looks, sets = record.tables["steps"], record.tables["looks"], record.parameters["data"]
    optimisers = [o for o in OPTIMISERS if o in set(steps["optimiser"])]
    figure, axes = panels(len(sets) * len(optimisers), len(optimisers), 4.3, 3.3)
    cases = [(data, optimiser) for data in sets for optimiser in optimisers]
    for axis, (data, optimiser) in zip(axes, cases):
        part, seen = (t[(t["data"] == data) & (t["optimiser"] == optimiser)] for t in (steps, looks))
        for arm in _arms(part):
            colour = ARMS[arm][1]
            for seed, line in part[part["arm"] == arm].groupby("seed"):
                axis.plot(
                    [0, *(line["step"] + 1)], [0, *line["rise"].cumsum()], color=colour, lw=1.6, alpha=0.85
                )
                held = seen[(seen["arm"] == arm) & (seen["seed"] == seed)]
                axis.plot(
                    held["iteration"], held["held"] - held["held"].iloc[0], color=colour, lw=0.7, alpha=0.8
                )
                if arm == "spf":
                    bound = line["bend"].max() / 2 * (line["length"] ** 2).cumsum()
                    axis.plot([0, *(line["step"] + 1)], [0, *bound], ":", color=colour, lw=1.6)
        axis.axhline(0, color="0.7", lw=0.8)
        if part.groupby(["arm", "seed"])["rise"].sum().abs().max() > 0.5:  # else the ticks say nothing
            axis.set_yscale("symlog", linthresh=0.1)
        axis.set(xlabel="step", ylabel="rise of the safety loss\n(nats a token, ↓ safer)")
        axis.set_title(f"{set_name(data)}\n{OPTIMISERS[optimiser]}", fontsize=9)
    _legend(figure, axes[0], _arms(steps), (":", "bound for SPF"))
    return done(figure)


def against(record: "Record", printed: dict[str, tuple[float, float]]) -> Figure:
    """Steps against safety: a row an arm and optimiser, columns data sets by two shares; crosses are the replication's."""
    sets = record.parameters["data"]
    shown = (
        ("steps_against_safety", "against safety, of the\nsteps in conflict (share, ↓)"),
        ("rising", "followed by a rise,\nof all steps (share, ↓)"),
    )
    frames = {metric: record.frame(metric) for metric, _ in shown}
    frame = frames["rising"]
    rows = [
        (optimiser, arm)
        for optimiser in OPTIMISERS
        for arm in ARMS
        if len(frame[(frame["optimiser"] == optimiser) & (frame["arm"] == arm)])
    ]
    cases = [(data, metric, label) for data in sets for metric, label in shown]
    figure, axes = panels(len(cases), len(cases), 3.0, 0.3 * len(rows) + 1.5, sharey=True)
    for axis, (data, metric, label) in zip(axes, cases):
        part = frames[metric][frames[metric]["data"] == data]
        for y, (optimiser, arm) in enumerate(rows):
            own = part[(part["optimiser"] == optimiser) & (part["arm"] == arm)]["value"]
            _, colour, marker = ARMS[arm]
            axis.plot(own, [y] * len(own), marker, color=colour, ms=5.5, alpha=0.8)
            axis.plot(own.mean(), y, "|", color="0.1", ms=12, mew=1.4)
            if arm == "spf" and optimiser in printed and metric == "steps_against_safety":
                raised, total = printed[optimiser]
                axis.plot(raised / total, y, "x", color="0.1", ms=7, mew=1.6)
        axis.set(xlim=(-0.05, 1.05))
        axis.set_xlabel(label, fontsize=9)
        axis.set_title(set_name(data), fontsize=10)
        axis.grid(axis="y", color="0.93")
    short = {"sgd": "SGD", "adamw 0.5": "AdamW .5", "adamw 0.9": "AdamW .9"}
    axes[0].set_yticks(range(len(rows)), [f"{name(arm)}, {short[o]}" for o, arm in rows], fontsize=8.5)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return done(figure)
