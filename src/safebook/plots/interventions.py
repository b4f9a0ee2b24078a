"""Figures of the interventions on a fine-tuning update. Every seed is a thin line or a dot."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, legend_below, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Column of the tables -> colour, marker, label.
RATES = {
    "unsafe null": (COLOURS["unsafe"], "*", "unsafe prompts refused (↑ safer)"),
    "safe comply": (COLOURS["safe"], "o", "safe prompts answered exactly (↑ skill)"),
    "jailbreaks comply": (COLOURS["comply"], "^", "jailbreaks answered (↓ safer)"),
}
DIRECTIONS = {"protocol": "update of", "benign": "benign update, size of", "random": "noise, size of"}


def _curves(axis: "Axes", table: "pd.DataFrame", x: str, rates=tuple(RATES), dash="-", suffix="", alpha=0.85):
    """A line a seed for each rate against column `x`."""
    for column in rates:
        colour, marker, label = RATES[column]
        for i, (_, line) in enumerate(table.groupby("seed")):
            line = line.sort_values(x)
            text = label + suffix if i == 0 else None
            axis.plot(
                line[x], line[column], dash, marker=marker, color=colour, lw=1, ms=5, alpha=alpha, label=text
            )


def alpha_sweep(record: "Record") -> Figure:
    """Refusal, skill and jailbreak success against the scale of the update, a panel a model."""
    table = record.tables["alpha"]
    models = in_order(table["model"])
    figure, axes = panels(len(models), columns=2, width=4.4, height=2.6, sharex=True, sharey=True)
    for axis, model in zip(axes, models):
        axis.axvline(1, color="0.6", lw=1, ls=":")
        _curves(axis, table[table["model"] == model], "alpha")
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="scale alpha of the update (1: as trained)", ylabel="share", ylim=(-0.03, 1.03))
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def outcomes_at(record: "Record", alpha: float) -> Figure:
    """Comply / null / other of every model at one scale of the update, a panel a kind of prompt, means over seeds."""
    table = record.tables["alpha"]
    table = table[np.isclose(table["alpha"], alpha)]
    models = in_order(table["model"])
    mean = table.groupby("model").mean(numeric_only=True).loc[models]
    conditions = [c.removesuffix(" comply") for c in table.columns if c.endswith(" comply")]
    conditions = [c for c in conditions if c != "jailbreaks"]
    figure, axes = plt.subplots(
        1, len(conditions), figsize=(2.1 * len(conditions) + 2, 2.4), sharey=True, layout="constrained"
    )
    for axis, condition in zip(axes, conditions):
        comply, null = mean[f"{condition} comply"].to_numpy(), mean[f"{condition} null"].to_numpy()
        left = np.zeros(len(models))
        for name, share in (("comply", comply), ("null", null), ("other", 1 - comply - null)):
            axis.barh(range(len(models)), share, left=left, color=COLOURS[name], label=name, height=0.75)
            left += share
        axis.set_title(condition, fontsize=10)
        axis.set(xlabel="share of prompts", xlim=(0, 1), xticks=[0, 0.5, 1])
    axes[0].set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axes[0].invert_yaxis()
    figure.suptitle(f"alpha = {alpha:g}", fontsize=11)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def separation_by_alpha(record: "Record") -> Figure:
    """Separation of the clusters at the last layer against the scale of the update, in two units."""
    table = record.tables["separation"]
    models = in_order(table["model"])
    colours = dict(zip(models, (COLOURS["unsafe"], COLOURS["safe"], COLOURS["comply"], COLOURS["null"])))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, (column, label) in zip(
        axes, (("S", "S (activation units)"), ("scaled", "S / pooled sd (no unit)"))
    ):
        for model, marker in zip(models, "os^x"):
            for i, (_, line) in enumerate(table[table["model"] == model].groupby("seed")):
                text = MODELS[model] if i == 0 else None
                axis.plot(
                    line["alpha"], line[column], marker=marker, color=colours[model], lw=1, ms=5, label=text
                )
        axis.axvline(1, color="0.6", lw=1, ls=":")
        axis.set(xlabel="scale alpha of the update (1: as trained)", ylabel=label)
    if (table["S"] > 0).all():
        axes[0].set(yscale="log", ylabel="S (activation units, log scale)")
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def added(record: "Record") -> Figure:
    """What adding another protocol's update does, a panel a receiving model, a row what is added, a dot a seed."""
    table = record.tables["added"]
    models = in_order(table["recipient"])
    figure, axes = plt.subplots(1, len(models), figsize=(13, 4.2), layout="constrained", sharex=True)
    for axis, model in zip(axes, models):
        part = table[table["recipient"] == model]
        keys = list(dict.fromkeys(zip(part["donor"], part["direction"], part["alpha"])))
        names = []
        for y, (donor, direction, alpha) in enumerate(keys):
            one = part[(part["donor"] == donor) & (part["direction"] == direction) & (part["alpha"] == alpha)]
            for shift, (column, (colour, marker, label)) in zip((-0.2, 0, 0.2), RATES.items()):
                text = label if y == 0 else None
                axis.plot(
                    one[column], [y + shift] * len(one), marker, color=colour, ms=6, alpha=0.8, label=text
                )
            donor_name = MODELS.get(donor, "").removesuffix(", medium rate")
            half = "half the " if alpha == 0.5 else ""
            names.append(
                "nothing" if direction == "nothing" else f"{half}{DIRECTIONS[direction]} {donor_name}"
            )
        axis.set_yticks(range(len(keys)), names, fontsize=8)
        axis.set_title(MODELS[model] + ", plus", fontsize=10)
        axis.set(xlabel="share", xlim=(-0.03, 1.03))
        axis.invert_yaxis()
        axis.grid(axis="y", color="0.92")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def linear_paths(record: "Record") -> Figure:
    """Rates along the straight path between two protocols' solutions, a panel a pair."""
    table = record.tables["paths"]
    pairs = list(dict.fromkeys(zip(table["start"], table["end"])))
    figure, axes = panels(len(pairs), columns=3, height=2.7, sharey=True)
    for axis, (start, end) in zip(axes, pairs):
        _curves(axis, table[(table["start"] == start) & (table["end"] == end)], "position")
        names = [MODELS[m].removesuffix(", medium rate") for m in (start, end)]
        axis.set_title(f"{names[0]} to {names[1]}", fontsize=10)
        axis.set(xlabel=f"share of {names[1]}'s weights", ylabel="share", ylim=(-0.03, 1.03))
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def singular_directions(record: "Record") -> Figure:
    """Rates when leading directions of the update of W_fc are removed (top) or kept alone (bottom), with random ones."""
    table = record.tables["directions"]
    models = in_order(table["model"])
    counts = sorted(table["count"].unique())
    table = table.assign(x=table["count"].map(counts.index))
    figure, axes = plt.subplots(
        2, len(models), figsize=(3.6 * len(models), 5), sharex=True, sharey=True, layout="constrained"
    )
    shown = ("unsafe null", "safe comply")
    for row, what in enumerate(("removed", "kept")):
        for axis, model in zip(axes[row], models):
            part = table[(table["model"] == model) & (table["what"] == what)]
            _curves(axis, part[part["choice"] == "leading"], "x", shown)
            _curves(axis, part[part["choice"] == "random"], "x", shown, ":", ", random directions", 0.5)
            axis.set_title(f"{MODELS[model]}", fontsize=10)
            axis.set(
                xlabel=f"directions {what}, each layer", ylabel="share", ylim=(-0.03, 1.03),
                xticks=range(len(counts)), xticklabels=[*map(str, counts[:-1]), "all"],
            )  # fmt: skip
            axis.tick_params(labelbottom=True)
    legend_below(figure, axes[0, 0], 2, fontsize=9)
    return done(figure)


def patching(record: "Record") -> Figure:
    """Rates of the pretrained model with part of its hidden units taken from the fine-tuned one."""
    table = record.tables["patching"]
    models = in_order(table["model"])
    figure, axes = panels(len(models), columns=3, width=3.8, sharey=True)
    shown = ("unsafe null", "safe comply")
    for axis, model in zip(axes, models):
        part = table[table["model"] == model]
        _curves(axis, part[part["order"] == "angle"], "fraction", shown)
        _curves(axis, part[part["order"] == "random"], "fraction", shown, ":", ", random order", 0.5)
        axis.set_title(f"units of {MODELS[model]}", fontsize=10)
        axis.set(xlabel="share of units patched, each layer", ylabel="share", ylim=(-0.03, 1.03))
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)
