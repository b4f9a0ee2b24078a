"""Figures of the controls: refusal by kind of text, what survives on matched prompts, cosines between updates."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import MODELS, done, in_order, legend_below, rows

if TYPE_CHECKING:
    from safebook.results import Record

TEXTS = {  # kind of text -> marker, colour, name
    "safe": ("o", "#0173b2", "safe text"),
    "unsafe": ("*", "#d55e00", "unsafe text"),
    "unsafe_three_child": ("X", "#de8f05", "unsafe, three-child"),
    "unsafe_shifted": ("P", "#cc78bc", "unsafe, shifted"),
    "mixed": ("D", "#029e73", "mixed"),
    "full": ("s", "#949494", "full"),
}
KINDS = {
    "standard": ("o", "#d55e00"),
    "three-child text": ("X", "#de8f05"),
    "matched operators": ("s", "#0173b2"),
    "matched operators, three-child text": ("D", "#029e73"),
}


def refusal_by_text(record: "Record") -> Figure:
    """Refusals of prompts with context operators, a row a model, a mark a kind of text, a dot a seed."""
    frame = record.frame("outcome_share").query("operators == 'context' and outcome == 'null'")
    models = in_order(frame["model"])
    figure, axis = plt.subplots(figsize=(8, 0.46 * len(models) + 1.4), layout="constrained")
    for shift, (text, (marker, colour, name)) in zip(np.linspace(-0.3, 0.3, len(TEXTS)), TEXTS.items()):
        for y, model in enumerate(models):
            values = frame[(frame["model"] == model) & (frame["text"] == text)]["value"]
            label = name if y == 0 else None
            axis.plot(values, [y + shift] * len(values), marker, color=colour, ms=6, alpha=0.85, label=label)
    axis.set(xlabel="share refused (allowed on safe text, forbidden on unsafe text)", xlim=(-0.03, 1.03))
    rows(axis, models)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return done(figure)


def survival(record: "Record") -> Figure:
    """Growth of S and the row-space ratio on four kinds of prompt pairs, a dot a seed."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    labels = {"log10_growth": "log10 (S / S before)", "log2_ratio": "log2 (unsafe / safe)"}
    models: list[str] = []
    for axis, (metric, label) in zip(axes, labels.items()):
        frame = record.frame(metric)
        frame = frame[frame["units"] == "all"] if "units" in frame else frame
        models = [m for m in MODELS if m in set(frame["model"]) and m != "pretrained"]
        for shift, (kind, (marker, colour)) in zip(np.linspace(-0.24, 0.24, len(KINDS)), KINDS.items()):
            for y, model in enumerate(models):
                values = frame[(frame["model"] == model) & (frame["kind"] == kind)]["value"]
                name = kind if y == 0 else None
                axis.plot(
                    values, [y + shift] * len(values), marker, color=colour, ms=5, alpha=0.85, label=name
                )
        axis.axvline(0, color="0.5", lw=0.8)
        axis.set(xlabel=label)
        rows(axis, models)
    legend_below(figure, axes[0], 4, fontsize=9)
    return done(figure)


def cosines(record: "Record") -> Figure:
    """Cosine between the updates of every two models, mean over seeds."""
    frame = record.frame("update_cosine")
    means = frame.groupby(["first", "second"])["value"].mean()
    models = in_order([*frame["first"], *frame["second"]])
    table = np.eye(len(models))
    for (first, second), value in means.items():
        i, j = models.index(first), models.index(second)
        table[i, j] = table[j, i] = value
    names = [MODELS[m] for m in models]
    figure, axis = plt.subplots(
        figsize=(0.8 * len(models) + 2.6, 0.55 * len(models) + 2), layout="constrained"
    )
    sns.heatmap(
        table, vmin=-1, vmax=1, cmap="vlag", annot=True, fmt=".2f", annot_kws={"size": 8}, ax=axis,
        xticklabels=names, yticklabels=names, cbar_kws={"label": "cosine between updates"},
    )  # fmt: skip
    axis.tick_params(axis="x", rotation=40)
    for text in axis.get_xticklabels():
        text.set_ha("right")
    return done(figure)
