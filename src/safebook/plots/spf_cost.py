"""Figures of SPF's cost: time ratios, where the time goes, what the ratio depends on, memory.

Tables of the record that are read: `times`, `parts`, `widths`, `memory`; scalars: `conflict_share`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, panels

if TYPE_CHECKING:
    from safebook.results import Record

#: Version -> name in the book, colour, marker. The order of all figures.
VERSIONS = {
    "sft again": ("plain step, again", COLOURS["null"], "o"),
    "mixing": ("loss mixing, same anchor", COLOURS["comply"], "s"),
    "surgery": ("vector surgery, same anchor", "#cc78bc", "s"),
    "spf, no conflict": ("SPF, no conflict", "#56b4e9", "d"),
    "spf, randomised SVD": ("SPF, randomised SVD", "#56b4e9", "D"),
    "spf, full SVD": ("SPF, full SVD", COLOURS["safe"], "D"),
}
PLAIN = ("plain step (SFT)", COLOURS["unsafe"], "o")
SPF = ("spf, full SVD", "spf, randomised SVD")


def name(version: str) -> str:
    """A version's name in the book."""
    return PLAIN[0] if version == "sft" else VERSIONS[version][0]


def reported(table: pd.DataFrame) -> float:
    """The paper's training time over that of SFT. `table`: data/paper/spf/cost.csv."""
    own = table[(table["work"] == "paper") & (table["quantity"] == "training time over that of SFT")]
    return float(own["value"].iloc[0])


def _batches(table: pd.DataFrame) -> list[str]:
    """Labels of batches, the largest last."""
    found = list(dict.fromkeys(table["batch"]))
    return [b for b in found if b != "largest"] + ["largest"]


def _ratios(table: pd.DataFrame, batch: str) -> pd.DataFrame:
    """(seed, round) x version: seconds over those of the plain step of the same round."""
    part = table[table["batch"] == batch]
    wide = part.pivot_table("seconds", ["seed", "round"], "version")
    return wide.div(wide["sft"], axis=0)


def _title(record: "Record", batch: str) -> str:
    return f"{record.parameters['rows'][-1]} rows" if batch == "largest" else batch


def times(record: "Record", printed: float) -> Figure:
    """Ratios of all versions: a panel a batch, dots are rounds, ticks medians of a seed, dashed the paper's."""
    table = record.tables["times"]
    batches = _batches(table)
    figure, axes = panels(len(batches), len(batches), 5.0, 3.6, sharey=True)
    for axis, batch in zip(axes, batches):
        ratios = _ratios(table, batch)
        seeds = ratios.index.get_level_values("seed")
        for y, (version, (_, colour, marker)) in enumerate(VERSIONS.items()):
            for number, seed in enumerate(dict.fromkeys(seeds)):
                own = ratios[version][seeds == seed]
                at = y + 0.2 * (number - (seeds.nunique() - 1) / 2)
                axis.plot(own, [at] * len(own), marker, color=colour, ms=4, alpha=0.45)
                axis.plot(own.median(), at, "|", color="0.1", ms=11, mew=2)
        axis.axvline(1, color="0.6", lw=1, ls=":")
        axis.axvline(printed, color="0.2", lw=1.2, ls="--")
        axis.set(xlabel="time of a step (plain step = 1, ← faster)", title=_title(record, batch))
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(VERSIONS)), [name(v) for v in VERSIONS])
    axes[0].set_ylim(len(VERSIONS) - 0.5, -0.5)
    axes[0].plot([], [], "--", color="0.2", lw=1.2, label="the paper, a whole run")
    legend_below(figure, axes[0], 1, fontsize=9)
    return done(figure)


def parts(record: "Record") -> Figure:
    """Milliseconds of the plain step and of SPF's pieces; a panel a batch, dots are rounds."""
    table, whole = record.tables["parts"], record.tables["times"]
    batches, names = _batches(table), ["plain step", *dict.fromkeys(table["part"])]
    figure, axes = panels(len(batches), len(batches), 5.0, 2.9, sharex=True, sharey=True)
    colours = dict(zip(names, (PLAIN[1], COLOURS["comply"], COLOURS["safe"], "#56b4e9")))
    for axis, batch in zip(axes, batches):
        plain = whole[(whole["batch"] == batch) & (whole["version"] == "sft")].assign(part="plain step")
        both = pd.concat([plain, table[table["batch"] == batch]])
        for y, part in enumerate(names):
            own = 1e3 * both[both["part"] == part]["seconds"]
            axis.barh(y, own.median(), color=colours[part], alpha=0.35, height=0.6)
            axis.plot(own, [y] * len(own), "o", color=colours[part], ms=4, alpha=0.5)
        axis.set(xlabel="milliseconds (← cheaper)", title=_title(record, batch))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return done(figure)


def dependence(record: "Record", printed: float) -> Figure:
    """Left: ratio by share of conflicting steps, a line a batch and decomposition. Right: by width of random models."""
    table, wide = record.tables["times"], record.tables["widths"]
    frame, shares = record.frame("conflict_share"), np.linspace(0, 1, 11)
    figure, axes = panels(2, 2, 5.2, 3.7)
    for batch, line in zip(_batches(table)[::-1], ("-", "--", ":", "-.")):
        ratios = _ratios(table, batch)
        for version in SPF:
            mixed = [
                (s * ratios[version] + (1 - s) * ratios["spf, no conflict"]).groupby("seed").median().mean()
                for s in shares
            ]
            label = f"{name(version)}, {_title(record, batch)}"
            axes[0].plot(100 * shares, mixed, line, color=VERSIONS[version][1], lw=1.5, label=label)
    low = axes[0].get_ylim()[0]
    for data, marker in zip(dict.fromkeys(frame["data"]), "ovs^<>"):
        if data != "mean":
            own = 100 * frame[frame["data"] == data]["value"]
            axes[0].plot(
                own, [low] * len(own), marker, color="0.3", ms=6, alpha=0.8, label=f"measured: {data}"
            )
    axes[0].set(xlabel="conflicting steps (%)", ylabel="time of a step\n(plain step = 1, ↓ faster)")
    for version, part in wide.groupby("version"):
        _, colour, marker = VERSIONS[version]
        part = part.sort_values("width")
        axes[1].plot(part["width"], part["ratio"], marker, ls="-", color=colour, lw=1.5, label=name(version))
    widths = sorted(set(wide["width"]))
    axes[1].set(xscale="log", xlabel="width of the model (channels, log scale)")
    axes[1].set_xticks(widths, widths)
    axes[1].minorticks_off()
    axes[1].set_ylabel("time of a conflicting step\n(plain step = 1, ↓ faster)")
    for axis in axes:
        axis.axhline(printed, color="0.2", lw=1.1, ls=(0, (6, 3)), label="the paper")
        axis.legend(fontsize=7.5, frameon=False)
    return done(figure)


def memory(record: "Record") -> Figure:
    """Most bytes of a step over those of a plain one, a panel a batch; last what a version's own part holds, in weights."""
    table, added = record.tables["memory"], record.frame("memory_added")
    batches = _batches(table)
    figure, axes = panels(len(batches) + 1, len(batches) + 1, 4.2, 2.9, sharey=True)
    for y, (version, (_, colour, marker)) in enumerate(VERSIONS.items()):
        own = [table[(table["batch"] == b) & (table["version"] == version)]["ratio"] for b in batches]
        own.append(added[added["version"] == version]["value"])
        for axis, values in zip(axes, own):
            axis.plot(values, [y] * len(values), marker, color=colour, ms=6, alpha=0.8)
    for axis, batch in zip(axes, batches):
        axis.axvline(1, color="0.6", lw=1, ls=":")
        axis.set(xlabel="bytes of a step at most\n(plain step = 1, ← less)", title=_title(record, batch))
    axes[-1].set(xlabel="bytes of its own part at most\n(weights = 1, ← less)", title="beside the plain step")
    for axis in axes:
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(VERSIONS)), [name(v) for v in VERSIONS])
    axes[0].set_ylim(len(VERSIONS) - 0.5, -0.5)
    return done(figure)
