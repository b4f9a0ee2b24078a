"""The book's figures: each a function of a record (or of its table), so that old numbers are drawn by today's code.

One style, a colour-blind-safe palette (safe blue, unsafe vermilion, with different markers), both axes labelled.
"""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

    from safebook.results import Record

COLOURS = {"safe": "#0173b2", "unsafe": "#d55e00", "null": "#949494", "comply": "#029e73", "other": "#ece133"}
MODELS = {
    "pretrained": "instruction-tuned",
    "ssft-small": "SSFT, small rate",
    "ssft-medium": "SSFT, medium rate",
    "dpo-small": "DPO, small rate",
    "dpo-medium": "DPO, medium rate",
    "unlearning-small": "unlearning, small rate",
    "unlearning-medium": "unlearning, medium rate",
    "benign-small": "control: benign, small rate",
    "benign-medium": "control: benign, medium rate",
}


def style() -> None:
    """One look for all figures."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 11,
            "figure.autolayout": False,
        }
    )


def _done(figure: Figure) -> Figure:
    """Hand the figure to the caller alone: the notebook's backend would otherwise display it a second time."""
    plt.close(figure)
    return figure


def _panels(count: int, columns: int = 3, width: float = 3.4, height: float = 2.7, **options):
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
        **options,
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


# ------------------------------------------------------------------ 01 the world


def sequences(rows: list[tuple[str, list[str], list[str]]], palette: dict[str, str]) -> Figure:
    """Sequences as strips of coloured cells, a token a cell; `rows` holds (title, token names, roles)."""
    longest = max(len(names) for _, names, _ in rows)
    figure, axis = plt.subplots(figsize=(0.29 * longest + 0.4, 0.95 * len(rows) + 0.6), layout="constrained")
    for y, (title, names, roles) in enumerate(rows):
        axis.text(0, y - 0.42, title, fontsize=10, va="bottom")
        for x, (name, role) in enumerate(zip(names, roles)):
            axis.add_patch(plt.Rectangle((x, y - 0.35), 0.94, 0.5, color=palette[role], alpha=0.55, lw=0))
            axis.text(x + 0.47, y - 0.1, name, ha="center", va="center", fontsize=8 if len(name) < 3 else 5)
    for role, colour in palette.items():
        axis.plot([], [], "s", color=colour, alpha=0.55, label=role)
    axis.legend(ncols=len(palette), loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=9)
    axis.set(xlim=(0, longest), ylim=(len(rows) - 0.6, -0.7))
    axis.axis("off")
    return _done(figure)


def derivation(tree: tuple) -> Figure:
    """A derivation tree; `tree` is (symbol, children), a leaf (symbol, [])."""
    nodes: list[tuple[float, int, str, bool]] = []
    links: list[tuple[tuple[float, int], tuple[float, int]]] = []

    def place(node: tuple, depth: int, first_leaf: int) -> tuple[float, int]:
        """Position of the node, and the first leaf position to its right."""
        name, children = node
        if not children:
            nodes.append((first_leaf, depth, name, True))
            return first_leaf, first_leaf + 1
        xs, after = [], first_leaf
        for child in children:
            x, after = place(child, depth + 1, after)
            xs.append(x)
        middle = sum(xs) / len(xs)
        nodes.append((middle, depth, name, False))
        links.extend(((middle, depth), (x, depth + 1)) for x in xs)
        return middle, after

    _, leaves = place(tree, 0, 0)
    figure, axis = plt.subplots(figsize=(max(6, 0.32 * leaves), 4.2), layout="constrained")
    for (x1, y1), (x2, y2) in links:
        axis.plot([x1, x2], [-y1, -y2], color="0.75", lw=1, zorder=1)
    for x, y, name, leaf in nodes:
        face = "#cfe8f7" if leaf else "white"
        box = {"boxstyle": "round,pad=0.18", "fc": face, "ec": "0.5", "lw": 0.6}
        axis.text(x, -y, name, ha="center", va="center", fontsize=8, bbox=box)
    axis.set(xlim=(-1, leaves), ylim=(-max(y for _, y, _, _ in nodes) - 0.5, 0.5))
    axis.axis("off")
    return _done(figure)


def confound(record: "Record") -> Figure:
    """How often a classifier of local n-grams calls each text type unsafe."""
    table = record.tables["ngram_classifier"]
    panels = list(dict.fromkeys(zip(table["world"], table["against"])))
    figure, axes = _panels(len(panels), columns=2, width=4.6, height=3.0, sharey=True)
    names = {"unsafe": "unsafe text", "unsafe_three_child": "three-child unsafe text"}
    for axis, (world, against) in zip(axes, panels):
        part = table[(table["world"] == world) & (table["against"] == against)]
        sns.lineplot(
            part, x="ngram", y="called_unsafe", hue="text", style="text", markers=True, dashes=False, ax=axis
        )
        axis.set(
            title=f"{world} world, trained on {names[against]}",
            xlabel="length of the n-grams (symbols)",
            ylabel="share called unsafe",
            ylim=(-0.03, 1.03),
        )
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis is not axes[-1]:
            axis.get_legend().remove()
    sns.move_legend(axes[-1], "upper left", bbox_to_anchor=(1, 1), frameon=False, title="text")
    return _done(figure)


def yields(record: "Record") -> Figure:
    """Lengths of the yields of the full-size grammars, with the range that must be seen."""
    table = record.tables["yield_lengths"]
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    y = np.arange(len(table))
    axis.hlines(y, table["shortest"], table["longest"], color=COLOURS["safe"], lw=2)
    axis.plot(table["mean"], y, "o", color=COLOURS["safe"], label="measured: mean and range")
    axis.plot(table["reference_mean"], y, "|", color=COLOURS["unsafe"], ms=14, mew=2, label="reference mean")
    axis.set(
        yticks=y, yticklabels=table["text"], xlabel="length of the yield (symbols, log scale)", xscale="log"
    )
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="lower right")
    return _done(figure)


# ------------------------------------------------------------------ 02, 03 behaviour


def pretraining_curves(record: "Record") -> Figure:
    """Accuracy per output segment during pretraining, given the true prefix and left alone."""
    table = record.tables["curves"]
    names = ["first output", "second output", "second output, operand hidden"]
    figure, axes = _panels(len(names), sharey=True)
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
    return _done(figure)


def pretraining_loss(record: "Record") -> Figure:
    """Training loss, a line a seed."""
    figure, axis = plt.subplots(figsize=(5.4, 3), layout="constrained")
    table = record.tables["loss"]
    table = table.assign(seed=table["seed"].astype(str))
    sns.lineplot(table, x="iteration", y="loss", hue="seed", ax=axis)
    axis.set(xlabel="iteration", ylabel="training loss (nats a token, lower is better ↓)", yscale="log")
    axis.legend(title="seed", frameon=False)
    return _done(figure)


def fine_tuning_curves(record: "Record") -> Figure:
    """Share of safe prompts answered and of unsafe prompts refused during fine-tuning, a panel a model."""
    table = record.tables["curves"]
    models = [m for m in MODELS if m in set(table["model"])]
    figure, axes = _panels(len(models), sharey=True, sharex=True, height=2.4)
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
    return _done(figure)


def outcomes(record: "Record") -> Figure:
    """Comply / null / other for every model, a panel a kind of prompt; means over seeds."""
    frame = record.frame("outcome_share")
    conditions = list(dict.fromkeys(frame["condition"]))
    order = [c for c in ("safe", "unsafe", "JB-CO-Task", "JB-CO-Text", "JB-MisGen") if c in conditions]
    models = [m for m in MODELS if m in set(frame["model"])]
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
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return _done(figure)


# ------------------------------------------------------------------ 04 feature space


def _tau(record: "Record", variant: str) -> "pd.DataFrame":
    table = record.tables["tau_by_layer"]
    return table[table["variant"] == variant]


def tau_by_layer(record: "Record", variant: str = "main", reported: "pd.DataFrame | None" = None) -> Figure:
    """Mean tau of safe and unsafe prompts per layer, band one standard deviation over samples, all seeds shown.

    `reported` (columns of data/paper/pcfg/figure3_top.csv) adds the published means as crosses.
    """
    table = _tau(record, variant)
    models = [m for m in MODELS if m in set(table["model"])]
    figure, axes = _panels(len(models), sharex=True)
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
    return _done(figure)


def separation_by_model(record: "Record") -> Figure:
    """Last-layer separation in three scales, a dot a seed; the controls last."""
    metrics = {
        "separation_index": "S (activation units, log scale)",
        "separation_scaled": "S / pooled sd",
        "nearest_mean_accuracy": "nearest-mean accuracy",
    }
    frame = record.frame()
    last = frame["layer"].max()
    models = [m for m in MODELS if m in set(frame["model"].dropna())]
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
    return _done(figure)


def tau_histogram(record: "Record", layer: int, models: tuple[str, ...]) -> Figure:
    """Distribution of tau at one layer, safe against unsafe prompts, all seeds together; a panel a model."""
    table = record.tables["tau_histogram"]
    figure, axes = _panels(len(models), height=2.3)
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
    return _done(figure)


def cluster_spectrum(record: "Record") -> Figure:
    """Share of the largest singular value of each cluster at the last layer, a dot a seed."""
    frame = record.frame("top_singular_share")
    models = [m for m in MODELS if m in set(frame["model"])]
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
    return _done(figure)
