"""The book's figures: each a function of a record (or of its table), so that old numbers are drawn by today's code.

One style, a colour-blind-safe palette (safe blue, unsafe vermilion, with different markers), both axes labelled.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLOURS = {"safe": "#0173b2", "unsafe": "#d55e00", "null": "#949494", "comply": "#029e73", "other": "#ece133"}
MODELS = {
    "pretrained": "instruction-tuned",
    "ssft-small": "SSFT, small rate",
    "ssft-medium": "SSFT, medium rate",
    "dpo-small": "DPO, small rate",
    "dpo-medium": "DPO, medium rate",
    "unlearning-small": "unlearning, small rate",
    "unlearning-medium": "unlearning, medium rate",
    "dpo_standard-small": "standard DPO, small rate",
    "ssft-medium-three_child": "SSFT, three-child text",
    "dpo-medium-three_child": "DPO, three-child text",
    "unlearning-medium-three_child": "unlearning, three-child text",
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


def done(figure: Figure) -> Figure:
    """Hand the figure to the caller alone: the notebook's backend would otherwise display it a second time."""
    plt.close(figure)
    return figure


def in_order(names: Iterable[str]) -> list[str]:
    """The models among these names, in the book's order."""
    found = set(names)
    return [model for model in MODELS if model in found]


def rows(axis: Axes, models: list[str]) -> None:
    """A row a model, the first on top, by its name in the book."""
    axis.set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.grid(axis="y", color="0.92")


def legend_below(figure: Figure, axis: Axes, columns: int, **options) -> None:
    """The legend of one axis, for the whole figure."""
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False, **options)


def log_ticks(axis: Axes) -> None:
    """Few plain numbers on a logarithmic x axis, also where it spans less than a decade."""
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(MaxNLocator(4) if high < 10 * low else LogLocator(subs=(1.0, 3.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def panels(count: int, columns: int = 3, width: float = 3.4, height: float = 2.7, **options):
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
