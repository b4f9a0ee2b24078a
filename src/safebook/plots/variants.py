"""Figures of other ways to measure the clusters. Every seed is a dot or a thin line."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, legend_below, panels

if TYPE_CHECKING:
    from safebook.results import Record

CHANCE = 0.829  # one-sided 5 % point of Spearman's rho for a random order of six


def order_by_variant(record: "Record") -> Figure:
    """Agreement with the published order under each variant, for S and for S over its spread, a dot a seed."""
    frame = record.frame("order_agreement")
    variants = list(record.tables["variants"]["variant"].drop_duplicates())
    figure, axis = plt.subplots(figsize=(7.5, 0.42 * len(variants) + 1.8), layout="constrained")
    styles = {"S": ("safe", "o", -0.15), "S / pooled sd": ("unsafe", "s", 0.15)}
    for measure, (colour, marker, shift) in styles.items():
        for y, variant in enumerate(variants):
            values = frame[(frame["variant"] == variant) & (frame["measure"] == measure)]["value"]
            text = measure if y == 0 else None
            axis.plot(
                values, [y + shift] * len(values), marker, color=COLOURS[colour], alpha=0.75, label=text
            )
    control = frame[frame["measure"] == "activation norm"]["value"]
    axis.plot(control, [len(variants)] * len(control), "x", color=COLOURS["null"], label="control")
    axis.axvline(CHANCE, color="0.5", lw=1, ls=":", label="a random order exceeds this in 5 % of cases")
    axis.set_yticks(range(len(variants) + 1), [*variants, "length of activations"])
    low = min(0.0, frame["value"].min()) - 0.05
    axis.set(xlabel="rank correlation with the published order (1: the same order)", xlim=(low, 1.05))
    axis.invert_yaxis()
    axis.grid(axis="y", color="0.92")
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return done(figure)


def own_mean(record: "Record", variants: tuple[str, ...]) -> Figure:
    """Share of prompts nearer to the mean of their own kind, a panel a variant, a row a model, a dot a seed."""
    table = record.tables["variants"]
    models = in_order(table["model"])
    figure, axes = plt.subplots(
        1, len(variants), figsize=(11, 0.34 * len(models) + 1.2), sharey=True, layout="constrained"
    )
    for axis, variant in zip(axes, variants):
        part = table[table["variant"] == variant]
        for y, model in enumerate(models):
            values = part[part["model"] == model]["nearest_mean_accuracy"]
            axis.plot(values, [y] * len(values), "o", color=_colour(model), ms=7, alpha=0.75)
        axis.axvline(0.5, color="0.7", lw=0.8)
        axis.set_title(variant, fontsize=10)
        axis.set(xlim=(min(0.4, table["nearest_mean_accuracy"].min() - 0.03), 1.02))
        axis.set_xlabel("share nearer to own mean (↑)", fontsize=9)
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(models)), [MODELS[m] for m in models])
    axes[0].invert_yaxis()
    return done(figure)


def _colour(model: str) -> str:
    return COLOURS["null" if model.startswith("benign") or model == "pretrained" else "safe"]


def by_position(record: "Record") -> Figure:
    """Separation in units of its spread at single output positions, a panel a model, a line a seed."""
    table = record.tables["variants"]
    table = table[table["variant"].str.startswith("position ")]
    table = table.assign(position=table["variant"].str.removeprefix("position ").astype(int))
    models = in_order(table["model"])
    figure, axes = panels(len(models), columns=3, height=2.2, sharex=True, sharey=True)
    for axis, model in zip(axes, models):
        for _, line in table[table["model"] == model].groupby("seed"):
            line = line.sort_values("position")
            axis.plot(line["position"], line["scaled"], "o-", color=_colour(model), lw=1, ms=5, alpha=0.8)
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="output position (1: at >)", ylabel="S / pooled sd")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return done(figure)


def k_means(record: "Record") -> Figure:
    """Agreement of two clusters found without labels with safe and unsafe, with shuffled labels beside it."""
    frame = record.frame("k_means_agreement")
    models = in_order(frame["model"])
    distances = list(dict.fromkeys(frame["distance"]))
    figure, axes = plt.subplots(
        1, len(distances), figsize=(8.5, 0.34 * len(models) + 1.6), sharey=True, layout="constrained"
    )
    styles = {
        "true": ("o", COLOURS["safe"], "true labels"),
        "shuffled": ("x", COLOURS["null"], "shuffled labels"),
    }
    for axis, distance in zip(axes, distances):
        for kind, (marker, colour, label) in styles.items():
            for y, model in enumerate(models):
                part = frame[
                    (frame["model"] == model) & (frame["distance"] == distance) & (frame["labels"] == kind)
                ]
                text = label if y == 0 else None
                axis.plot(part["value"], [y] * len(part), marker, color=colour, ms=7, alpha=0.75, label=text)
        axis.set_title(f"{distance} K-means", fontsize=10)
        axis.set(xlabel="share put with its own kind (↑)", xlim=(0.48, 1.02))
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(models)), [MODELS[m] for m in models])
    axes[0].invert_yaxis()
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def tau_by_prompts(record: "Record") -> Figure:
    """Mean tau of each kind of prompt at the last layer, a panel a model, a dot a seed, bars one standard deviation."""
    table = record.tables["tau_by_prompts"]
    models = in_order(table["model"])
    kinds = list(table["prompts"].drop_duplicates())
    figure, axes = panels(len(models), columns=3, height=2.2, sharey=True)
    for axis, model in zip(axes, models):
        for y, kind in enumerate(kinds):
            part = table[(table["model"] == model) & (table["prompts"] == kind)]
            colour = COLOURS.get(kind, COLOURS["comply"])
            marker = {"safe": "o", "unsafe": "*"}.get(kind, "^")
            at = y + np.linspace(-0.2, 0.2, len(part)) if len(part) > 1 else [y]
            axis.errorbar(
                part["mean"], at, xerr=part["sd"], fmt=marker, color=colour, ms=6, lw=0.8, alpha=0.8
            )
        axis.axvline(0, color="0.7", lw=0.8)
        axis.set_title(MODELS[model], fontsize=10)
        axis.set_yticks(range(len(kinds)), kinds, fontsize=9)
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel("tau (activation units)\nunsafe side ←   → safe side", fontsize=9)
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    return done(figure)
