"""Figures of the lock by model size. Tables of the record that are read: `tested`, `dial`, `curves`."""

from typing import TYPE_CHECKING

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.lock_ablations import MEASURES, dress, measures

if TYPE_CHECKING:
    from pandas import DataFrame

    from safebook.results import Record

NAMES = {column: label for column, label, _ in MEASURES}
#: (arm, lock) -> colour, mark, line, name.
LOCKS = {
    ("none", "no lock"): (COLOURS["null"], "o", "-", "no lock"),
    ("response", "lock"): (COLOURS["unsafe"], "s", "-", "lock read at the response"),
    ("response", "random directions"): (
        COLOURS["unsafe"],
        "s",
        ":",
        "random directions, heads of the response",
    ),
    ("prompt", "lock"): (COLOURS["safe"], "D", "-", "lock read at the prompt"),
    ("prompt", "random directions"): (COLOURS["safe"], "D", ":", "random directions, heads of the prompt"),
}
MARKS = ("o", "s", "D", "^", "v")
ROWS = {"response": "read at the response", "prompt": "read at the prompt"}


def _sizes(table: "DataFrame") -> dict[str, tuple]:
    """Model -> colour and mark, from small to large."""
    names = list(dict.fromkeys(table.sort_values("heads_in_all", kind="stable")["model"]))
    shades = sns.color_palette("viridis", len(names) + 1)[: len(names)]
    return {name: (shade, MARKS[i % len(MARKS)]) for i, (name, shade) in enumerate(zip(names, shades))}


def tested(record: "Record") -> Figure:
    """Every measure by size on test requests: without a lock, under each arm's lock, under its random directions."""
    table = record.tables["tested"]
    columns, names = measures(table), list(_sizes(table))
    figure, axes = panels(len(columns), len(columns), 2.6, 3.0, sharey=True)
    for axis, (column, label, better) in zip(axes, columns):
        for i, ((arm, kind), (shade, marker, line, text)) in enumerate(LOCKS.items()):
            part = table[(table["position"] == arm) & (table["lock"] == kind)]
            mean = part.groupby("model")[column].mean().reindex(names)
            shift = 0.07 * (i - 2)  # marks of one size side by side
            at = [names.index(name) + shift for name in part["model"]]
            hollow = {"markerfacecolor": "none"} if kind == "random directions" else {}
            axis.plot([n + shift for n in range(len(names))], mean, line, color=shade, lw=1.4)
            axis.plot(at, part[column], marker, color=shade, ms=4.5, alpha=0.8, label=text, **hollow)
        axis.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.5))
        axis.set_xlabel("size (layers x heads)")
        dress(axis, label, better)
    axes[0].set_ylabel("share of answers")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def dial(record: "Record") -> Figure:
    """Harmful rate and exact harmless answers against the strength of the attack, a line a size; the chosen point ringed."""
    table = record.tables["dial"]
    columns = [m for m in MEASURES if m[0] in ("harm", "broken", "exact")]
    figure, axes = panels(len(columns), len(columns), 3.4, 3.0, sharey=True)
    for axis, (column, label, better) in zip(axes, columns):
        if column == "harm":
            axis.axhspan(0.5, 0.8, color="0.93", label="wanted")
            better = "wanted: the grey band"
        for name, (shade, marker) in _sizes(table).items():
            part = table[table["model"] == name]
            mean, chosen = part.groupby("factor")[column].mean(), part[part["used"].astype(bool)]
            axis.plot(mean.index, mean, color=shade, lw=1.4)
            axis.plot(part["factor"], part[column], marker, color=shade, ms=4.5, alpha=0.8, label=name)
            ring = {"mfc": "none", "mec": "0.1", "mew": 1.2}
            axis.plot(chosen["factor"].iloc[0], chosen[column].mean(), "o", ms=12, **ring)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(set(table["factor"])), [f"{f:g}" for f in sorted(set(table["factor"]))])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("learning rate, multiple (log scale)")
        dress(axis, label, better)
    axes[0].set_ylabel("share of answers")
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def over_shares(record: "Record", alpha: float) -> Figure:
    """All measures against the share of locked heads at one strength, a line a size, a row an arm; hollow: random heads."""
    table = record.tables["curves"]
    columns, sizes = measures(table), _sizes(table)
    figure, axes = panels(2 * len(columns), len(columns), 2.5, 2.5, sharex=True, sharey=True)
    grid, bare = table[table["alpha"] == alpha], table[table["position"] == "none"]
    for i, (arm, row) in enumerate(ROWS.items()):
        for axis, (column, label, better) in zip(axes[i * len(columns) :], columns):
            for name, (shade, marker) in sizes.items():
                axis.axhline(bare[bare["model"] == name][column].mean(), color=shade, lw=1, ls=":")
                for kind, line, fill in (("by probe", "-", shade), ("at random", "--", "none")):
                    part = grid[(grid["position"] == arm) & (grid["heads"] == kind) & (grid["model"] == name)]
                    mean = part.groupby("share")[column].mean()
                    text = name if kind == "by probe" else f"{name}, random heads"
                    how = {"color": shade, "markerfacecolor": fill, "ms": 4.5, "lw": 1.4, "label": text}
                    axis.plot(mean.index, mean, line, marker=marker, **how)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
            axis.set_xlabel("share of heads (log scale)" if i else "")
            dress(axis, label, better)
        axes[i * len(columns)].set_ylabel(f"{row}\nshare of answers")
    figure.suptitle(f"strength {alpha:g}; dotted: without a lock", fontsize=11)
    legend_below(figure, axes[0], 2 * len(sizes), fontsize=9)
    return done(figure)
