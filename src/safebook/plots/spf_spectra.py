"""Figures of the spectra of gradients: how few directions hold them, and what that follows.

Tables of the record that are read: `ratios`, `spectra` (equal targets alone), `signal`, `matrices`.
"""

from typing import TYPE_CHECKING

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import done, legend_below, log_ticks, panels
from safebook.plots.spf import KINDS, STAGES, kinds, name, stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Width of the models that the published values are for.
PUBLISHED_WIDTH = 4096
SHARE = "CER, paper's share (fraction,\n↑ fewer directions)"


def _equal(table: pd.DataFrame) -> pd.DataFrame:
    """Equal targets alone."""
    return table[table["targets_cut"] == "equal"]


def _lines(axis: "Axes", part: pd.DataFrame, x: str, y: str) -> None:
    """A line a kind, the mean over seeds, with a mark a seed."""
    for kind in kinds(part):
        text, colour, marker = KINDS[kind]
        of = part[part["gradient"] == kind]
        means = of.groupby(x)[y].mean()
        axis.plot(means.index, means, color=colour, lw=1.4, marker=marker, ms=4, label=text)
        axis.plot(of[x], of[y], marker, color=colour, ms=4, alpha=0.7)


def _grid(record: "Record", table: pd.DataFrame, height: float):
    """Panels: a column a stage, above one sequence, below the batch; with each panel's part of the table."""
    shown, last = stages(record), table["sequences"].max()
    figure, axes = panels(2 * len(shown), len(shown), 4.0, height, sharex=True, sharey=True)
    found = []
    for axis, (number, stage) in zip(axes, ((n, s) for n in (1, last) for s in shown)):
        what = "one sequence" if number == 1 else f"{number} sequences"
        axis.set_title(f"{STAGES[stage][0]}, {what}", fontsize=10)
        axis.grid(color="0.92")
        found.append((axis, table[(table["stage"] == stage) & (table["sequences"] == number)]))
    return figure, axes, found


def curves(record: "Record", reported: pd.DataFrame) -> Figure:
    """CER against the number of directions, as a share of the width. `reported`: data/paper/spf/geometry.csv."""
    table = _equal(record.tables["ratios"])
    width = max(record.frame("width")["value"])
    table = table.assign(part=100 * table["k"] / width)
    known = reported[reported["quantity"] == "cumulative explained ratio"]
    figure, axes, found = _grid(record, table, 3.0)
    for axis, part in found:
        _lines(axis, part, "part", "ratio")
        axis.set(xscale="log", ylim=(-0.03, 1.03))
        log_ticks(axis)
        if part["stage"].iloc[0] == "aligned":
            for work, marker in (("paper", "P"), ("sister", "X")):
                of = known[known["work"] == work]
                at = 100 * of["rank"].astype(float) / PUBLISHED_WIDTH
                text = f"published: {work}" + (" paper" if work == "sister" else "")
                axis.plot(at, of["value"].astype(float), marker, color="0.1", ms=7, label=text)
    for axis in axes[len(axes) // 2 :]:
        axis.set_xlabel("directions k (% of the width, log scale)")
    for axis in axes[:: len(axes) // 2]:
        axis.set_ylabel("CER(k) (fraction,\n↑ fewer directions)", fontsize=10)
    legend_below(figure, axes[len(axes) // 2 - 1], 3, fontsize=9)
    return done(figure)


def spectra(record: "Record") -> Figure:
    """Singular values over the largest."""
    table = record.tables["spectra"]
    table = table[table["sigma"] > 1e-4]  # below is noise, and zero where there is no further direction
    figure, axes, found = _grid(record, table, 2.8)
    for axis, part in found:
        for kind in kinds(part):
            means = part[part["gradient"] == kind].groupby("index")["sigma"].mean()
            axis.plot(means.index, means, color=KINDS[kind][1], lw=1.4, label=KINDS[kind][0])
        axis.set(yscale="log")
    for axis in axes[len(axes) // 2 :]:
        axis.set_xlabel("index i of the direction")
    for axis in axes[:: len(axes) // 2]:
        axis.set_ylabel("singular value i over\nthe largest (log scale)", fontsize=10)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def _per_stage(record: "Record", x: str, label: str, lines: bool) -> Figure:
    """The ratio at the paper's share against a column of `signal`, a panel a stage."""
    table = _equal(record.tables["signal"])
    shown = stages(record)
    figure, axes = panels(len(shown), len(shown), 4.0, 3.3, sharex=True, sharey=True)
    for axis, stage in zip(axes, shown):
        part = table[table["stage"] == stage]
        if lines:
            _lines(axis, part, x, "share")
        else:
            for kind in kinds(part):
                text, colour, marker = KINDS[kind]
                one, more = (part[(part["gradient"] == kind) & found] for found in _one_or_more(part))
                axis.plot(more[x], more["share"], marker, color=colour, ms=6, alpha=0.85, label=text)
                axis.plot(one[x], one["share"], marker, color=colour, ms=6, markerfacecolor="none")
        axis.set(xscale="log", xlabel=label, ylim=(-0.03, 1.03))
        log_ticks(axis)
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.grid(color="0.92")
    axes[0].set_ylabel(SHARE, fontsize=10)
    if not lines:
        axes[0].plot([], [], "o", color="0.4", markerfacecolor="none", label="hollow: one sequence")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def _one_or_more(part: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return part["sequences"] == 1, part["sequences"] > 1


def tokens(record: "Record") -> Figure:
    """The ratio against the number of targets, a line a kind."""
    return _per_stage(record, "targets", "answer tokens in the gradient\n(count, log scale)", lines=True)


def signal(record: "Record") -> Figure:
    """The ratio against the number of targets that carry the gradient, a mark a kind, number of sequences and seed."""
    return _per_stage(record, "effective", "effective targets (count, log scale)", lines=False)


def matrices(record: "Record") -> Figure:
    """The ratio of a batch by kind and by matrix of the layer, means over seeds; a panel a stage."""
    table = _equal(record.tables["matrices"])
    table = table[table["sequences"] == table["sequences"].max()]
    shown, rows = stages(record), kinds(table)
    order = list(dict.fromkeys(table["matrix"]))
    figure, axes = panels(len(shown), len(shown), 4.4, 0.34 * len(rows) + 1.6, sharey=True)
    for axis, stage in zip(axes, shown):
        part = table[table["stage"] == stage]
        wide = part.pivot_table("ratio", "gradient", "matrix").loc[rows, order]
        last = stage == shown[-1]
        sns.heatmap(
            wide.rename(index=name), ax=axis, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f",
            annot_kws={"size": 7}, cbar=last, cbar_kws={"label": "CER, paper's share"} if last else None,
        )  # fmt: skip
        axis.set_title(STAGES[stage][0], fontsize=10)
        axis.set(xlabel="matrix", ylabel="")
        axis.tick_params(axis="x", rotation=45, labelsize=8)
        axis.tick_params(axis="y", labelsize=9)
    return done(figure)
