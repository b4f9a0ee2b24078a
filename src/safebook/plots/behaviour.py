"""Figures of what the models do: learning curves and outcomes."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, legend_below, panels

if TYPE_CHECKING:
    from safebook.results import Record


def pretraining_curves(record: "Record") -> Figure:
    """Accuracy per output segment during pretraining, given the true prefix and left alone."""
    table = record.tables["curves"]
    names = ["first output", "second output", "second output, operand hidden"]
    figure, axes = panels(len(names), sharey=True)
    for axis, name in zip(axes, names):
        part = table[table["what"] == name]
        sns.lineplot(
            part, x="iteration", y="accuracy", hue="mode", style="mode", units="seed", estimator=None, ax=axis,
            legend=axis is axes[0], palette=[COLOURS["safe"], COLOURS["unsafe"]][: part["mode"].nunique()],
        )  # fmt: skip
        axis.axhline(0.98, color="0.6", lw=1, ls=":")
        axis.set(
            title=name,
            xlabel="iteration",
            ylabel="per-token accuracy (higher is better ↑)",
            ylim=(-0.02, 1.02),
        )
    axes[0].legend(title="", frameon=False, fontsize=9)
    return done(figure)


def pretraining_loss(record: "Record") -> Figure:
    """Training loss, a line a seed."""
    figure, axis = plt.subplots(figsize=(5.4, 3), layout="constrained")
    table = record.tables["loss"]
    table = table.assign(seed=table["seed"].astype(str))
    sns.lineplot(table, x="iteration", y="loss", hue="seed", ax=axis)
    axis.set(xlabel="iteration", ylabel="training loss (nats a token, lower is better ↓)", yscale="log")
    axis.legend(title="seed", frameon=False)
    return done(figure)


def fine_tuning_curves(record: "Record") -> Figure:
    """Share of safe prompts answered and of unsafe prompts refused during fine-tuning, a panel a model."""
    table = record.tables["curves"]
    models = in_order(table["model"])
    figure, axes = panels(len(models), sharey=True, sharex=True, height=2.4)
    marks = {
        "safe_answered": ("safe", "safe answered", "-"),
        "unsafe_refused": ("unsafe", "unsafe refused", "--"),
    }
    for axis, model in zip(axes, models):
        for column, (colour, label, dash) in marks.items():
            for i, (_, part) in enumerate(table[table["model"] == model].groupby("seed")):
                text = label if i == 0 else None
                axis.plot(part["iteration"], part[column], dash, color=COLOURS[colour], label=text, lw=1.5)
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="iteration", ylabel="share, exact (↑)", ylim=(-0.03, 1.03))
    axes[0].legend(frameon=False, fontsize=8)
    return done(figure)


def outcomes(record: "Record") -> Figure:
    """Comply / null / other for every model, a panel a kind of prompt; means over seeds."""
    frame = record.frame("outcome_share")
    conditions = list(dict.fromkeys(frame["condition"]))
    order = [c for c in ("safe", "unsafe", "JB-CO-Task", "JB-CO-Text", "JB-MisGen") if c in conditions]
    models = in_order(frame["model"])
    figure, axes = plt.subplots(
        1,
        len(order),
        figsize=(2.3 * len(order) + 2, 0.36 * len(models) + 1.3),
        sharey=True,
        layout="constrained",
    )
    for axis, condition in zip(axes, order):
        left = np.zeros(len(models))
        for outcome in ("comply", "null", "other"):
            part = frame[(frame["condition"] == condition) & (frame["outcome"] == outcome)]
            share = part.groupby("model")["value"].mean().reindex(models).to_numpy()
            axis.barh(
                range(len(models)), share, left=left, color=COLOURS[outcome], label=outcome, height=0.75
            )
            left += share
        axis.set(title=condition, xlabel="share of prompts", xlim=(0, 1), xticks=[0, 0.5, 1])
    axes[0].set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axes[0].invert_yaxis()
    legend_below(figure, axes[0], 3)
    return done(figure)
