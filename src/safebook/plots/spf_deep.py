"""Figures of deep fine-tuning. Tables of the record that are read: `epochs`, `acts`, `grid`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import done, legend_below, panels
from safebook.plots.spf_safety import (
    ARMS,
    MEASURES,
    arm_name,
    asked_plainly,
    grid,
    in_order,
    measures_of,
    row,
    set_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

__all__ = [
    "acts",
    "against_loss",
    "arm_name",
    "asked_plainly",
    "at_depth",
    "at_the_end",
    "cell",
    "grid",
    "in_order",
    "over_epochs",
    "set_name",
]
#: Columns that a figure of one depth shows.
AT_DEPTH = ("harm", "refusal", "broken", "benign_exact", "task")


def cell(record: "Record", data: str, arm: str, epochs: int, column: str) -> dict[int, float]:
    """seed -> value of one row of the table `epochs`."""
    table = record.tables["epochs"]
    rows = table[(table["data"] == data) & (table["arm"] == arm) & (table["epochs"] == epochs)]
    return dict(zip(rows["seed"], rows[column]))


def _places(depths) -> dict[int, int]:
    """Depth -> place on the axis: equal steps, nought first."""
    return {depth: place for place, depth in enumerate(sorted(set(depths)))}


def _over(axis: "Axes", table: pd.DataFrame, places: dict[int, int], column: str) -> None:
    """A line an arm through the seeds' means, seeds as marks, slightly apart."""
    shown = in_order(table["arm"])
    for i, arm in enumerate(shown):
        name, shade, marker = ARMS[arm]
        part = table[table["arm"] == arm]
        x = part["epochs"].map(places) + 0.08 * (i - (len(shown) - 1) / 2)
        mean = part.groupby("epochs")[column].mean()
        where = [places[d] for d in mean.index]
        axis.plot(where, mean, "-", marker=marker, color=shade, ms=4.5, lw=1.5, label=name)
        axis.plot(x, part[column], marker, color=shade, ms=3, alpha=0.35)
    axis.set_xticks(list(places.values()), list(places))
    axis.set_xlabel("epochs (0: aligned model)")


def over_epochs(record: "Record", data: str, arms: Sequence[str]) -> Figure:
    """All measures over the depth, a line an arm."""
    table = record.tables["epochs"]
    table = table[(table["data"] == data) & table["arm"].isin(arms)]
    measures = measures_of(table)
    figure, axes = panels(len(measures), -(-len(measures) // 2), 2.9, 2.6)
    for axis, (column, label, better, trials) in zip(axes, measures):
        _over(axis, table, _places(table["epochs"]), column)
        if trials:
            axis.set_ylim(-0.05, 1.05)
        axis.set_ylabel(f"{label}\n(share, {better})" if trials else f"{label}, {better})", fontsize=9)
    figure.suptitle(f"fine-tuned on {set_name(data)}", fontsize=11)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def at_depth(record: "Record", epochs: int) -> Figure:
    """Every arm by some measures after so many epochs, a row of panels a data set; dotted the aligned model."""
    whole = record.tables["epochs"]
    sets, chosen = list(dict.fromkeys(whole["data"])), [m for m in MEASURES if m[0] in AT_DEPTH]
    heights = [0.26 * len(set(whole[whole["data"] == data]["arm"])) + 1.2 for data in sets]
    ratios, height = {"height_ratios": heights}, sum(heights) / len(sets)
    figure, axes = panels(len(sets) * len(chosen), len(chosen), 2.5, height, sharey="row", gridspec_kw=ratios)
    for index, axis in enumerate(axes):
        data, (column, label, better, trials) = sets[index // len(chosen)], chosen[index % len(chosen)]
        table = whole[whole["data"] == data]
        shown = in_order(table["arm"])
        for y, arm in enumerate(shown):
            part = table[(table["arm"] == arm) & (table["epochs"] == epochs)]
            row(axis, part, column, trials, y, *ARMS[arm][1:])
        axis.axvline(table[table["epochs"] == 0][column].mean(), color="0.4", lw=1, ls=":")
        axis.set_xlabel(f"{label}\n(share, {better})", fontsize=9)
        axis.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.93")
        if index % len(chosen) == 0:
            axis.set_title(set_name(data), fontsize=10, loc="left")
            axis.set_yticks(range(len(shown)), [arm_name(arm) for arm in shown], fontsize=9)
            axis.set_ylim(len(shown) - 0.5, -0.5)
    figure.suptitle(f"{epochs} epochs" if epochs != 1 else "1 epoch", fontsize=11)
    return done(figure)


def at_the_end(record: "Record") -> pd.DataFrame:
    """All measures at the largest depth: means over seeds, shares in percent; a row an arm, a part a data set."""
    table, found = record.tables["epochs"], []
    for data in dict.fromkeys(table["data"]):
        part = table[table["data"] == data]
        start = part[(part["epochs"] == 0) & (part["arm"] == "sft")].assign(arm="aligned")
        part = pd.concat([start, part[part["epochs"] == part["epochs"].max()]])
        columns = [m for m in measures_of(part) if m[0] != "refusal_loss"]
        mean = part.groupby("arm")[[m[0] for m in columns]].mean().loc[in_order(part["arm"])]
        mean = (100 * mean).rename(columns={m[0]: m[1] for m in columns})
        mean["task loss"] = part.groupby("arm")["loss"].mean()
        mean = mean.rename(index=arm_name)
        mean.index = pd.MultiIndex.from_product([[set_name(data)], mean.index], names=["data", "arm"])
        found.append(mean)
    return pd.concat(found).map(lambda v: "" if pd.isna(v) else f"{v:.3g}")


def against_loss(record: "Record", arms: Sequence[str]) -> Figure:
    """Refusals and harmful rate against the task's loss, along every run of these arms: a line a seed."""
    table = record.tables["epochs"]
    table = table[table["arm"].isin(arms)]
    sets, columns = list(dict.fromkeys(table["data"])), ("refusal", "harm")
    figure, axes = panels(len(sets) * len(columns), len(columns), 4.4, 3.1, sharey=True)
    named = {c: (label, better) for c, label, better, _ in MEASURES}
    for index, axis in enumerate(axes):
        data, column = sets[index // len(columns)], columns[index % len(columns)]
        for arm in in_order(table["arm"]):
            name, shade, marker = ARMS[arm]
            part = table[(table["data"] == data) & (table["arm"] == arm)]
            for i, (_, run) in enumerate(part.groupby("seed")):
                label = name if i == 0 else None
                axis.plot(
                    run["loss"],
                    run[column],
                    "-",
                    marker=marker,
                    color=shade,
                    ms=4,
                    lw=1,
                    alpha=0.8,
                    label=label,
                )
        axis.set_title(set_name(data), fontsize=10)
        axis.set(xlabel="loss on the data set's rows\n(nats a token, ← learned more)", ylim=(-0.05, 1.05))
        axis.set_ylabel(f"{named[column][0]} (share, {named[column][1]})")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def acts(record: "Record") -> Figure:
    """What SPF and the random subspace do between two tests; a line of the anchor's loss beside."""
    table = record.tables["acts"]
    sets = list(dict.fromkeys(table["data"]))
    columns = {
        "acted": "steps in which it acted\n(share)",
        "removed": "energy removed in them\n(share)",
        "anchor_loss": "loss on the anchor\n(nats a token, ↓ safer)",
    }
    figure, axes = panels(len(sets) * len(columns), len(columns), 3.4, 2.6)
    for index, axis in enumerate(axes):
        data, column = sets[index // len(columns)], list(columns)[index % len(columns)]
        part = table[table["data"] == data]
        _over(axis, part, _places(part["epochs"]), column)
        axis.set(xlabel="epochs, up to", ylim=(0, 1.08 * max(axis.get_ylim()[1], 1e-3)))
        axis.set_ylabel(columns[column], fontsize=10)
        axis.set_title(set_name(data), fontsize=10)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)
