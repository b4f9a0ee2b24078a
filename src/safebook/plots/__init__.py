"""The book's figures: each a function of a record (or of its table), so that old numbers are drawn by today's code.

One style, a colour-blind-safe palette (safe blue, unsafe vermilion, with different markers), both axes labelled.
"""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

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
