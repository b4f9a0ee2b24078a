"""Figures and the table of part 4's comparison: which defence stops which attack, and what it costs.

Tables of the record that are read: `rates` (a row a level, seed, defence, prompt set and attack), `tasks`, `cost`, `grid`.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from safebook.attacks import wilson
from safebook.plots import COLOURS, done, legend_below, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Defence -> name in the book, colour, marker. The order of all figures; hollow marks are controls.
NAMES = {
    "aligned": ("aligned, not fine-tuned", "0.35", "P"),
    "none": ("no defence", COLOURS["unsafe"], "X"),
    "lock, response": ("lock (response)", "#56b4e9", "o"),
    "lock, prompt": ("lock (prompt)", COLOURS["safe"], "o"),
    "random lock": ("random lock, equal norm", COLOURS["safe"], "s"),
    "self-reminder": ("self-reminder", "#ca9161", "v"),
    "spf": ("SPF", COLOURS["comply"], "D"),
    "random subspace": ("random subspace, equal rank", COLOURS["comply"], "s"),
    "mixing": ("loss mixing, same anchor", "#cc78bc", "D"),
    "spf and lock": ("SPF and lock (prompt)", "0.1", "*"),
    "spf and random lock": ("SPF and random lock", "0.1", "s"),
    "repair": ("safety training afterwards", "#949494", "^"),
}
CONTROLS = ("random lock", "random subspace", "spf and random lock")
LEVELS = {
    "level1_10": "level 1, ten harmful rows",
    "level2": "level 2, a persona",
    "level3": "level 3, harmless rows",
}
KNOWING = ("adaptive suffix", "tuned again", "tuned with the lock on")
ATTACKS = (
    "plain", "nesting", "role", "prefix", "disguise", "paraphrase", "prefilling", "suffix", *KNOWING,
)  # fmt: skip
HARMLESS = ("benign", "borderline")
#: Prompt set or tasks, column, label.
UTILITY = (
    ("benign", "exact", "exact, benign\n(share, ↑ better)"),
    ("benign", "broken", "broken text, benign\n(share, ↓ better)"),
    ("benign", "refusal", "refused, benign\n(share, ↓ better)"),
    ("borderline", "refusal", "refused, borderline\n(share, ↓ better)"),
    ("known", "accuracy", "tasks known before, right\n(share, ↑ better)"),
    ("new", "accuracy", "tasks of level three, right\n(share, ↑ better)"),
)
COST = {
    "seconds_once": "seconds, once",
    "seconds": "seconds, each model",
    "bytes": "bytes",
    "tokens": "tokens a prompt",
}


def name(defence: str) -> str:
    return NAMES[defence][0]


def level_name(level: str) -> str:
    return LEVELS.get(level, level)


def in_order(known, found) -> list[str]:
    """Those found, the known ones first and in their order."""
    found = dict.fromkeys(found)
    return [n for n in known if n in found] + [n for n in found if n not in known]


def levels_of(record: "Record") -> list[str]:
    return in_order(LEVELS, record.tables["rates"]["level"])


def of(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Rows with these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def harmful(record: "Record") -> pd.DataFrame:
    """Answers to harmful requests, with `harm`; where only phrases judge, the share that is not refused stands for it."""
    table = record.tables["rates"]
    table = table[~table["prompts"].isin(HARMLESS)]
    return table if "harm" in table else table.assign(harm=1 - table["refusal"])


def judged(record: "Record") -> str:
    """What `harmful` calls harm."""
    return "harmful rate" if "harm" in record.tables["rates"] else "answered without a phrase of refusal"


_wilson = lru_cache(maxsize=None)(wilson)  # the same few counts come again and again


def pooled(part: pd.DataFrame, column: str) -> tuple[float, float, float]:
    """Share over the answers of all rows, of `n` answers each, and the lowest and highest share of a seed.

    Seeds are the sample: an interval of the share over all answers would say nothing of the next seed.
    """
    right, trials = part[column].to_numpy() * part["n"].to_numpy(), part["n"].to_numpy()
    seeds = part["seed"].to_numpy()
    shares = [right[seeds == seed].sum() / trials[seeds == seed].sum() for seed in dict.fromkeys(seeds)]
    return right.sum() / trials.sum(), min(shares), max(shares)


def strongest(part: pd.DataFrame, knowing: bool) -> str | None:
    """Of a defence's rows on harmful requests: the attack of the highest harmful rate over all seeds' answers.

    Among those that know the defence or, with knowing=False, the others; None where there is none. Of equals the first.
    """
    part = part[part["attack"].isin(KNOWING) == knowing]
    shares = {
        attack: pooled(of(part, attack=attack), "harm")[0] for attack in in_order(ATTACKS, part["attack"])
    }
    return max(shares, key=shares.get) if shares else None


# -------------------------------------------------------------------- the table


def cell(part: pd.DataFrame, column: str) -> str:
    """Percent, lowest and highest seed; empty where nothing was measured."""
    if not len(part) or column not in part:
        return ""
    return "{:.0f} ({:.0f} to {:.0f})".format(*(100 * x for x in pooled(part, column)))


def tasks_of(record: "Record") -> pd.DataFrame:
    """`tasks` with the families joined: a row a level, seed, defence and role ("known", "new")."""
    if "tasks" not in record.tables:
        return pd.DataFrame(columns=["level", "seed", "defence", "prompts", "n", "accuracy"])
    table = record.tables["tasks"]
    table = table.assign(right=table["n"] * table["accuracy"])
    sums = table.groupby(["level", "seed", "defence", "role"], sort=False)[["n", "right"]].sum().reset_index()
    return sums.assign(accuracy=sums["right"] / sums["n"]).rename(columns={"role": "prompts"})


def table(record: "Record") -> pd.DataFrame:
    """Level and defence by attack, utility and cost; shares in percent with those of the lowest and the highest seed."""
    rates, harm, tasks = record.tables["rates"], harmful(record), tasks_of(record)
    costs = record.tables["cost"] if "cost" in record.tables else pd.DataFrame({"defence": []})
    rows = {}
    for level in levels_of(record):
        for defence in in_order(NAMES, of(rates, level=level)["defence"]):
            part = of(harm, level=level, defence=defence)
            plain, row = of(part, attack="plain"), {"harm, plain": cell(of(part, attack="plain"), "harm")}
            for knowing, label in (
                (False, "harm, strongest static"),
                (True, "harm, strongest that knows it"),
            ):
                attack = strongest(part, knowing)
                row[label] = "" if attack is None else f"{cell(of(part, attack=attack), 'harm')} {attack}"
            row |= {"refused, plain": cell(plain, "refusal"), "broken, plain": cell(plain, "broken")}
            for prompts, column, label in UTILITY:
                source = rates if prompts in HARMLESS else tasks
                where = {"level": level, "defence": defence, "prompts": prompts}
                where |= {"attack": "plain"} if prompts in HARMLESS else {}
                row[label.split("\n")[0]] = cell(of(source, **where), column)
            own = of(costs, defence=defence)
            row |= {label: f"{own[c].mean():.3g}" if len(own) else "" for c, label in COST.items()}
            rows[level_name(level), name(defence)] = row
    found = pd.DataFrame(rows).T
    found.index.names = ["fine-tuned by", "defence"]
    return found.loc[:, (found != "").any()]


# -------------------------------------------------------------------- figures


def matrix(record: "Record") -> Figure:
    """Attack by defence, percent of all seeds' answers: a panel a level of fine-tuning. The lowest rows know the defence."""
    table, levels = harmful(record), levels_of(record)
    defences = in_order(NAMES, table["defence"])
    attacks = {level: in_order(ATTACKS, of(table, level=level)["attack"]) for level in levels}
    rows = [len(attacks[level]) for level in levels]
    width, height = 0.55 * len(defences) + 2.4, (0.34 * sum(rows) + 1.5 * len(rows)) / len(rows)
    figure, axes = panels(len(levels), 1, width, height, sharex=True, height_ratios=rows)
    for axis, level in zip(axes, levels):
        part = of(table, level=level)
        grid = pd.DataFrame(
            {name(d): {a: _percent(of(part, defence=d, attack=a)) for a in attacks[level]} for d in defences}
        )
        sns.heatmap(
            grid.astype(float), ax=axis, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="mako_r", cbar=False,
            linewidths=0.5, annot_kws={"size": 9},
        )  # fmt: skip
        axis.set(ylabel="attack", xlabel="")
        axis.set_title(f"{level_name(level)}: {judged(record)} (%, ↓ safer)", fontsize=10)
        axis.tick_params(labelsize=9, length=0)
        axis.tick_params(axis="y", labelrotation=0)
    places = np.arange(len(defences)) + 0.5
    axes[-1].set_xticks(places, grid.columns, rotation=35, ha="right", rotation_mode="anchor")
    axes[-1].set_xlabel("defence")
    return done(figure)


def _percent(part: pd.DataFrame) -> float:
    return 100 * pooled(part, "harm")[0] if len(part) else np.nan


def trade(record: "Record") -> Figure:
    """Utility against harm, a panel a level, and added seconds: one mark a defence, whiskers from the lowest to the highest seed.

    Filled: the strongest attack that knows nothing of the defence; above it, hollow, the strongest that does.
    """
    rates, harm, levels = record.tables["rates"], harmful(record), levels_of(record)
    column = "exact" if "exact" in rates else "refusal"
    costs = "cost" in record.tables
    figure, axes = panels(len(levels) + costs, 2, 4.6, 3.9)
    for axis, level in zip(axes, levels):
        for defence in in_order(NAMES, of(rates, level=level)["defence"]):
            benign = of(rates, level=level, defence=defence, prompts="benign", attack="plain")
            if len(benign):
                _mark(axis, pooled(benign, column), of(harm, level=level, defence=defence), defence)
        better = "→ better" if column == "exact" else "← better"
        axis.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axis.set_xlabel(f"{'exact' if column == 'exact' else 'refused'}, benign requests\n(share, {better})")
        axis.set_ylabel(f"{judged(record)},\nstrongest attack (share, ↓ safer)")
        axis.set_title(level_name(level), fontsize=10)
        axis.grid(color="0.93")
    if costs:
        _seconds(axes[-1], record.tables["cost"])
    legend_below(figure, axes[0], 3, fontsize=8.5)
    return done(figure)


def _mark(axis: "Axes", x: tuple, part: pd.DataFrame, defence: str) -> None:
    """One defence: a whisker each way for the static attack, a line up to the one that knows the defence."""
    label, shade, marker = NAMES[defence]
    fill = "none" if defence in CONTROLS else shade
    attack, knowing = (strongest(part, knows) for knows in (False, True))
    y = pooled(of(part, attack=attack), "harm")
    axis.hlines(y[0], *x[1:], color=shade, lw=1, alpha=0.5)
    axis.vlines(x[0], *y[1:], color=shade, lw=1, alpha=0.5)
    axis.plot(x[0], y[0], marker, color=shade, mfc=fill, ms=8, label=label, zorder=3)
    if knowing is not None:
        high = pooled(of(part, attack=knowing), "harm")[0]
        axis.annotate(
            "", (x[0], high), (x[0], y[0]), arrowprops={"arrowstyle": "->", "color": shade, "alpha": 0.8}
        )
        axis.plot(x[0], high, marker, color=shade, mfc="white", ms=5, zorder=4)


def _seconds(axis: "Axes", costs: pd.DataFrame) -> None:
    """Seconds that a defence adds: once for a base model, and for each fine-tuned one; dots are seeds."""
    shown = in_order(NAMES, costs["defence"])
    for y, defence in enumerate(shown):
        part, shade = of(costs, defence=defence), NAMES[defence][1]
        axis.plot(part["seconds_once"], [y - 0.15] * len(part), "o", mfc="none", color=shade, ms=5)
        axis.plot(part["seconds"], [y + 0.15] * len(part), "o", color=shade, ms=5)
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set_xlim(left=-2e-4)
    axis.set_yticks(range(len(shown)), list(map(name, shown)), fontsize=8)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlabel(
        "added seconds (log scale above a millisecond, ← better)\nhollow: once, filled: each model"
    )
    axis.set_title("cost", fontsize=10)
    axis.grid(axis="y", color="0.93")


def _lying(axis: "Axes", part: pd.DataFrame, column: str, y: float, defence: str) -> None:
    """A bar from the lowest to the highest seed; for each seed a dot, and a thin line for the Wilson interval of its answers."""
    if not len(part):
        return
    _, shade, _ = NAMES[defence]
    share, low, high = pooled(part, column)
    axis.hlines(y, low, high, color=shade, lw=6, alpha=0.25)
    places = y + (np.arange(len(part)) - (len(part) - 1) / 2) * 0.2
    hits = (part[column] * part["n"]).round().astype(int)
    ends = np.array([_wilson(int(h), int(n)) for h, n in zip(hits, part["n"])])
    axis.hlines(places, ends[:, 0], ends[:, 1], color=shade, lw=0.8, alpha=0.8)
    fill = {"mfc": "none"} if defence in CONTROLS else {}
    axis.plot(part[column], places, "o", color=shade, ms=3.5, **fill)
    axis.plot(share, y, "|", color="0.1", ms=11, mew=1.4)


def _by_defence(record: "Record", level: str, shown: list[tuple[pd.DataFrame, str, str]]) -> Figure:
    """A panel for each (rows of one kind, column, label), a row a defence."""
    defences = in_order(NAMES, of(record.tables["rates"], level=level)["defence"])
    columns = min(4, len(shown))
    figure, axes = panels(len(shown), columns, 2.7, 0.3 * len(defences) + 1.1, sharey=True)
    for axis, (part, column, label) in zip(axes, shown):
        for y, defence in enumerate(defences):
            _lying(axis, of(part, defence=defence), column, y, defence)
        axis.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axis.set_xlabel(label, fontsize=9)
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(defences)), list(map(name, defences)))
    axes[0].set_ylim(len(defences) - 0.5, -0.5)
    for axis in axes[::columns]:
        axis.tick_params(axis="y", labelsize=8.5)
    figure.suptitle(f"fine-tuned by {level_name(level)}", fontsize=11)
    return done(figure)


def attacks(record: "Record", level: str) -> Figure:
    """Harm under every attack, a row a defence: seeds with the Wilson intervals of their answers, the bar their range."""
    table = of(harmful(record), level=level)
    word = "harm" if "harm" in record.tables["rates"] else "not refused"
    shown = [
        (of(table, attack=attack), "harm", f"{word}: {attack}\n(share, ↓ safer)")
        for attack in in_order(ATTACKS, table["attack"])
    ]
    return _by_defence(record, level, shown)


def utility(record: "Record", level: str) -> Figure:
    """What is left of a model's use, a row a defence; marks as in `attacks`."""
    rates, tasks = of(record.tables["rates"], level=level, attack="plain"), of(tasks_of(record), level=level)
    shown = []
    for prompts, column, label in UTILITY:
        part = of(rates if prompts in HARMLESS else tasks, prompts=prompts)
        if len(part) and column in part:
            shown.append((part, column, label))
    return _by_defence(record, level, shown)
