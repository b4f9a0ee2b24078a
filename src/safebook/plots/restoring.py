"""Figures of the locked models: harm with and without a lock, by category, by number of harmful rows, and with its sign turned.

Tables of the record that are read: `rates` (a row a model, seed, lock, arm, sign and prompt set) and `categories`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.risks import in_order, name, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

LEVELS = ("level1_10", "level2", "level3")
LOCKS = {
    "none": "no lock",
    "base": "lock of the aligned model",
    "own": "the model's own lock",
    "random directions": "random directions",
    "random heads": "random heads",
}
#: Arm -> colour, marker, what it is. "none" is the model without a lock.
ARMS = {
    "none": ("0.25", "D", "no lock"),
    "response": (COLOURS["unsafe"], "s", "arm response (as published)"),
    "prompt": (COLOURS["safe"], "o", "arm prompt"),
}
#: Prompt set, column, label, whether it is a share.
MEASURES = (
    ("hexphi", "harm", "harmful rate\n(hexphi, share, ↓ safer)", True),
    ("hexphi", "harmfulness", "mean score\n(hexphi, 1 to 5, ↓ safer)", False),
    ("advbench", "attack_success", "ASR\n(advbench, share, ↓ safer)", True),
    ("hexphi", "broken", "broken text\n(hexphi, share, ↓ better)", True),
    ("benign", "exact", "exact answers\n(benign, share, ↑ better)", True),
    ("borderline", "refusal", "over-refusal\n(borderline, share, ↓ better)", True),
)
CHECKPOINT = (
    ("harmful", "attack_success", "ASR\n(harmful prompts, share, ↓ safer)", True),
    ("benign", "refusal", "over-refusal\n(benign prompts, share, ↓ better)", True),
)


def reported(safety: pd.DataFrame) -> dict[tuple[str, str, str, str], float]:
    """(model, lock, prompt set, column) -> what paper 2 prints for Llama-3-8B, by `MEASURES`' names; shares are fractions.

    `safety`: data/paper/safetylock/safety.csv.
    """
    columns = {
        "harmful rate": ("hexphi", "harm", 0.01),
        "attack success rate": ("advbench", "attack_success", 0.01),
        "harmfulness score": ("hexphi", "harmfulness", 1.0),
    }
    levels, locks = dict(zip("123", LEVELS)), {"none": "none", "safetylock": "base"}
    found = {}
    for row in safety[safety["model"] == "llama-3-8b"].itertuples():
        if row.defence in locks and str(row.level) in levels:
            prompts, column, scale = columns[row.measure]
            at = (levels[str(row.level)], locks[row.defence], prompts, column)
            found[at] = scale * float(row.value)
    return found


def _mark(axis: "Axes", part: pd.DataFrame, column: str, at: float, arm: str, is_share: bool) -> None:
    """The seeds of one cell, their mean, and the pooled Wilson interval of a share. `at`: place on the y axis."""
    shade, marker, _ = ARMS[arm]
    if not len(part):
        return
    if is_share:
        _, low, high = pooled(part, column)
        axis.hlines(at, low, high, color=shade, lw=5, alpha=0.2)
    axis.plot(part[column], [at] * len(part), marker, color=shade, ms=4.5, alpha=0.75)
    axis.plot(part[column].mean(), at, "|", color="0.1", ms=11, mew=1.4)


def _frame(axis: "Axes", label: str, is_share: bool, xlabel: bool) -> None:
    axis.set_xlim(*((-0.05, 1.05) if is_share else (0.85, 5.15)))
    axis.set_xticks([0, 0.5, 1] if is_share else [1, 3, 5])
    axis.set_xlabel(label if xlabel else "", fontsize=9)
    axis.grid(axis="y", color="0.92")


def _legend(figure: Figure, axis: "Axes", paper: bool = False) -> None:
    for shade, marker, label in ARMS.values():
        axis.plot([], [], marker, color=shade, label=label)
    axis.plot([], [], "|", color="0.1", ms=11, label="mean of the seeds")
    if paper:
        axis.plot([], [], "x", color="0.1", mew=2, label="paper, Llama-3-8B")
    legend_below(figure, axis, 5, fontsize=9)


def _cells(table: pd.DataFrame, locks: list[str]) -> list[tuple[float, str, str]]:
    """(place, lock, arm) of every row of a panel: the arms of one lock slightly apart."""
    cells = []
    for y, lock in enumerate(locks):
        arms = [a for a in ARMS if len(table[(table["lock"] == lock) & (table["position"] == a)])]
        shifts = [0.0] if len(arms) < 2 else [-0.17, 0.17]
        cells += [(y + shift, lock, arm) for shift, arm in zip(shifts, arms)]
    return cells


def restored(record: "Record", paper: dict | None = None) -> Figure:
    """Every model by every measure: a row a lock, a mark a seed. `paper`: of `reported`, crosses."""
    table = record.tables["rates"]
    testbed = record.parameters["model"] == "testbed"
    measures = MEASURES if testbed else CHECKPOINT
    models = LEVELS if testbed else list(dict.fromkeys(table["risk"]))
    table = table[table["sign"] != "negative"]
    locks = [lock for lock in LOCKS if lock in set(table["lock"])]
    width = 2.25 if testbed else 3.6
    figure, axes = panels(len(models) * len(measures), len(measures), width, 1.85, sharey=True)
    for i, risk in enumerate(models):
        of = table[table["risk"] == risk]
        for j, (prompts, column, label, is_share) in enumerate(measures):
            axis = axes[i * len(measures) + j]
            asked = of[of["prompts"] == prompts]
            for y, lock, arm in _cells(asked, locks):
                part = asked[(asked["lock"] == lock) & (asked["position"] == arm)]
                _mark(axis, part, column, y, arm, is_share)
                if (risk, lock, prompts, column) in (paper or {}):
                    value = paper[risk, lock, prompts, column]
                    axis.plot(value, locks.index(lock), "x", color="0.1", ms=8, mew=2)
            _frame(axis, label, is_share, i == len(models) - 1)
        first = axes[i * len(measures)]
        first.set_yticks(range(len(locks)), [LOCKS[lock] for lock in locks], fontsize=9)
        first.set_ylim(len(locks) - 0.5, -0.5)
        first.set_title(name(risk), fontsize=10, loc="left")
    _legend(figure, axes[0], bool(paper) and testbed)
    return done(figure)


def categories(record: "Record", paper: pd.DataFrame | None = None) -> Figure:
    """Mean score in each category, mean of the seeds; right of it the paper's, whose categories are others.

    `paper`: data/paper/safetylock/categories.csv.
    """
    table = record.tables["categories"]
    rows = [(r, a) for r in LEVELS for a in ARMS]
    wide = table.pivot_table("harmfulness", ["risk", "position"], "category", sort=False)
    wide = wide.reindex([row for row in rows if row in wide.index])
    labels = [f"{name(r)}, {ARMS[a][2]}" for r, a in wide.index]
    figure, axes = panels(2 if paper is not None else 1, 2, 7.6, 0.36 * len(wide) + 2.4)
    shade = {"vmin": 1, "vmax": 5, "cmap": "cividis", "annot": True, "fmt": ".1f"}
    bar = {"label": "mean score (1 to 5, ↓ safer)"}
    small = {"fontsize": 8}
    sns.heatmap(wide, ax=axes[0], cbar_kws=bar, annot_kws=small, yticklabels=labels, **shade)
    axes[0].set(xlabel="category of the object (invented)", ylabel="")
    if paper is not None:
        printed = paper.pivot_table("value", ["model", "defence"], "name", sort=False)
        names = [f"{m}, {'no lock' if d == 'none' else 'locked'}" for m, d in printed.index]
        sns.heatmap(printed, ax=axes[1], cbar=False, annot_kws=small, yticklabels=names, **shade)
        axes[1].set(xlabel="category of the paper, level 1 (read off its figure)", ylabel="")
    for axis in axes:
        axis.tick_params(axis="x", rotation=45)
        axis.set_xticklabels(axis.get_xticklabels(), ha="right", fontsize=8)
        axis.set_yticklabels(axis.get_yticklabels(), fontsize=8, rotation=0)
    return done(figure)


def samples(record: "Record") -> Figure:
    """Level 1 against the number of harmful rows: no lock, the base lock, random directions; all seeds and their mean."""
    table = record.tables["rates"]
    table = table[table["risk"].str.fullmatch(r"level1_\d+") & table["lock"].isin(_DASHES)]
    shown = (
        ("advbench", "attack_success", "ASR (advbench, share, ↓ safer)"),
        ("advbench", "harm", "harmful rate (advbench, share, ↓ safer)"),
        ("advbench", "broken", "broken text (advbench, share, ↓ better)"),
        ("benign", "exact", "exact answers (benign, share, ↑ better)"),
    )
    figure, axes = panels(len(shown), 4, 3.4, 3.1, sharey=True)
    for axis, (prompts, column, label) in zip(axes, shown):
        for (lock, arm), part in table[table["prompts"] == prompts].groupby(["lock", "position"], sort=False):
            shade, marker, words = ARMS[arm]
            rows = part["risk"].str.removeprefix("level1_").astype(int)
            mean = part[column].groupby(rows).mean()
            hollow = {"markerfacecolor": "none"} if lock == "random directions" else {}
            text = words if lock != "random directions" else f"{words}: random directions"
            axis.plot(mean.index, mean, _DASHES[lock], color=shade, lw=1.4)
            axis.plot(rows, part[column], marker, color=shade, ms=5, alpha=0.75, label=text, **hollow)
        axis.set(xscale="log", xlabel="harmful rows (log scale)", ylim=(-0.04, 1.04))
        axis.set_ylabel(label, fontsize=8)
    axes[0].axhline(0.05, color="0.3", lw=1, ls=(0, (1, 3)))
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


_DASHES = {"none": "-", "base": "-", "random directions": ":"}


def unlocking(record: "Record") -> Figure:
    """The sign turned: models with the negative lock and its controls beside the models as they are."""
    table = record.tables["rates"]
    testbed = record.parameters["model"] == "testbed"
    measures = [m for m in MEASURES if m[0] in ("hexphi", "benign")] if testbed else CHECKPOINT
    turned = table["sign"] == "negative"
    models = in_order(table[turned]["risk"])
    table = table[turned | (table["lock"] == "none")]
    locks = [lock for lock in LOCKS if lock in set(table[table["risk"].isin(models)]["lock"])]
    figure, axes = panels(len(models) * len(measures), len(measures), 3.0, 1.9, sharey=True)
    for i, risk in enumerate(models):
        of = table[table["risk"] == risk]
        for j, (prompts, column, label, is_share) in enumerate(measures):
            axis = axes[i * len(measures) + j]
            asked = of[of["prompts"] == prompts]
            for y, lock, arm in _cells(asked, locks):
                part = asked[(asked["lock"] == lock) & (asked["position"] == arm)]
                _mark(axis, part, column, y, arm, is_share)
            _frame(axis, label, is_share, i == len(models) - 1)
        first = axes[i * len(measures)]
        first.set_yticks(range(len(locks)), [_turned(lock) for lock in locks], fontsize=9)
        first.set_ylim(len(locks) - 0.5, -0.5)
        first.set_title(name(risk), fontsize=10, loc="left")
    _legend(figure, axes[0])
    return done(figure)


def _turned(lock: str) -> str:
    return LOCKS[lock] if lock == "none" else f"negative: {LOCKS[lock]}"


def fates(record: "Record", risk: str, lock: str, arm: str) -> dict[str, dict[int, float]]:
    """What the harmful prompts of the set get with a lock, beside without: seed -> change of each share.

    "harm" (grade 5), "refusal" and "broken" may overlap, so that they need not sum to nought.
    """
    table = record.tables["rates"].query("prompts == 'hexphi' and risk == @risk and sign != 'negative'")
    without = table[table["lock"] == "none"].set_index("seed")
    with_it = table[(table["lock"] == lock) & (table["position"] == arm)].set_index("seed")
    changes = with_it[["harm", "refusal", "broken"]] - without[["harm", "refusal", "broken"]]
    return {column: {int(s): float(np.round(v, 6)) for s, v in changes[column].items()} for column in changes}
