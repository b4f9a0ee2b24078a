"""Figures of the world: sequences, derivations, the n-gram confound."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, panels

if TYPE_CHECKING:
    from safebook.results import Record


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
    return done(figure)


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
    return done(figure)


def confound(record: "Record") -> Figure:
    """How often a classifier of local n-grams calls each text type unsafe."""
    table = record.tables["ngram_classifier"]
    pairs = list(dict.fromkeys(zip(table["world"], table["against"])))
    figure, axes = panels(len(pairs), columns=2, width=4.6, height=3.0, sharey=True)
    names = {"unsafe": "unsafe text", "unsafe_three_child": "three-child unsafe text"}
    for axis, (world, against) in zip(axes, pairs):
        part = table[(table["world"] == world) & (table["against"] == against)]
        sns.lineplot(
            part,
            x="ngram",
            y="called_unsafe",
            hue="text",
            style="text",
            markers=True,
            dashes=False,
            ax=axis,
            errorbar=("pi", 100),  # the range over seeds: a bootstrap would draw another band every time
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
    return done(figure)


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
    return done(figure)
