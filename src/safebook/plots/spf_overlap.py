"""Figures of the overlap of one sample's directions with a batch's, and of the energy that they hold.

Tables of the record that are read: `samples` (a row a sample), and means over samples: `ranks`, `across` (by the batch's kind),
`captured`, `matrices`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import done, legend_below, log_ticks, panels
from safebook.plots.spf import KINDS, STAGES, kinds, name, stages

if TYPE_CHECKING:
    from safebook.results import Record

#: Width of the models that the published values are for, and the sister paper's rank.
PUBLISHED_WIDTH, PUBLISHED_RANK = 4096, 20


def singles(record: "Record") -> Figure:
    """A mark a sample, a row a kind, a panel a stage, at SPF's share; the tick is chance, the bar the mean of a seed."""
    table = record.tables["samples"]
    shown, rows, seeds = stages(record), kinds(table), sorted(set(table["seed"]))
    figure, axes = panels(len(shown), len(shown), 4.0, 0.42 * len(rows) + 1.2, sharex=True, sharey=True)
    steps = np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) > 1 else [0.0]
    for axis, stage in zip(axes, shown):
        for y, kind in enumerate(rows):
            _, colour, marker = KINDS[kind]
            for step, seed in zip(steps, seeds):
                part = table[
                    (table["stage"] == stage) & (table["gradient"] == kind) & (table["seed"] == seed)
                ]
                axis.plot(part["overlap"], [y + step] * len(part), marker, color=colour, ms=4, alpha=0.45)
                axis.vlines(part["overlap"].mean(), y + step - 0.13, y + step + 0.13, color="0.1", lw=2)
            chance = table[(table["stage"] == stage) & (table["gradient"] == kind)]["chance"].mean()
            axis.vlines(chance, y - 0.35, y + 0.35, color="0.6", lw=3, label="chance" if y == 0 else None)
        axis.plot([], [], color="0.1", lw=2, label="mean of a seed")
        axis.set(
            xlabel="overlap with a batch of the same kind\n(share, 1 = same directions)", xlim=(-0.03, 1.03)
        )
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(rows)), [name(kind) for kind in rows], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def by_rank(record: "Record", reported: pd.DataFrame) -> Figure:
    """Overlap against k as a share of the width. `reported`: its rows of data/paper/spf/geometry.csv."""
    table = record.tables["ranks"]
    width = max(record.frame("width")["value"])
    table = table.assign(part=100 * table["k"] / width)
    shown = stages(record)
    figure, axes = panels(len(shown), len(shown), 4.0, 3.4, sharex=True, sharey=True)
    for axis, stage in zip(axes, shown):
        part = table[table["stage"] == stage]
        for kind in kinds(part):
            text, colour, marker = KINDS[kind]
            of = part[part["gradient"] == kind]
            means = of.groupby("part")["overlap"].mean()
            axis.plot(means.index, means, color=colour, lw=1.4, label=text)
            axis.plot(of["part"], of["overlap"], marker, color=colour, ms=4, alpha=0.7)
        chance = part.groupby("part")["chance"].mean()
        axis.plot(chance.index, chance, color="0.2", lw=1, ls=":", label="chance")
        if stage == "aligned":
            sister = reported[(reported["work"] == "sister") & (reported["model"] == "llama")]
            at = 100 * PUBLISHED_RANK / PUBLISHED_WIDTH
            ends = sister["value"].astype(float)
            axis.plot([at] * len(ends), ends, "X-", color="0.1", ms=6, label="published: sister paper, range")
            paper = reported[reported["work"] == "paper"]["value"].astype(float)
            for value in paper:
                axis.axhline(value, color="0.3", lw=1, ls="--", label="published: paper, above this")
        axis.set(xscale="log", xlabel="directions k (% of the width, log scale)", ylim=(-0.03, 1.03))
        log_ticks(axis)
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.grid(color="0.92")
    axes[0].set_ylabel("overlap (share,\n1 = same directions)", fontsize=10)
    legend_below(figure, axes[-1], 3, fontsize=9)
    return done(figure)


def _heatmaps(record: "Record", table: pd.DataFrame, column: str, columns: list[str], label: str) -> Figure:
    """Means over seeds and samples, a row a kind of sample, a panel a stage."""
    shown, rows = stages(record), kinds(table)
    figure, axes = panels(
        len(shown), len(shown), 0.45 * len(columns) + 1.6, 0.34 * len(rows) + 2.1, sharey=True
    )
    for axis, stage in zip(axes, shown):
        part = table[table["stage"] == stage]
        wide = part.pivot_table("value", "gradient", column).loc[rows, columns]
        last = stage == shown[-1]
        sns.heatmap(
            wide.rename(index=name, columns=name), ax=axis, vmin=0, vmax=1, cmap="cividis", annot=True,
            fmt=".2f", annot_kws={"size": 7}, cbar=last, cbar_kws={"label": label} if last else None,
        )  # fmt: skip
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.set(xlabel="batch" if column == "batch" else "matrix", ylabel="")
        axis.tick_params(axis="x", rotation=90, labelsize=8)
        axis.tick_params(axis="y", labelsize=9)
    axes[0].set_ylabel("single samples")
    return done(figure)


def across(record: "Record") -> Figure:
    """Overlap above chance of single samples with the batch of every kind."""
    table = record.tables["across"]
    table = table.rename(columns={"above": "value"})
    return _heatmaps(record, table, "batch", kinds(table, "batch"), "overlap above chance")


def matrices(record: "Record") -> Figure:
    """Overlap above chance with the own batch, by matrix of the layer."""
    table = record.tables["matrices"].rename(columns={"above_chance": "value"})
    order = list(dict.fromkeys(table["matrix"]))
    return _heatmaps(record, table, "matrix", order, "overlap above chance")


def captured(record: "Record") -> Figure:
    """Share of the energy of every kind's batch that single samples' directions hold: refusals, and the tasks' own."""
    table = record.tables["captured"]
    shown, rows = stages(record), kinds(table, "batch")
    figure, axes = panels(len(shown), len(shown), 4.0, 0.42 * len(rows) + 1.3, sharex=True, sharey=True)
    for axis, stage in zip(axes, shown):
        here = table[table["stage"] == stage]
        for step, kind in zip((-0.2, 0.0), ("safety", "one wording")):
            text, colour, marker = KINDS[kind]
            part = here[here["gradient"] == kind]
            at = part["batch"].map({k: i for i, k in enumerate(rows)}) + step
            axis.plot(
                part["captured"], at, marker, color=colour, ms=6, alpha=0.85, label=f"directions of: {text}"
            )
        own = here[(here["gradient"] == here["batch"]) & ~here["gradient"].isin(["safety", "one wording"])]
        at = own["batch"].map({k: i for i, k in enumerate(rows)}) + 0.2
        axis.plot(
            own["captured"],
            at,
            "|",
            color="0.3",
            ms=9,
            mew=2,
            label="directions of: a sample of the row's own kind",
        )
        chance = here["chance"].mean()
        axis.axvline(chance, color="0.6", lw=2, label="chance")
        axis.set(xlabel="energy held by one sample's directions\n(share)", xlim=(-0.03, 1.03))
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(rows)), [name(kind) for kind in rows], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_ylabel("gradient of a batch of")
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)
