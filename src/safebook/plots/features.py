"""Figures of the feature space: the cluster distance tau and the separation of clusters."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, panels

if TYPE_CHECKING:
    import pandas as pd

    from safebook.results import Record


def _tau(record: "Record", variant: str) -> "pd.DataFrame":
    table = record.tables["tau_by_layer"]
    return table[table["variant"] == variant]


def tau_by_layer(record: "Record", variant: str = "main", reported: "pd.DataFrame | None" = None) -> Figure:
    """Mean tau of safe and unsafe prompts per layer, band one standard deviation over samples, all seeds shown.

    `reported` (columns of data/paper/pcfg/figure3_top.csv) adds the published means as crosses.
    """
    table = _tau(record, variant)
    models = in_order(table["model"])
    figure, axes = panels(len(models), sharex=True)
    for axis, model in zip(axes, models):
        for prompts, marker in (("safe", "o"), ("unsafe", "*")):
            part = table[(table["model"] == model) & (table["prompts"] == prompts)]
            for i, (_, line) in enumerate(part.groupby("seed")):
                text = f"{prompts} prompts" if i == 0 else None
                axis.plot(
                    line["layer"], line["mean"], marker=marker, color=COLOURS[prompts], label=text, ms=6, lw=1
                )
                low, high = line["mean"] - line["sd"], line["mean"] + line["sd"]
                axis.fill_between(line["layer"], low, high, color=COLOURS[prompts], alpha=0.12, lw=0)
            if reported is not None:
                point = reported[reported["model"] == model]
                axis.plot(point["layer"], point[f"{prompts}_mean"], "x", color="0.2", ms=7)
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="layer", ylabel="tau (activation units)" if axis in list(axes)[::3] else "")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8)
    return done(figure)


def separation_by_model(record: "Record") -> Figure:
    """Last-layer separation in three scales, a dot a seed; the controls last."""
    metrics = {
        "separation_index": "S (activation units, log scale)",
        "separation_scaled": "S / pooled sd",
        "nearest_mean_accuracy": "nearest-mean accuracy",
    }
    frame = record.frame()
    last = frame["layer"].max()
    models = in_order(frame["model"].dropna())
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 0.34 * len(models) + 1.2), sharey=True, layout="constrained"
    )
    for axis, (metric, label) in zip(axes, metrics.items()):
        part = frame[(frame["metric"] == metric) & (frame["layer"] == last) & (frame["variant"] == "main")]
        for y, model in enumerate(models):
            values = part[part["model"] == model]["value"]
            control = model.startswith("benign") or model == "pretrained"
            colour = COLOURS["null"] if control else COLOURS["safe"]
            axis.plot(values, [y] * len(values), "o", color=colour, ms=7, alpha=0.75)
        axis.set(xlabel=label)
        axis.grid(axis="y", color="0.92")
    if (frame[frame["metric"] == "separation_index"]["value"] > 0).all():
        axes[0].set_xscale("log")
    axes[0].set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axes[0].invert_yaxis()
    axes[2].axvline(0.5, color="0.7", lw=0.8)
    return done(figure)


def tau_histogram(record: "Record", layer: int, models: tuple[str, ...]) -> Figure:
    """Distribution of tau at one layer, safe against unsafe prompts, all seeds together; a panel a model."""
    table = record.tables["tau_histogram"]
    figure, axes = panels(len(models), height=2.3)
    for axis, model in zip(axes, models):
        for prompts, hatch in (("safe", ""), ("unsafe", "///")):
            part = table[
                (table["model"] == model) & (table["layer"] == layer) & (table["prompts"] == prompts)
            ]
            edges = np.append(part["left"].to_numpy(), part["right"].to_numpy()[-1])
            share = part["count"] / part["count"].sum()
            axis.stairs(
                share, edges, fill=True, alpha=0.55, color=COLOURS[prompts], hatch=hatch, label=prompts
            )
        axis.axvline(0, color="0.3", lw=0.8)
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="tau (activation units)", ylabel="share of prompts")
    axes[0].legend(title=f"layer {layer}", frameon=False, fontsize=8)
    return done(figure)


def cluster_spectrum(record: "Record") -> Figure:
    """Share of the largest singular value of each cluster at the last layer, a dot a seed."""
    frame = record.frame("top_singular_share")
    models = in_order(frame["model"])
    figure, axis = plt.subplots(figsize=(6.6, 0.34 * len(models) + 1.2), layout="constrained")
    for prompts, marker, shift in (("safe", "o", -0.12), ("unsafe", "*", 0.12)):
        for y, model in enumerate(models):
            part = frame[(frame["model"] == model) & (frame["prompts"] == prompts)]
            text = f"{prompts} prompts" if y == 0 else None
            axis.plot(
                part["value"],
                [y + shift] * len(part),
                marker,
                color=COLOURS[prompts],
                ms=7,
                alpha=0.8,
                label=text,
            )
    axis.set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models], xlim=(0, None))
    axis.set(xlabel="largest singular value / sum of singular values")
    axis.invert_yaxis()
    axis.grid(axis="y", color="0.92")
    axis.legend(frameon=False, loc="best")
    return done(figure)


def growth_beside_reported(record: "Record", reported: "pd.DataFrame") -> Figure:
    """How many times S grew (log10), a dot a seed, beside the published growth (a cross). Free of the models' scales.

    `reported`: data/paper/pcfg/figure3_top.csv; its last layer is set against ours.
    """
    frame = record.frame("log10_growth")
    frame = frame[frame["variant"] == "main"]
    last = reported[reported["layer"] == reported["layer"].max()].set_index("model")
    published = last["safe_mean"] - last["unsafe_mean"]
    models = in_order(frame["model"])
    figure, axis = plt.subplots(figsize=(7, 0.36 * len(models) + 1.3), layout="constrained")
    for y, model in enumerate(models):
        values = frame[frame["model"] == model]["value"]
        colour = COLOURS["null"] if model.startswith("benign") else COLOURS["safe"]
        label = "measured" if y == 0 else None
        axis.plot(values, [y] * len(values), "o", color=colour, ms=7, alpha=0.75, label=label)
        if model in published:
            growth = np.log10(published[model] / published["pretrained"])
            axis.plot(
                growth, y, "x", color=COLOURS["unsafe"], ms=8, mew=2, label="published" if y == 0 else None
            )
    axis.axvline(0, color="0.7", lw=0.8)
    axis.set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axis.set(xlabel="log10 (S / S of the instruction-tuned model), last layer")
    axis.invert_yaxis()
    axis.grid(axis="y", color="0.92")
    axis.legend(frameon=False, loc="best")
    return done(figure)
