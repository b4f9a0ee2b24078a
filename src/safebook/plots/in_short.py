"""The figure of a part on the page "In short": one measure of one record, a row a model, method or control."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below

if TYPE_CHECKING:
    from safebook.book_figures import Picture
    from safebook.results import Record


def rows(record: "Record", picture: "Picture") -> Figure:
    """A mark a seed and their mean; controls hollow, dotted what the values are held against.

    Raises InputError for a row that the record does not have.
    """
    shown = picture.rows
    figure, axis = plt.subplots(figsize=(7.2, 0.34 * len(shown) + 1.3), layout="constrained")
    for y, row in enumerate(shown):
        values = list(record.scalars(picture.metric, **row.of).values())
        face = "white" if row.control else COLOURS["safe"]
        edge = COLOURS["null"] if row.control else COLOURS["safe"]
        axis.plot(values, [y] * len(values), "o", mfc=face, mec=edge, ms=7, mew=1.6)
        axis.plot([sum(values) / len(values)], [y], "|", color="0.1", ms=15, mew=2)
    axis.axvline(picture.none, color="0.5", ls=":", lw=1.2)
    axis.set(xlabel=picture.axis, yticks=range(len(shown)), yticklabels=[row.name for row in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.grid(axis="y", color="0.92")
    axis.plot([], [], "o", color=COLOURS["safe"], label="a seed")
    if any(row.control for row in shown):
        axis.plot([], [], "o", mfc="white", mec=COLOURS["null"], mew=1.6, label="a seed, control")
    axis.plot([], [], "|", color="0.1", ms=12, mew=2, label="mean")
    axis.plot([], [], ":", color="0.5", label=picture.none_is)
    legend_below(figure, axis, 4, fontsize=9)
    return done(figure)
