"""Figures of SPF beside the other defences. Tables of the record that are read: `results`, `skills`, `courses`, `grid`, `dial`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from safebook.attacks import wilson
from safebook.plots import COLOURS, done, legend_below, panels
from safebook.prose import mean_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Arm -> name in the book, colour, marker. The order of all figures.
ARMS = {
    "aligned": ("aligned, not fine-tuned", "0.35", "P"),
    "sft": ("plain fine-tuning (SFT)", COLOURS["unsafe"], "o"),
    "spf": ("SPF", COLOURS["safe"], "D"),
    "random subspace": ("random subspace, equal rank", "#56b4e9", "^"),
    "utility subspace": ("utility subspace, equal rank", "#56b4e9", "v"),
    "mixing": ("loss mixing, same anchor", COLOURS["comply"], "s"),
    "surgery": ("vector surgery, same anchor", "#cc78bc", "s"),
    "pcgrad": ("PCGrad, same anchor", "#cc78bc", "h"),
    "lisa": ("Lisa", "#ca9161", "o"),
    "constrained": ("ConstrainedSFT", "#ca9161", "^"),
    "backdoor": ("BackdoorAlign", "#ca9161", "v"),
    "asft": ("AsFT", "#ca9161", "D"),
    "safelora": ("SafeLoRA, afterwards", "#949494", "o"),
    "antidote": ("Antidote, afterwards", "#949494", "^"),
    "repair": ("one-shot repair, afterwards", "#949494", "D"),
}
#: Column of `results` or "skill", label, which way is better, column with the number of answers ("" = no share).
MEASURES = (
    ("harm", "harmful rate", "↓ safer", "n"),
    ("refusal", "refused, harmful", "↑ safer", "n"),
    ("broken", "broken text, harmful", "↓ better", "n"),
    ("plain_harm", "harmful rate, plain requests", "↓ safer", "n"),
    ("plain_refusal", "refused, plain requests", "↑ safer", "n"),
    ("refusal_loss", "loss on refusals\n(nats a token", "↓ safer", ""),
    ("benign_exact", "exact, benign", "↑ better", "benign_n"),
    ("over_refusal", "refused, borderline", "↓ better", "borderline_n"),
    ("task", "task of the data, right", "↑ better", "task_n"),
    ("known", "tasks known before, right", "↑ better", "known_n"),
)
SETS = {
    "none": "nothing",
    "harm": "harmful rows",
    "harm, SGD": "harmful rows, SGD",
    "sums": "sums",
    "lookup": "lookup",
    "sorting": "sorting",
    "rewriting": "rewriting",
}

OPTIMISERS = {
    "adamw 0.5": "AdamW, the paper's momentum",
    "adamw 0.9": "AdamW, the usual momentum",
    "sgd": "SGD",
}


def arm_name(arm: str) -> str:
    return ARMS[arm][0]


def in_order(arms) -> list[str]:
    """The arms among these names, in the book's order."""
    found = set(arms)
    return [arm for arm in ARMS if arm in found]


def set_name(data: str) -> str:
    """A data set's name in the book."""
    task, plus, more = data.partition("+")
    if not plus:
        return SETS.get(data, data)
    return f"{SETS[task]} and " + ("harmless chat" if more == "chat" else f"{more} % harmful rows")


def measures_of(table: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """The measures that a table has values of; plain requests only where the others are not plain."""
    plain = set(table["style"]) == {"plain"} if "style" in table else False
    found = [m for m in MEASURES if m[0] in table and table[m[0]].notna().any()]
    return [m for m in found if not (plain and m[0].startswith("plain_"))]


def wide(record: "Record", data: str) -> pd.DataFrame:
    """`results` with the skills as columns: `task` (that of the data set; missing for the harmful rows), `known`, and how
    many questions."""
    table, skills = record.tables["results"], record.tables["skills"]
    key = ["data", "optimiser", "arm", "style", "seed"]
    own = (skills["role"] == "task") & (skills["family"] == data.partition("+")[0])
    for name, part in (("task", skills[own]), ("known", skills[skills["role"] == "known"])):
        sums = part.assign(right=part["accuracy"] * part["n"]).groupby(key)[["right", "n"]].sum()
        shares = pd.DataFrame({name: sums["right"] / sums["n"], f"{name}_n": sums["n"]}).reset_index()
        table = table.merge(shares, "left", key)
    return table


def of_set(table: pd.DataFrame, data: str, optimiser: str = "adamw 0.5") -> pd.DataFrame:
    """One data set's rows, and the aligned model in the same chat form."""
    part = table[(table["data"] == data) & (table["optimiser"] == optimiser)]
    style = part["style"].iloc[0]
    return pd.concat([table[(table["arm"] == "aligned") & (table["style"] == style)], part])


def arms(record: "Record", data: str) -> Figure:
    """Every arm by every measure on one data set: a mark a seed, bars the pooled Wilson interval, dotted the aligned model."""
    table = of_set(wide(record, data), data)
    shown = in_order(table["arm"])
    measures = measures_of(table[table["arm"] != "aligned"])
    columns = -(-len(measures) // 2)
    figure, axes = panels(len(measures), columns, 2.6, 0.25 * len(shown) + 1.2, sharey=True)
    for axis, (column, label, better, trials) in zip(axes, measures):
        for y, arm in enumerate(shown):
            row(axis, table[table["arm"] == arm].dropna(subset=[column]), column, trials, y, *ARMS[arm][1:])
        aligned = table[table["arm"] == "aligned"][column].dropna()
        if len(aligned):
            axis.axvline(aligned.mean(), color="0.4", lw=1, ls=":")
        unit = f"{label}, {better})" if not trials else f"{label}\n(share, {better})"
        axis.set_xlabel(unit, fontsize=9)
        if trials:
            axis.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(shown)), [arm_name(arm) for arm in shown])
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    for axis in axes[::columns]:
        axis.tick_params(axis="y", labelsize=8.5)
    figure.suptitle(f"fine-tuned on {set_name(data)}", fontsize=11)
    return done(figure)


def row(
    axis: "Axes", part: pd.DataFrame, column: str, trials: str, y: float, shade: str, marker: str
) -> None:
    """One arm in one panel: seeds, their mean, and where `trials` names a column of numbers of answers the pooled interval."""
    if not len(part):
        return
    if trials:
        n = part[trials]
        low, high = wilson(round(float((part[column] * n).sum())), int(n.sum()))
        axis.hlines(y, low, high, color=shade, lw=4, alpha=0.25)
    axis.plot(part[column], [y] * len(part), marker, color=shade, ms=4.5, alpha=0.8)
    axis.plot(part[column].mean(), y, "|", color="0.1", ms=9, mew=1.2)


def against_loss(record: "Record", column: str = "harm") -> Figure:
    """Harm (or refusals) against the task's loss: plain fine-tuning along its run, every other arm where it ends."""
    courses, table = record.tables["courses"], record.tables["results"]
    sets = list(dict.fromkeys(courses["data"]))
    figure, axes = panels(len(sets), min(3, len(sets)), 4.0, 3.3, sharey=True)
    label, better = {c: (text, way) for c, text, way, _ in MEASURES}[column]
    for axis, data in zip(axes, sets):
        usual = courses["optimiser"] == "adamw 0.5"
        plain = courses[usual & (courses["data"] == data) & (courses["arm"] == "sft")]
        for i, (_, part) in enumerate(plain.groupby("seed")):
            text = "SFT along its run, a line a seed" if i == 0 else None
            axis.plot(part["loss"], part[column], "-", color=ARMS["sft"][1], lw=1.2, alpha=0.8, label=text)
        ends = table[(table["data"] == data) & (table["optimiser"] == "adamw 0.5")]
        for arm in in_order(ends["arm"]):
            part, (name, shade, marker) = ends[ends["arm"] == arm], ARMS[arm]
            axis.plot(part["loss"], part[column], marker, color=shade, ms=6, alpha=0.75, label=name)
        axis.set_title(set_name(data), fontsize=10)
        axis.set(xlabel="loss on the data set's rows\n(nats a token, ← learned more)", ylim=(-0.05, 1.05))
    axes[0].set_ylabel(f"{label} (share, {better})")
    fullest = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    legend_below(figure, fullest, 3, fontsize=8)
    return done(figure)


def grid(record: "Record") -> Figure:
    """The settings that were tried, on validation prompts of one seed: three shares and their mean, over all data sets of the
    choice; the chosen one ringed."""
    table = record.tables["grid"]
    tried = in_order(table["arm"])
    figure, axes = panels(len(tried), 4, 2.9, 2.5, sharey=True)
    lines = {
        "refusal": (COLOURS["safe"], "D", "harmful, refused"),
        "broken": (COLOURS["null"], "x", "harmful, broken text"),
        "benign_exact": (COLOURS["comply"], "s", "benign, exact"),
        "accuracy": ("#ca9161", "^", "task, right"),
        "score": ("0.1", "o", "score"),
    }
    for axis, arm in zip(axes, tried):
        part = table[table["arm"] == arm].groupby("setting").mean(numeric_only=True).reset_index()
        for column, (shade, marker, label) in lines.items():
            axis.plot(part.index, part[column], "-", color=shade, marker=marker, ms=4.5, lw=1, label=label)
        place = int(np.flatnonzero(part["chosen"].astype(bool))[0])
        axis.plot(place, part["score"][place], "o", ms=12, mfc="none", mec="0.1", label="chosen")
        axis.set_xticks(part.index, [f"{value:.2g}" for value in part["setting"]])
        axis.set_title(arm_name(arm), fontsize=9)
        axis.set(xlabel="setting", ylim=(-0.05, 1.08), xlim=(-0.4, len(part) - 0.6))
    for axis in axes[::4]:
        axis.set_ylabel("share of answers")
    legend_below(figure, axes[0], 6, fontsize=8)
    return done(figure)


def at_an_end(grid: pd.DataFrame) -> list[str]:
    """The arms whose chosen setting is the smallest or the largest that was tried."""
    chosen = grid[grid["chosen"].astype(bool)].groupby("arm")["setting"].first()
    ends = grid.groupby("arm")["setting"].agg(["min", "max"])
    return in_order(arm for arm, value in chosen.items() if value in tuple(ends.loc[arm]))


def sweep(record: "Record") -> pd.DataFrame:
    """Loss mixing by weight: means over seeds, percent."""
    shares = {
        "harm": "harmful rate",
        "refusal": "refused",
        "broken": "broken text",
        "benign_exact": "exact, benign",
    }
    found = record.tables["sweep"].groupby("weight")[[*shares, "loss"]].mean()
    found[list(shares)] = (100 * found[list(shares)]).round(1)
    return found.rename(columns={**shares, "loss": "task loss"})


def dial(record: "Record") -> Figure:
    """Plain fine-tuning over learning rates, on validation prompts of one seed; dotted the rate that is used."""
    table = record.tables["dial"]
    sets = list(dict.fromkeys(table["data"]))
    figure, axes = panels(len(sets), min(3, len(sets)), 4.0, 3.0, sharey=True)
    lines = {
        "harm": (COLOURS["unsafe"], "o", "harmful rate (↓ safer)"),
        "refusal": (COLOURS["safe"], "D", "harmful, refused (↑ safer)"),
        "broken": (COLOURS["null"], "x", "harmful, broken text (↓ better)"),
        "benign_exact": (COLOURS["comply"], "s", "benign, exact (↑ better)"),
        "accuracy": ("#ca9161", "^", "task, right (↑ better)"),
    }
    for axis, data in zip(axes, sets):
        part = table[table["data"] == data].sort_values("rate")
        for column, (shade, marker, label) in lines.items():
            axis.plot(part["rate"], part[column], "-", color=shade, marker=marker, ms=4.5, lw=1, label=label)
        axis.axvline(float(part[part["used"].astype(bool)]["rate"].iloc[0]), color="0.3", lw=1.2, ls=":")
        axis.set_title(set_name(data), fontsize=10)
        axis.set(xscale="log", xlabel="learning rate (log scale)", ylim=(-0.05, 1.05))
        rates = sorted(set(part["rate"]))
        axis.set_xticks(rates, [f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-") for rate in rates])
        axis.minorticks_off()
    axes[0].set_ylabel("share of answers")
    legend_below(figure, axes[0], 3, fontsize=8)
    return done(figure)


def asked_plainly(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Refusals and harm of forbidden requests with the harmful rows' system prompt and without it: a row a data set and arm,
    in percent, mean and (lowest to highest) over seeds.

    parts: data set -> one row an arm and seed. None if no set was asked with a system prompt.
    """
    shown = {
        "refused, with it": "refusal",
        "refused, without": "plain_refusal",
        "harmful, with it": "harm",
        "harmful, without": "plain_harm",
    }
    found = {}
    for data, part in parts.items():
        if "obedient" not in set(part["style"]):
            continue
        for arm in in_order(part["arm"]):
            rows = part[part["arm"] == arm].set_index("seed")
            key = (set_name(data), arm_name(arm))
            found[key] = {of: mean_range((100 * rows[name]).to_dict(), 0) for of, name in shown.items()}
    if not found:
        return None
    table = pd.DataFrame.from_dict(found, orient="index")
    return table.set_index(pd.MultiIndex.from_tuples(found, names=["data", "arm"]))


def between(part: pd.DataFrame, column: str, arm: str, other: str) -> str:
    """An arm minus another, seed by seed, in points: the mean, and its 95 % interval where there are two seeds."""
    from safebook.claims import Interval

    wide = part.pivot(index="seed", columns="arm", values=column)
    gaps = list(100 * (wide[arm] - wide[other]))
    if len(gaps) == 1:
        return f"{gaps[0]:+z.0f} points"
    known = Interval.of(gaps)
    return f"{known.mean:+z.0f} points (interval {known.ends[0]:z.0f} to {known.ends[1]:z.0f})"
