"""Figures of the parameter space: column and row space of the update, its size and its rank."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, legend_below, panels, rows

if TYPE_CHECKING:
    from safebook.results import Record

LINES = {
    "ssft-medium": ("#de8f05", "-"),
    "dpo-medium": ("#0173b2", "-"),
    "unlearning-medium": ("#cc78bc", "-"),
    "benign-medium": ("0.25", "--"),
}


def column_profiles(record: "Record", part: float) -> Figure:
    """Sorted values of M2 after this part of the run, a panel a layer, a line a seed; band: random updates."""
    table = record.tables["profiles"]
    table = table[np.isclose(table["part"], part) & table["model"].isin(LINES)]
    layers = sorted(table["layer"].unique())
    figure, axes = panels(len(layers), columns=min(4, len(layers)), width=2.7, height=3.0, sharey=True)
    for axis, layer in zip(axes, layers):
        here = table[table["layer"] == layer]
        band = here.groupby("share").agg(low=("low", "min"), high=("high", "max"))
        axis.fill_between(band.index, band["low"], band["high"], color="0.75", lw=0, label="random updates")
        for model, (colour, dash) in LINES.items():
            for i, (_, line) in enumerate(here[here["model"] == model].groupby("seed")):
                name = MODELS[model] if i == 0 else None
                axis.plot(line["share"], line["value"], dash, color=colour, lw=1.3, label=name)
        axis.set(title=f"layer {layer}", xlabel="share of directions (sorted)", ylim=(0, 1.03))
    axes[0].set_ylabel("length outside C(W)")
    figure.suptitle(f"after {part:.0%} of the run", fontsize=11)
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def column_excess(record: "Record") -> Figure:
    """Energy outside the column space minus that of random updates, a dot a layer and seed."""
    table = record.tables["by_layer"]
    table = table[table["part"] == 1].assign(excess=table["energy"] - table["random_energy"])
    models = in_order(table["model"])
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 0.34 * len(models) + 1.6), sharey=True, layout="constrained"
    )
    shades = sns.color_palette("viridis", table["layer"].max())
    for axis, matrix in zip(axes, ("c_fc", "c_proj")):
        part = table[table["matrix"] == matrix]
        for y, model in enumerate(models):
            for layer, points in part[part["model"] == model].groupby("layer"):
                name = f"layer {layer}" if y == 0 else None
                height = [y + 0.12 * (layer - table["layer"].max() / 2 - 0.5)] * len(points)
                axis.plot(
                    points["excess"], height, "o", color=shades[layer - 1], ms=5, alpha=0.85, label=name
                )
        axis.axvline(0, color="0.5", lw=0.8)
        axis.set(title=matrix, xlabel="energy outside C(W), minus random")
    rows(axes[0], models)
    legend_below(figure, axes[0], table["layer"].max(), fontsize=9)
    return done(figure)


def column_training(record: "Record") -> Figure:
    """Median and energy share outside the column space over the run, mean over layers, a line a seed."""
    table = record.tables["by_layer"]
    table = table[(table["matrix"] == "c_fc") & table["model"].isin(LINES)]
    table = table.groupby(["model", "seed", "part"]).mean(numeric_only=True).reset_index()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, measure, label in (
        (axes[0], "median", "median length outside C(W)"),
        (axes[1], "energy", "energy share outside C(W)"),
    ):
        for model, (colour, dash) in LINES.items():
            here = table[table["model"] == model]
            for i, (_, line) in enumerate(here.groupby("seed")):
                name = MODELS[model] if i == 0 else None
                axis.plot(line["part"], line[measure], dash, marker="o", ms=3, color=colour, label=name)
            null = here.groupby("part")[f"random_{measure}"].mean()
            axis.plot(null.index, null, ":", color=colour, lw=1.2)
        axis.plot([], [], ":", color="0.4", label="dotted: its random updates")
        axis.set(xscale="log", xlabel="part of the fine-tuning run (log scale)", ylabel=label)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def minimality(record: "Record") -> Figure:
    """Cumulative energy of the update (mean over layers), and its relative length, a dot a layer and seed."""
    spectra, table = record.tables["spectra"], record.tables["by_layer"]
    table = table[(table["part"] == 1) & (table["matrix"] == "c_fc")]
    models = in_order(table["model"])
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.34 * len(models) + 1.6), layout="constrained")
    means = spectra.groupby(["model", "seed", "directions"])["energy"].mean().reset_index()
    for model, (colour, dash) in LINES.items():
        for i, (_, line) in enumerate(means[means["model"] == model].groupby("seed")):
            name = MODELS[model] if i == 0 else None
            axes[0].plot(line["directions"], line["energy"], dash, marker="o", ms=3, color=colour, label=name)
    axes[0].set(
        xscale="log", ylim=(0, 1.03), xlabel="leading directions (log scale)", ylabel="share of energy"
    )
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].legend(frameon=False, fontsize=8)
    for y, model in enumerate(models):
        values = table[table["model"] == model]["relative_norm"]
        colour = COLOURS["null"] if model.startswith("benign") else COLOURS["safe"]
        axes[1].plot(values, [y] * len(values), "o", color=colour, ms=5, alpha=0.7)
    axes[1].set(xlabel="length of the update / length of the pretrained weight")
    rows(axes[1], models)
    return done(figure)


def row_ratios(record: "Record") -> Figure:
    """log2 of unsafe over safe, a dot a layer and seed, with the range of random updates behind it."""
    table = record.tables["layers"]
    models, count = in_order(table["model"]), table["layer"].max()
    figure, axes = plt.subplots(
        1, 2, figsize=(10.5, 0.42 * len(models) + 1.6), sharey=True, layout="constrained"
    )
    shades = sns.color_palette("viridis", count)
    titles = {"projection": "leading directions", "gain": "norm of the whole update"}
    for axis, (measure, title) in zip(axes, titles.items()):
        part = table[table["measure"] == measure]
        for y, model in enumerate(models):
            for layer, points in part[part["model"] == model].groupby("layer"):
                height = y + 0.15 * (layer - count / 2 - 0.5)
                label = "random updates" if y == 0 and layer == 1 else None
                ends = points["random_low"].min(), points["random_high"].max()
                axis.plot(ends, [height] * 2, color="0.8", lw=4, solid_capstyle="butt", label=label, zorder=1)
                name = f"layer {layer}" if y == 0 else None
                axis.plot(
                    points["log2_ratio"],
                    [height] * len(points),
                    "o",
                    color=shades[layer - 1],
                    ms=5,
                    label=name,
                )
        axis.axvline(0, color="0.5", lw=0.8)
        axis.axvline(1, color="0.5", lw=0.8, ls=":")
        axis.set(title=title, xlabel="log2 (unsafe / safe)")
    rows(axes[0], models)
    legend_below(figure, axes[0], count + 1, fontsize=9)
    return done(figure)


def row_directions(record: "Record", model: str) -> Figure:
    """M3 direction by direction for one model, a panel a layer; band: one standard deviation over prompts."""
    table = record.tables["directions"]
    table = table[table["model"] == model]
    layers = sorted(table["layer"].unique())
    figure, axes = panels(len(layers), columns=min(4, len(layers)), width=2.7, height=3.0, sharey=True)
    for axis, layer in zip(axes, layers):
        for kind, marker in (("safe", "o"), ("unsafe", "*")):
            part = table[(table["layer"] == layer) & (table["prompts"] == kind)]
            for i, (_, line) in enumerate(part.groupby("seed")):
                name = f"{kind} prompts" if i == 0 else None
                axis.plot(
                    line["direction"],
                    line["mean"],
                    marker=marker,
                    ms=4,
                    lw=1,
                    color=COLOURS[kind],
                    label=name,
                )
                low, high = line["mean"] - line["sd"], line["mean"] + line["sd"]
                axis.fill_between(
                    line["direction"], low.clip(lower=0), high, color=COLOURS[kind], alpha=0.12, lw=0
                )
        axis.set(title=f"layer {layer}", xlabel="direction (leading first)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("sigma |v·a| / |a|")
    figure.suptitle(MODELS[model], fontsize=11)
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def row_training(record: "Record") -> Figure:
    """M4 over the run at the upper layers (mean): the ratio, and the strength on both kinds of prompts."""
    table = record.tables["training"]
    table = table[(table["measure"] == "gain") & (2 * (table["layer"] - 1) >= table["layer"].max())]
    table = (
        table[table["model"].isin(LINES)]
        .groupby(["model", "seed", "part"])
        .mean(numeric_only=True)
        .reset_index()
    )
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.4), layout="constrained")
    axes[1].sharey(axes[2])
    for model, (colour, dash) in LINES.items():
        for i, (_, line) in enumerate(table[table["model"] == model].groupby("seed")):
            for axis, column in zip(axes, ("log2_ratio", "safe", "unsafe")):
                name = MODELS[model] if i == 0 else None
                axis.plot(line["part"], line[column], dash, marker="o", ms=3, color=colour, label=name)
    titles = ("ratio", "on safe prompts", "on unsafe prompts")
    for axis, title, label in zip(axes, titles, ("log2 (unsafe / safe)", "|dW a| / |a| (log scale)", "")):
        axis.set(title=title, xscale="log", xlabel="part of the run (log scale)", ylabel=label)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[0].axhline(0, color="0.5", lw=0.8)
    axes[1].set_yscale("log")
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)
