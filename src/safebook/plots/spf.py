"""Names, colours and marks that the figures on gradients share: kinds of rows, stages of a model, anchors."""

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from safebook.plots import COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Kind of row -> name, colour, mark. Safety is blue, as elsewhere; what is harmful vermilion.
KINDS = {
    "safety": ("refusals, varied wording", COLOURS["safe"], "o"),
    "one wording": ("refusals, one wording", "#56b4e9", "s"),
    "sums": ("sums (taught before)", COLOURS["comply"], "^"),
    "lookup": ("lookup (taught before)", "0.15", "v"),
    "sorting": ("sorting (new)", "#de8f05", "<"),
    "rewriting": ("rewriting (new)", "#cc78bc", ">"),
    "benign": ("harmless requests, answered", COLOURS["null"], "D"),
    "compliance": ("forbidden requests, answered", COLOURS["unsafe"], "X"),
}
#: Stage -> name, mark.
STAGES = {
    "random": ("random initialisation", "x"),
    "pretrained": ("before alignment", "D"),
    "aligned": ("aligned", "o"),
}
#: Kind of anchor -> name, colour, mark.
ANCHORS = {
    "refusal": ("forbidden request, refused", COLOURS["safe"], "o"),
    "fixed reply": ("harmless request, fixed reply", COLOURS["null"], "s"),
    "right answer": ("harmless request, right answer", COLOURS["comply"], "^"),
    "misplaced refusal": ("harmless request, refused", "#cc78bc", "D"),
}


def whole_steps(axis: "Axes") -> None:
    """No ticks between two steps of training."""
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def name(kind: str) -> str:
    """A kind's name on the page."""
    return KINDS[kind][0] if kind in KINDS else kind


def first_up(text: str) -> str:
    """A name at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def stages(record: "Record") -> list[str]:
    """The record's stages, in the order in which a model goes through them."""
    found = {str(stage) for stage in record.frame("width")["stage"]}
    return [stage for stage in STAGES if stage in found]


def kinds(table: "pd.DataFrame", column: str = "gradient") -> list[str]:
    """The kinds of rows in a table, in the book's order."""
    found = set(table[column])
    return [kind for kind in KINDS if kind in found]
