"""Figures of jailbreaks after fine-tuning. Tables of the record that are read: `rates`, `courses`, `searches`; scalars:
`success_rise`, `common_loss`."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.prompt_attacks import pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

#: Model -> name in the book, colour, marker. The order of all figures.
MODELS = {
    "aligned": ("aligned, not fine-tuned", "0.35", "P"),
    "sft": ("plain fine-tuning (SFT)", COLOURS["unsafe"], "o"),
    "spf": ("SPF", COLOURS["safe"], "D"),
    "random subspace": ("random subspace, equal rank", "#56b4e9", "^"),
    "mixing": ("loss mixing, same anchor", COLOURS["comply"], "s"),
}
FINE_TUNED = tuple(name for name in MODELS if name != "aligned")
ATTACKS = (
    "plain, no system message", "plain", "nesting", "role", "prefix", "disguise", "paraphrase", "prefilling",
    "template search", "suffix",
)  # fmt: skip
JAILBREAKS = (
    "none", *ATTACKS[2:], "mean", "strongest", "static mean", "static strongest",
)  # fmt: skip
#: Metric, label, which way is better.
METRICS = (
    ("harm", "success", "safer"),
    ("attack_success", "ASR", "safer"),
    ("broken", "broken text", "better"),
)
#: Prompt set, metric, label.
SKILLS = (
    ("benign", "exact", "exact answers, benign\n(share, ↑ better)"),
    ("benign", "broken", "broken text, benign\n(share, ↓ better)"),
    ("benign", "refusal", "refusals, benign\n(share, ↓ better)"),
    ("borderline", "refusal", "refusals, borderline\n(share, ↓ better)"),
)


def name(model: str) -> str:
    """A model's name in the book."""
    return MODELS[model][0] if model in MODELS else model


def _look(model: str, number: int) -> tuple[str, str]:
    """Colour and marker; of checkpoints by their place in the figure."""
    if model in MODELS:
        return MODELS[model][1:]
    others = list(MODELS.values())
    return others[number % len(others)][1:]


def _order(known, found) -> list[str]:
    here = dict.fromkeys(found)
    return [n for n in known if n in here] + [n for n in here if n not in known]


def reported(table: pd.DataFrame) -> list[tuple[str, float, float]]:
    """(model, success directly, success under DRA) of the paper's SPF, as fractions.

    `table`: data/paper/spf/attack_success.csv.
    """
    own = table[(table["work"] == "paper") & (table["method"] == "spf")]
    wide = own.pivot(index="model", columns="attack", values="value").astype(float)
    direct = next(column for column in wide if column != "DRA")
    return [(row.Index, row.direct, row.dra) for row in
            wide.rename(columns={direct: "direct", "DRA": "dra"}).itertuples()]  # fmt: skip


def _finished(record: "Record") -> pd.DataFrame:
    """The table of rates without the models at equal loss."""
    table = record.tables["rates"]
    return table[table["at"] != "equal loss"]


def attacks(record: "Record") -> Figure:
    """Every attack on every model, at equal steps; a panel a measure, marks are seeds, bars pooled Wilson intervals."""
    table = _finished(record)
    table = table[~table["prompts"].isin(["benign", "borderline"])]
    shown = [m for m in METRICS if m[0] in set(table["metric"])]
    models, cases = _order(MODELS, table["model"]), _order(ATTACKS, table["attack"])
    figure, axes = panels(len(shown), 1, 10.0, 3.1, sharex=True)
    for axis, (metric, label, better) in zip(axes, shown):
        for number, model in enumerate(models):
            colour, marker = _look(model, number)
            part = table[(table["model"] == model) & (table["metric"] == metric)]
            for x, attack in enumerate(cases):
                own = part[part["attack"] == attack]
                _upright(axis, own, x + 0.15 * (number - (len(models) - 1) / 2), colour, marker)
        axis.set(ylim=(-0.04, 1.04), ylabel=f"{label}\n(share, ↓ {better})")
        axis.grid(axis="y", color="0.93")
        for x in range(1, len(cases)):
            axis.axvline(x - 0.5, color="0.9", lw=1)
    axes[-1].set_xticks(range(len(cases)), cases, rotation=25, ha="right", rotation_mode="anchor")
    axes[-1].set_xlabel("attack")
    for number, model in enumerate(models):
        colour, marker = _look(model, number)
        axes[0].plot([], [], marker, color=colour, label=name(model))
    legend_below(figure, axes[0], min(3, len(models)), fontsize=9)
    return done(figure)


def _upright(axis: "Axes", part: pd.DataFrame, x: float, colour: str, marker: str) -> None:
    if not len(part):
        return
    share, low, high = pooled(part)
    axis.vlines(x, low, high, color=colour, lw=5, alpha=0.25)
    axis.plot([x], [share], "_", color="0.1", ms=9, mew=1.4)
    axis.plot([x] * len(part), part["value"], marker, color=colour, ms=4.5, alpha=0.85)


def rises(record: "Record") -> Figure:
    """Success above the aligned model's in points, mean over seeds: a row an arm, a column a jailbreak; two comparisons."""
    frame = record.frame("success_rise")
    figure, axes = panels(2, 1, 11.0, 2.7)
    for axis, at in zip(axes, ("equal steps", "equal loss")):
        part = frame[frame["at"] == at]
        grid = part.pivot_table("value", "method", "jailbreak", aggfunc="mean")
        grid = grid.reindex(_order(MODELS, grid.index))[_order(JAILBREAKS, grid.columns)]
        sns.heatmap(
            100 * grid.rename(index=name), ax=axis, annot=True, fmt=".0f", vmin=-100, vmax=100, cmap="vlag",
            cbar=False, linewidths=0.5, annot_kws={"size": 9},
        )  # fmt: skip
        axis.set(xlabel="jailbreak", ylabel="")
        axis.set_title(
            f"success above the aligned model's own, {at} (points, ↓ safer)", fontsize=11, loc="left"
        )
        axis.set_xticks(
            np.arange(grid.shape[1]) + 0.5, grid.columns, rotation=25, ha="right", rotation_mode="anchor"
        )
        axis.tick_params(labelsize=9, length=0)
    return done(figure)


def skill(record: "Record") -> Figure:
    """Harmless requests: a row a model, a panel a measure; filled at equal steps, hollow at equal loss."""
    table = record.tables["rates"]
    table = table[table["prompts"].isin(["benign", "borderline"])]
    models = _order(MODELS, table["model"])
    known = set(zip(table["prompts"], table["metric"]))
    shown = [s for s in SKILLS if s[:2] in known]
    figure, axes = panels(len(shown), len(shown), 3.1, 0.4 * len(models) + 1.4, sharey=True)
    for axis, (prompts, metric, label) in zip(axes, shown):
        part = table[(table["prompts"] == prompts) & (table["metric"] == metric)]
        for y, model in enumerate(models):
            colour, marker = _look(model, y)
            for at, shift, fill in (("equal steps", -0.14, {}), ("equal loss", 0.14, {"mfc": "none"})):
                own = part[(part["model"] == model) & (part["at"] == at)]
                if len(own):
                    _, low, high = pooled(own)
                    axis.hlines(y + shift, low, high, color=colour, lw=4, alpha=0.25)
                    axis.plot(
                        own["value"], [y + shift] * len(own), marker, color=colour, ms=5, alpha=0.85, **fill
                    )
        axis.set(xlabel=label, xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(models)), [name(m) for m in models])
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    axes[0].plot([], [], "o", color="0.4", label="equal steps")
    axes[0].plot([], [], "o", color="0.4", mfc="none", label="equal loss")
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def courses(record: "Record") -> Figure:
    """Loss on the harmful rows by step (testbed alone), and the searches; a line a seed."""
    searched = record.tables["searches"]
    kinds = _order(("template search", "suffix"), searched["search"])
    trained = "courses" in record.tables
    figure, axes = panels(len(kinds) + trained, 3, 4.2, 3.4)
    models = _order(MODELS, searched["model"])
    if trained:
        table = record.tables["courses"]
        for (arm, _), line in table.groupby(["arm", "seed"]):
            colour, marker = _look(arm, 0)
            axes[0].plot(line["step"], line["loss"], marker, ls="-", color=colour, lw=1.2, ms=3.5, alpha=0.85)
        for value in record.scalars("common_loss").values():
            axes[0].axhline(value, color="0.5", lw=1, ls=":")
        axes[0].set(xlabel="fine-tuning step", ylabel="loss on the harmful rows\n(nats a token)")
    for axis, kind in zip(axes[trained:], kinds):
        for (model, _), line in searched[searched["search"] == kind].groupby(["model", "seed"]):
            colour, _ = _look(model, models.index(model))
            axis.plot(line["step"], line["loss"], color=colour, lw=1.4, alpha=0.85)
        axis.set(xlabel="generation" if kind == "template search" else "step of the search", title=kind)
        axis.set_ylabel("loss of the opening\n(nats a token, ↓ likelier)")
    for number, model in enumerate(models):
        axes[-1].plot([], [], color=_look(model, number)[0], label=name(model))
    legend_below(figure, axes[-1], min(3, len(models)), fontsize=9)
    return done(figure)
