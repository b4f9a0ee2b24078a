"""Figures of the attacks in the prompt: attack by defence, controls, costs, searches.

Tables of the record that are read: `rates` (a row a model, seed, prompt set, attack, defence and metric), `searches`.
"""

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

NAMES = {
    "none": "no defence",
    "lock, response": "lock (response)",
    "lock, prompt": "lock (prompt)",
    "random directions, response": "random (response)",
    "random directions, prompt": "random (prompt)",
    "demonstration": "demonstration (ICD)",
    "perplexity filter": "perplexity filter",
    "paraphrase": "paraphrase",
    "retokenisation": "retokenisation",
    "self-reminder": "self-reminder",
    "self-examination": "self-examination",
    "best around the prompt": "best defence around the prompt",
}
SHADES = {
    "none": COLOURS["null"],
    "lock, response": COLOURS["unsafe"],
    "lock, prompt": COLOURS["safe"],
    "random directions, response": COLOURS["unsafe"],
    "random directions, prompt": COLOURS["safe"],
}
ATTACKS = (
    "plain", "nesting", "role", "prefix", "disguise", "paraphrase", "prefilling", "suffix", "adaptive suffix",
)  # fmt: skip
METRICS = {"attack_success": "ASR", "harm": "harmful rate", "broken": "broken text"}
MODELS = {"level1_10": "level 1", "aligned": "aligned"}
#: Prompt set, metric, label.
COSTS = (
    ("benign", "exact", "exact answers, benign\n(share, ↑ better)"),
    ("benign", "refusal", "refusals, benign\n(share, ↓ better)"),
    ("benign", "broken", "broken text, benign\n(share, ↓ better)"),
    ("borderline", "refusal", "refusals, borderline\n(share, ↓ better)"),
)


def name(defence: str) -> str:
    """A defence's name in the book."""
    return NAMES.get(defence, defence)


def reported(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(attack, defence) -> success as the paper prints it, as a fraction, by this page's names of defences.

    `table`: data/paper/safetylock/prompt_attacks.csv.
    """
    other = {"safetylock": "lock", "in-context demonstration": "demonstration"}
    return {
        (row.attack, other.get(row.defence, row.defence)): float(row.value) / 100
        for row in table.itertuples()
    }


def _order(known, names) -> list[str]:
    found = dict.fromkeys(names)
    return [n for n in known if n in found] + [n for n in found if n not in known]


def _harmful(record: "Record") -> pd.DataFrame:
    table = record.tables["rates"]
    return table[~table["prompts"].isin(["benign", "borderline"])]


def matrix(record: "Record", printed: dict[tuple[str, str], float]) -> Figure:
    """Attack by defence, mean over seeds in percent: a panel a model and measure, and the paper's."""
    table = _harmful(record)
    measures = [m for m in ("attack_success", "harm") if m in set(table["metric"])]
    shown = [(m, k) for m in _order(MODELS, table["model"]) for k in measures]
    figure, axes = panels(len(shown) + 1, 2, 7.0, 4.6)
    for axis, (model, metric) in zip(axes, shown):
        part = table[(table["model"] == model) & (table["metric"] == metric)]
        grid = part.pivot_table("value", "attack", "defence", aggfunc="mean")
        grid = grid.reindex(_order(ATTACKS, grid.index))[_order(NAMES, grid.columns)]
        _heat(axis, grid.rename(columns=name))
        axis.set_title(f"{METRICS[metric]}, {MODELS.get(model, model)} (%, ↓ safer)", fontsize=11)
    grid = pd.Series(printed).unstack()
    columns = ["none", "lock", *(n for n in NAMES if n in grid.columns and n != "none")]
    _heat(axes[-1], grid[columns].rename(columns=NAMES))
    axes[-1].set_title("ASR, the paper's Llama and attacks (%, ↓ safer)", fontsize=11)
    return done(figure)


def _heat(axis: "Axes", grid: pd.DataFrame) -> None:
    sns.heatmap(
        100 * grid.astype(float), ax=axis, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="mako_r", cbar=False,
        linewidths=0.5, annot_kws={"size": 9},
    )  # fmt: skip
    axis.set(xlabel="defence", ylabel="attack")
    axis.set_xticks(
        np.arange(grid.shape[1]) + 0.5, grid.columns, rotation=35, ha="right", rotation_mode="anchor"
    )
    axis.tick_params(labelsize=9, length=0)
    axis.tick_params(axis="y", rotation=0)


def pooled(part: pd.DataFrame) -> tuple[float, float, float]:
    """Share over the answers of all rows (`value` of `n` answers each), and its Wilson interval."""
    trials = int(part["n"].sum())
    hits = round(float((part["value"] * part["n"]).sum()))
    return hits / trials, *wilson(hits, trials)


def _mark(
    axis: "Axes", part: pd.DataFrame, x: float, y: float | None, shade: str, hollow: bool = False
) -> None:
    """Seeds as dots, the pooled share as a bar with its interval: upright at x, or lying at y."""
    if not len(part):
        return
    share, low, high = pooled(part)
    fill = {"markerfacecolor": "none"} if hollow else {}
    if y is None:
        axis.vlines(x, low, high, color=shade, lw=5, alpha=0.3)
        axis.plot([x], [share], "_", color="0.1", ms=10, mew=1.5)
        axis.plot([x] * len(part), part["value"], "o", color=shade, ms=5, alpha=0.85, **fill)
    else:
        axis.hlines(y, low, high, color=shade, lw=5, alpha=0.3)
        axis.plot([share], [y], "|", color="0.1", ms=12, mew=1.5)
        axis.plot(part["value"], [y] * len(part), "o", color=shade, ms=5, alpha=0.85, **fill)


def controls(record: "Record") -> Figure:
    """Each attack under no defence, the locks and their random controls; a row a model, a column a measure."""
    table = _harmful(record)
    models = _order(MODELS, table["model"])
    measures = [m for m in METRICS if m in set(table["metric"])]
    figure, axes = panels(len(models) * len(measures), len(measures), 5.0, 3.8, sharey=True)
    attacks = _order(ATTACKS, table["attack"])
    pairs = [(m, k) for m in models for k in measures]
    for axis, (model, metric) in zip(axes, pairs):
        for number, (defence, shade) in enumerate(SHADES.items()):
            part = table[
                (table["model"] == model) & (table["metric"] == metric) & (table["defence"] == defence)
            ]
            for x, attack in enumerate(attacks):
                hollow = defence.startswith("random")
                _mark(axis, part[part["attack"] == attack], x + 0.15 * (number - 2), None, shade, hollow)
        axis.set_xticks(range(len(attacks)), attacks, rotation=35, ha="right", rotation_mode="anchor")
        better = "better" if metric == "broken" else "safer"
        axis.set(ylim=(-0.04, 1.04), xlabel="attack", ylabel=f"{METRICS[metric]}\n(share, ↓ {better})")
        axis.set_title(MODELS.get(model, model), fontsize=10)
        axis.tick_params(axis="x", labelsize=9)
        axis.grid(axis="x", color="0.93")
    for defence, shade in SHADES.items():
        fill = {"markerfacecolor": "none"} if defence.startswith("random") else {}
        axes[0].plot([], [], "o", color=shade, label=name(defence), **fill)
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def cost(record: "Record") -> Figure:
    """Harmless requests: a row a defence, a panel a measure, for the model on which all defences were tried."""
    table = record.tables["rates"]
    table = table[table["prompts"].isin(["benign", "borderline"])]
    widest = table.groupby("model")["defence"].nunique().idxmax()
    table = table[table["model"] == widest]
    known = set(zip(table["prompts"], table["metric"]))
    shown = [c for c in COSTS if c[:2] in known]
    defences = _order(NAMES, table["defence"])
    figure, axes = panels(len(shown), len(shown), 3.4, 0.32 * len(defences) + 1.3, sharey=True)
    for axis, (prompts, metric, label) in zip(axes, shown):
        part = table[(table["prompts"] == prompts) & (table["metric"] == metric)]
        for y, defence in enumerate(defences):
            shade = SHADES.get(defence, COLOURS["comply"])
            _mark(axis, part[part["defence"] == defence], 0, y, shade, defence.startswith("random"))
        axis.set(xlabel=label, xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(defences)), [name(d) for d in defences])
    axes[0].set(ylabel="defence")
    axes[0].set_ylim(len(defences) - 0.5, -0.5)
    return done(figure)


def searches(record: "Record") -> Figure:
    """Loss of the kept suffix by step; a panel a model, a line a seed."""
    table = record.tables["searches"]
    models = _order(MODELS, table["model"])
    figure, axes = panels(len(models), min(3, len(models)), 4.4, 3.3, sharey=True)
    for axis, model in zip(axes, models):
        part = table[table["model"] == model]
        for (against, _), line in part.groupby(["against", "seed"]):
            axis.plot(line["step"], line["loss"], color=SHADES.get(against, "0.3"), lw=1.4, alpha=0.85)
        axis.set_title(MODELS.get(model, model), fontsize=10)
        axis.set(xlabel="step of the search", ylabel="loss of the opening\n(nats a token, ↓ likelier)")
    for against in _order(NAMES, table["against"]):
        axes[0].plot([], [], color=SHADES.get(against, "0.3"), label=f"searched on: {name(against)}")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)
