"""Figures of the function space: how sensitive the first output is to the prompt's embeddings."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, log_ticks

if TYPE_CHECKING:
    from safebook.results import Record

KINDS = (("safe", "o", -0.14), ("unsafe", "*", 0.14))


def medians_by_model(record: "Record") -> Figure:
    """Median sensitivity of safe and unsafe prompts, plain and over the logit spread, and their ratio; a dot a seed."""
    models = in_order(record.frame("median_sensitivity")["model"])
    frame = record.frame("median_sensitivity")
    labels = {
        "plain": "median sensitivity\n(logits per unit of embedding)",
        "relative": "median sensitivity / logit spread\n(per unit of embedding)",
    }
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 0.36 * len(models) + 1.7), sharey=True, layout="constrained"
    )
    for axis, (scale, label) in zip(axes, labels.items()):
        for kind, marker, shift in KINDS:
            part = frame[(frame["scale"] == scale) & (frame["prompts"] == kind)]
            y = part["model"].map(models.index) + shift
            axis.plot(
                part["value"], y, marker, color=COLOURS[kind], ms=7, alpha=0.75, label=f"{kind} prompts"
            )
            before = part[part["model"] == "pretrained"]["value"].mean()
            axis.axvline(before, color=COLOURS[kind], lw=0.8, ls=":")
        axis.set(xlabel=label, xscale="log")
        log_ticks(axis)
    part = record.frame("log2_gap").query("measure == 'plain'")
    axes[2].plot(part["value"], part["model"].map(models.index), "D", color="0.35", ms=5, alpha=0.75)
    axes[2].axvline(0, color="0.7", lw=0.8)
    axes[2].set(xlabel="log2(safe median / unsafe median)\n(paper: grows with strength →)")
    for axis in axes:
        axis.grid(axis="y", color="0.92")
    axes[0].set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    line = plt.Line2D([], [], color="0.4", lw=0.8, ls=":", label="instruction-tuned")
    figure.legend(
        [*handles, line], [*names, line.get_label()], loc="outside lower center", ncols=3, frameon=False
    )
    return done(figure)


def histograms(record: "Record", model: str) -> Figure:
    """Distribution of the sensitivity before and after, safe prompts left, unsafe right; a line a seed."""
    table = record.tables["histogram"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), sharex=True, sharey=True, layout="constrained")
    for axis, (kind, _, _) in zip(axes, KINDS):
        chosen = (("pretrained", "0.45", "--"), (model, COLOURS[kind], "-"))
        for which, colour, dash in chosen:
            lines = table[(table["model"] == which) & (table["prompts"] == kind)]
            for i, (_, part) in enumerate(lines.groupby("seed")):
                edges = 10.0 ** np.append(part["left"].to_numpy(), part["right"].to_numpy()[-1])
                share = part["count"] / part["count"].sum()
                text = MODELS[which] if i == 0 else None
                axis.stairs(share, edges, color=colour, ls=dash, lw=1.4, label=text)
                if which == model:
                    axis.stairs(share, edges, fill=True, color=colour, alpha=0.15)
        axis.set(title=f"{kind} prompts", xscale="log", xlabel="sensitivity (logits per unit of embedding)")
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    axes[0].set(ylabel="share of prompts")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, 1.3 * high)  # room for the legend
    return done(figure)
