"""Figures of the shared geometry. Tables of the record that are read: `pairs` (at the claims' rank), `ranks`, `layers`."""

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safebook.plots import COLOURS, done, legend_below, panels

if TYPE_CHECKING:
    from safebook.results import Record

Pair = tuple[str, str, str]  # view, first kind, second kind
NAMES = {
    "gradient": "gradient",
    "update": "update ΔW",
    "direction": "refusal direction",
    "lock, response": "lock, response",
    "lock, prompt": "lock, prompt",
}
VIEWS = {"written": "written to the stream", "read": "read by the MLP", "heads": "among the heads' outputs"}
SPACES = {
    "attention": "stream, as the attention writes it",
    "mlp": "stream, as the MLP writes it",
    "read": "normed stream, as the MLP reads it",
    "heads": "heads' outputs, as the attention's last matrix reads them",
}
#: Group of pairs -> name, colour, marker.
GROUPS = {
    "safety": ("both of safety", COLOURS["safe"], "o"),
    "swapped": ("one of another skill: the null that decides", "#de8f05", "|"),
    "other skills": ("both of other skills", "0.6", "|"),
}


def pair_name(first: str, second: str) -> str:
    return f"{NAMES[first]} and {NAMES[second]}"


def pairs(record: "Record") -> list[Pair]:
    """The pairs of safety objects that the record has, in the book's order."""
    frame = record.frame("above_chance")
    found = set(zip(frame["view"], frame["first"], frame["second"]))
    kinds = list(NAMES)
    return sorted(
        found, key=lambda p: (list(VIEWS).index(p[0]), kinds.index(str(p[1])), kinds.index(str(p[2])))
    )


def series(record: "Record", view: str, first: str, second: str) -> dict[str, dict[int, float]]:
    """Group ("safety", "swapped", "other skills", "random") -> seed -> overlap above chance; without those that are not there."""
    frame = record.frame("above_chance")
    part = frame[(frame["view"] == view) & (frame["first"] == first) & (frame["second"] == second)]
    return {of: dict(zip(rows["seed"], rows["value"])) for of, rows in part.groupby("of", sort=False)}


def _group(table) -> np.ndarray:
    safe = (table["first_skill"] == "safety").astype(int) + (table["second_skill"] == "safety").astype(int)
    return safe.map({2: "safety", 1: "swapped", 0: "other skills"}).to_numpy()


def overlap(record: "Record") -> Figure:
    """Every pair of objects, safety and others: a row a pair of kinds, a panel a view, marks are seeds."""
    table = record.tables["pairs"]
    table = table.assign(group=_group(table))
    found = pairs(record)
    views = [view for view in VIEWS if any(p[0] == view for p in found)]
    rows = list(dict.fromkeys((first, second) for _, first, second in found))
    rows.sort(key=lambda p: tuple(list(NAMES).index(x) for x in p))
    figure, axes = panels(len(views), len(views), 3.9, 0.46 * len(rows) + 1.5, sharey=True)
    shifts = {"safety": -0.2, "swapped": 0.05, "other skills": 0.28}
    for axis, view in zip(axes, views):
        for y, (first, second) in enumerate(rows):
            part = table[(table["view"] == view) & (table["first"] == first) & (table["second"] == second)]
            for group, (_, colour, marker) in GROUPS.items():
                dots = part[part["group"] == group]["above"]
                size = {"ms": 6, "alpha": 0.8} if marker == "o" else {"ms": 8, "mew": 1.6, "alpha": 0.7}
                axis.plot(dots, [y + shifts[group]] * len(dots), marker, color=colour, **size)
            if (view, first, second) in found:
                random = list(series(record, view, first, second)["random"].values())
                axis.vlines(max(random), y - 0.42, y + 0.42, color="0.25", lw=1.2, ls=":")
        axis.axvline(0, color="0.7", lw=0.8)
        axis.set_title(VIEWS[view], fontsize=10)
        axis.set_xlabel("overlap above chance (share, → alike)", fontsize=9)
        axis.grid(axis="y", color="0.93")
    for name, colour, marker in GROUPS.values():
        axes[0].plot([], [], marker, color=colour, label=name, mew=1.6)
    axes[0].plot([], [], ":", color="0.25", label="random subspaces stay left of this")
    axes[0].set_yticks(range(len(rows)), [pair_name(*row) for row in rows], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_ylabel("pair of objects", fontsize=9)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def excess(record: "Record") -> Figure:
    """Safety pair minus its highest swapped pair, mean over seeds; empty where the two do not meet or there is no control."""
    found = pairs(record)
    views = [view for view in VIEWS if any(p[0] == view for p in found)]
    kinds = list(NAMES)
    grids = {view: np.full((len(kinds), len(kinds)), np.nan) for view in views}
    for view, first, second in found:
        values = series(record, view, first, second)
        if "swapped" in values:
            mean = np.mean([values["safety"][s] - values["swapped"][s] for s in values["safety"]])
            i, j = kinds.index(first), kinds.index(second)
            grids[view][i, j] = grids[view][j, i] = mean
    most = max([0.05, *(np.nanmax(np.abs(g)) for g in grids.values() if np.isfinite(g).any())])
    figure, axes = panels(len(views), len(views), 3.7, 3.4, sharey=True)
    for axis, view in zip(axes, views):
        last = view == views[-1]
        names = [NAMES[kind] for kind in kinds]
        sns.heatmap(
            grids[view], ax=axis, vmin=-most, vmax=most, cmap="RdBu", center=0, annot=True, fmt=".2f",
            annot_kws={"size": 8}, xticklabels=names, yticklabels=names, square=True, cbar=last,
            cbar_kws={"label": "safety pair minus best rival\n(↑ shared by safety alone)", "shrink": 0.8} if last else None,
        )  # fmt: skip
        axis.set_title(VIEWS[view], fontsize=10)
        axis.set_facecolor("0.93")
        if last:
            axis.collections[0].colorbar.ax.yaxis.label.set_size(8)
        axis.set_xlabel("object", fontsize=9)
        axis.tick_params(axis="x", rotation=90, labelsize=8)
        axis.tick_params(axis="y", rotation=0, labelsize=8)
    axes[0].set_ylabel("object", fontsize=9)
    return done(figure)


def by_rank(record: "Record", view: str) -> Figure:
    """Overlap above chance against k, a panel a pair: the safety pair, the highest swapped one, the highest of other skills."""
    table, width = record.tables["ranks"], max(record.frame("width")["value"])
    table = table[table["view"] == view]
    shown = [(first, second) for v, first, second in pairs(record) if v == view]
    figure, axes = panels(len(shown), min(3, len(shown)), 2.7, 2.2, sharex=True, sharey=True)
    for axis, (first, second) in zip(axes, shown):
        part = table[(table["first"] == first) & (table["second"] == second)]
        for group, (name, colour, _) in GROUPS.items():
            of = part[part["of"] == group]
            mean = of.groupby("k")["above"].mean()
            axis.plot(mean.index, mean, color=colour, lw=1.5, label=name)
            axis.plot(of["k"], of["above"], "o", color=colour, ms=3, alpha=0.6)
        axis.axhline(0, color="0.7", lw=0.8)
        axis.axvline(record.parameters["rank"], color="0.8", lw=0.8, ls=":")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_title(pair_name(first, second).replace(" and ", "\nand "), fontsize=8)
        axis.set_xlabel(f"directions k (width {width:g})", fontsize=8)
        axis.set_ylabel("above chance (↑ alike)", fontsize=8)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def angles(record: "Record", space: str) -> Figure:
    """Smallest principal angle of the safety pairs against the layer, with random subspaces of the same dimensions and the
    nearest swapped pair of each layer."""
    table, rivals = record.tables["layers"], record.tables["depth"]
    table = table[table["space"] == space]
    rivals = rivals[(rivals["space"] == space) & (rivals["k"] == record.parameters["rank"])]
    kinds = list(NAMES)
    shown = sorted(
        set(zip(table["first"], table["second"])), key=lambda p: (kinds.index(p[0]), kinds.index(p[1]))
    )
    figure, axes = panels(len(shown), min(3, len(shown)), 2.7, 2.2, sharex=True, sharey=True)
    for axis, (first, second) in zip(axes, shown):
        part = table[(table["first"] == first) & (table["second"] == second)]
        random = part.groupby("layer")[["random_low", "random"]].mean()
        axis.fill_between(random.index, random["random_low"], 90, color="0.88", lw=0, label="random, 97.5 %")
        axis.plot(random.index, random["random"], color="0.5", lw=1, label="random, median")
        nearest = rivals[(rivals["first"] == first) & (rivals["second"] == second)]
        style = {"color": GROUPS["swapped"][1], "ms": 8, "mew": 1.6, "alpha": 0.8}
        axis.plot(nearest["layer"], nearest["rival_angle"], "_", label="nearest with another skill", **style)
        axis.plot(
            part["layer"], part["angle"], "o", color=COLOURS["safe"], ms=4, alpha=0.8, label="both of safety"
        )
        axis.set_title(pair_name(first, second).replace(" and ", "\nand "), fontsize=8)
        axis.set(ylim=(0, 92), yticks=[0, 45, 90])
        axis.set_xlabel("layer", fontsize=8)
        axis.set_ylabel("smallest angle (°, ↓ alike)", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def in_depth(record: "Record", space: str) -> Figure:
    """Safety pair minus the highest swapped pair of the same layer and k, mean over seeds; a dot where all seeds have that sign."""
    table = record.tables["depth"].assign(excess=lambda t: t["above"] - t["rival"])
    table = table[table["space"] == space]
    kinds, layers = list(NAMES), sorted(table["layer"].unique())
    ranks = sorted(table["k"].unique())
    shown = sorted(
        set(zip(table["first"], table["second"])), key=lambda p: (kinds.index(p[0]), kinds.index(p[1]))
    )
    most = max(0.05, float(table.groupby(["first", "second", "layer", "k"])["excess"].mean().abs().max()))
    figure, axes = panels(len(shown), min(3, len(shown)), 2.7, 2.2, sharex=True, sharey=True)
    for axis, (first, second) in zip(axes, shown):
        part = table[(table["first"] == first) & (table["second"] == second)]
        cells = part.groupby(["k", "layer"])["excess"]
        mean = cells.mean().unstack().reindex(index=ranks, columns=layers)
        sure = ((cells.min() > 0) | (cells.max() < 0)) & (cells.count() == table["seed"].nunique())
        image = axis.imshow(mean, cmap="RdBu", vmin=-most, vmax=most, origin="lower", aspect="auto")
        places = [(layers.index(layer), ranks.index(k)) for k, layer in sure[sure].index]
        axis.plot(*zip(*places) if places else ((), ()), ".", color="0.15", ms=4)
        axis.set_xticks(range(len(layers)), layers, fontsize=8)
        axis.set_yticks(range(len(ranks)), ranks, fontsize=8)
        axis.tick_params(labelbottom=True)  # also where the row below is not full
        axis.set_facecolor("0.93")
        axis.grid(False)
        axis.set_title(pair_name(first, second).replace(" and ", "\nand "), fontsize=8)
        axis.set_xlabel("layer", fontsize=8)
        axis.set_ylabel("directions k", fontsize=8)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.02)
    bar.set_label("above the best rival\n(↑ shared by safety alone)", fontsize=8)
    return done(figure)
