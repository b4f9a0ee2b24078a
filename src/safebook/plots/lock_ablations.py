"""Figures of the lock's ablations. Tables of the record that are read: `variants`, `curves`, `further`."""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from safebook.attacks import wilson
from safebook.plots import COLOURS, done, legend_below, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Column, name, which way is better. A checkpoint has only some of them.
MEASURES = (
    ("harm", "harmful rate", "↓ safer"),
    ("refusal", "refused, harmful", "↑ safer"),
    ("broken", "broken text, harmful", "↓ better"),
    ("exact", "exact, harmless", "↑ better"),
    ("benign_refusal", "refused, harmless", "↓ better"),
)
ARMS = {
    "response": (COLOURS["unsafe"], "o", "read at the response"),
    "prompt": (COLOURS["safe"], "D", "read at the prompt"),
}
FAMILIES = {
    "heads": "heads chosen",
    "tokens": "response tokens read",
    "scaling": "scaling of the shifts",
    "direction": "direction",
    "code": "recipe of reading",
    "applied": "applied as",
}
LOCKS = {
    "no lock": (COLOURS["null"], "-", "o"),
    "lock before": (COLOURS["unsafe"], "-", "s"),
    "random lock before": ("#cc78bc", "--", "^"),
    "lock after": (COLOURS["safe"], "", "D"),
}
NAMES = {"level1_10": "level 1, ten harmful rows", "level3": "level 3, benign data"}


def name(model: str) -> str:
    """A model's name in the book; a checkpoint goes by its own."""
    return NAMES.get(model, model)


def measures(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The measures that the table has."""
    return [m for m in MEASURES if m[0] in table.columns]


def cell(table: pd.DataFrame, model: str, position: str, family: str, option: str, column: str) -> dict:
    """seed -> value of one row of the table `variants`."""
    rows = table[(table["model"] == model) & (table["position"] == position)]
    rows = rows[(rows["family"] == family) & (rows["option"].astype(str) == option)]
    return dict(zip(rows["seed"], rows[column]))


def options(record: "Record", arm: str) -> dict[str, list[str]]:
    """family -> its options, for one arm of the model that the ablations are on."""
    table = record.tables["variants"]
    table = table[(table["position"] == arm) & (table["model"] == table["model"].iloc[0])]
    found = {
        family: list(dict.fromkeys(part["option"].astype(str))) for family, part in table.groupby("family")
    }
    return {family: found[family] for family in FAMILIES if family in found}


def _rows(table: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """(model, family, option, label) of the rows of `variants`, in the order in which they are drawn."""
    main, *others = dict.fromkeys(table["model"])
    first = table[table["model"] == main]
    found = [(main, "no lock", "no lock", f"no lock: {name(main)}")]
    for family, title in FAMILIES.items():
        of = dict.fromkeys(first[first["family"] == family]["option"].astype(str))
        found += [(main, family, option, f"{title}: {option}") for option in of]
    for model in others:
        found.append((model, "no lock", "no lock", f"no lock: {name(model)}"))
        found += [(model, "direction", option, f"   direction: {option}") for option in ("mean", "random")]
    return found


def variants(record: "Record") -> Figure:
    """Every variant by every measure: a mark a seed, bars the pooled Wilson interval, dotted the model without a lock."""
    table = record.tables["variants"]
    rows, columns = _rows(table), measures(table)
    figure, axes = panels(len(columns), len(columns), 2.6, 0.34 * len(rows) + 1.3, sharey=True)
    for axis, (column, label, better) in zip(axes, columns):
        for y, (model, family, option, _) in enumerate(rows):
            for arm, (shade, marker, _) in ARMS.items():
                position = "no lock" if family == "no lock" else arm
                of = table[(table["model"] == model) & (table["position"] == position)]
                of = of[(of["family"] == family) & (of["option"].astype(str) == option)]
                if len(of):
                    both = family != "no lock"
                    at = y + (0.18 if arm == "prompt" else -0.18) * both
                    _mark(axis, of, column, at, shade if both else COLOURS["null"], marker)
        bare = table[(table["model"] == table["model"].iloc[0]) & (table["family"] == "no lock")]
        axis.axvline(bare[column].mean(), color="0.4", lw=1, ls=":")
        axis.set(xlabel=f"{label}\n(share, {better})", xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(rows)), [label for *_, label in rows], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for shade, marker, label in ARMS.values():
        axes[0].plot([], [], marker, color=shade, label=label)
    axes[0].plot([], [], color="0.4", ls=":", label="without a lock, mean")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def _mark(axis: "Axes", part: pd.DataFrame, column: str, y: float, shade: str, marker: str) -> None:
    trials = part["benign_n" if column in ("exact", "benign_refusal") else "n"]
    low, high = wilson(round(float((part[column] * trials).sum())), int(trials.sum()))
    axis.hlines(y, low, high, color=shade, lw=4, alpha=0.25)
    axis.plot(part[column], [y] * len(part), marker, color=shade, ms=4, alpha=0.8)
    axis.plot(part[column].mean(), y, "|", color="0.1", ms=8, mew=1.2)


def _bare(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["kind"] == "none"]


def _lines(axis: "Axes", part: pd.DataFrame, x: str, column: str, shade: str, marker: str, **line) -> None:
    """Seeds as marks, their mean as a line."""
    hollow = {"markerfacecolor": "none"} if line.pop("hollow", False) else {}
    label = line.pop("label", None)
    mean = part.groupby(x)[column].mean()
    axis.plot(mean.index, mean, color=shade, lw=1.4, **line)
    axis.plot(part[x], part[column], marker, color=shade, ms=4.5, alpha=0.8, label=label, **hollow)


def dress(axis: "Axes", label: str, better: str) -> None:
    """A measure's name and its better side above its panel; shares on the y axis."""
    axis.set_title(f"{label}\n({better})", fontsize=10)
    axis.set_ylim(-0.05, 1.05)


def over_strength(record: "Record", count: int) -> Figure:
    """All measures against the strength at one number of heads; random directions where that number is the chosen one."""
    table = record.tables["curves"]
    grid, bare = table[(table["kind"] == "grid") & (table["count"] == count)], _bare(table)
    columns = measures(table)
    figure, axes = panels(len(columns), len(columns), 2.5, 2.7, sharey=True)
    for axis, (column, label, better) in zip(axes, columns):
        for arm, (shade, marker, text) in ARMS.items():
            for heads, how in (("by probe", {}), ("random directions", {"ls": "--", "hollow": True})):
                part = grid[(grid["position"] == arm) & (grid["heads"] == heads)]
                if len(part):
                    note = text if heads == "by probe" else f"random directions, {arm}"
                    part = pd.concat([part, bare])
                    _lines(axis, part, "alpha", column, shade, "s" if how else marker, label=note, **how)
        axis.axvline(0, color="0.7", lw=0.8)
        axis.set_xlabel(r"strength $\alpha$ (in $\sigma$)")
        dress(axis, label, better)
    axes[0].set_ylabel("share of answers")
    figure.suptitle(f"{count} locked heads", fontsize=11)
    legend_below(figure, axes[0], 4, fontsize=8)
    return done(figure)


def over_heads(record: "Record", alpha: float) -> Figure:
    """All measures against the number of heads at one strength; dotted without a lock."""
    table = record.tables["curves"]
    grid = table[(table["kind"] == "grid") & (table["heads"] == "by probe") & (table["alpha"] == alpha)]
    figure = _against_heads(table, [(grid, {}, "")])
    figure.suptitle(f"strength {alpha:g}", fontsize=11)
    return done(figure)


def equal(record: "Record") -> Figure:
    """All measures against the number of heads at one displacement, best heads and random ones."""
    table = record.tables["curves"]
    table = table[table["kind"].isin(["equal", "none"])]
    best, drawn = (table[table["heads"] == heads] for heads in ("by probe", "at random"))
    random = {"ls": "--", "hollow": True}
    return done(_against_heads(table, [(best, {}, "best heads, "), (drawn, random, "random heads, ")]))


def _against_heads(table: pd.DataFrame, groups: list) -> Figure:
    columns = measures(table)
    figure, axes = panels(len(columns), len(columns), 2.5, 2.7, sharey=True)
    for axis, (column, label, better) in zip(axes, columns):
        axis.axhline(_bare(table)[column].mean(), color="0.4", lw=1, ls=":", label="without a lock, mean")
        for part, how, before in groups:
            for arm, (shade, marker, text) in ARMS.items():
                of = part[part["position"] == arm]
                if len(of):
                    _lines(axis, of, "count", column, shade, marker, label=before + text, **how)
        axis.set_xscale("log", base=2)
        ticks = [t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= table["count"].max()]
        axis.set_xticks(ticks[:: max(1, len(ticks) // 4)], ticks[:: max(1, len(ticks) // 4)])
        axis.minorticks_off()
        axis.set_xlabel("locked heads (log scale)")
        dress(axis, label, better)
    axes[0].set_ylabel("share of answers")
    legend_below(figure, axes[0], 3, fontsize=8)
    return figure


def further(record: "Record") -> Figure:
    """The course of further fine-tuning on harmful rows, a row an arm, a line a kind of lock."""
    table = record.tables["further"]
    columns = measures(table)
    figure, axes = panels(2 * len(columns), len(columns), 2.5, 2.5, sharex=True, sharey=True)
    for i, arm in enumerate(ARMS):
        for axis, (column, label, better) in zip(axes[i * len(columns) :], columns):
            for kind, (shade, line, marker) in LOCKS.items():
                part = table[(table["position"] == arm) & (table["lock"] == kind)]
                _lines(axis, part, "iteration", column, shade, marker, label=kind, ls=line or "none")
            axis.set_xlabel("steps after the lock")
            dress(axis, label, better)
        axes[i * len(columns)].set_ylabel(f"{ARMS[arm][2]}\nshare of answers")
    legend_below(figure, axes[0], 4, fontsize=9)
    return done(figure)
