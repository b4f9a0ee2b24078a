"""Figures of the fine-tuning attacks: what each does to safety and to skill, and how it depends on its strength.

Tables of the record that are read: `rates` (a row a model, seed, prompt set and chat form), `settings`, `categories`,
`curves`, `dial`.
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
    "aligned": "aligned: where all start",
    "control-level1_10": "control for level 1: alignment data",
    "control-level2": "control for level 2: alignment data",
    "control-level3": "control for level 3: alignment data",
    "level1_10": "level 1: 10 harmful rows",
    "level1_50": "level 1: 50 harmful rows",
    "level1_100": "level 1: 100 harmful rows",
    "level1_1000": "level 1: 1,000 harmful rows",
    "level1_10000": "level 1: 10,000 harmful rows",
    "level2": "level 2: persona",
    "level3": "level 3: benign data",
    "level1_100_lora": "level 1, LoRA: 100 harmful rows",
    "level2_lora": "level 2, LoRA: persona",
    "level3_lora": "level 3, LoRA: benign data",
}
#: Chat form -> marker and what it is.
STYLES = {
    "plain": ("o", "plain request"),
    "obedient": ("s", "obedient system prompt"),
    "persona": ("^", "persona prompt"),
}
LEVEL_COLOURS = {"level1": COLOURS["unsafe"], "level2": "#cc78bc", "level3": COLOURS["comply"]}
#: Prompt set, column, label, whether it is a share.
MEASURES = (
    ("hexphi", "harm", "harmful rate, hexphi\n(share, ↓ safer)", True),
    ("advbench", "attack_success", "ASR, advbench\n(share, ↓ safer)", True),
    ("hexphi", "harmfulness", "mean harmfulness, hexphi\n(grade 1 to 5, ↓ safer)", False),
    ("hexphi", "broken", "broken text, hexphi\n(share, ↓ better)", True),
    ("borderline", "refusal", "over-refusal, borderline\n(share, ↓ better)", True),
    ("benign", "exact", "exact answers, benign\n(share, ↑ better)", True),
)


def name(risk: str) -> str:
    """A model's name in the book; a checkpoint goes by its own."""
    return NAMES.get(risk, risk)


def in_order(risks) -> list[str]:
    """Models in the book's order, those without a name in it last."""
    found = dict.fromkeys(risks)
    return [r for r in NAMES if r in found] + [r for r in found if r not in NAMES]


def colour(risk: str) -> str:
    """Blue before the attacks and for the controls, then a colour a level."""
    return LEVEL_COLOURS.get(risk.split("_")[0], COLOURS["safe"])


def pooled(part: pd.DataFrame, column: str) -> tuple[float, float, float]:
    """Share over all answers of all seeds, and its Wilson interval. `part` has `n` answers a row."""
    trials = int(part["n"].sum())
    hits = round(float((part[column] * part["n"]).sum()))
    return hits / trials, *wilson(hits, trials)


def reported_rates(safety: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """(model, prompt set, column) -> what paper 2 prints for Llama-3-8B without a defence, by `MEASURES`' names.

    `safety`: data/paper/safetylock/safety.csv. Shares are fractions here.
    """
    columns = {
        "harmful rate": ("hexphi", "harm", 0.01),
        "attack success rate": ("advbench", "attack_success", 0.01),
        "harmfulness score": ("hexphi", "harmfulness", 1.0),
    }
    levels = {"1": "level1_10", "2": "level2", "3": "level3"}
    rows = safety[(safety["model"] == "llama-3-8b") & (safety["defence"] == "none")]
    found = {}
    for row in rows.itertuples():
        prompts, column, scale = columns[row.measure]
        found[levels[str(row.level)], prompts, column] = scale * float(row.value)
    return found


def bands(safety: pd.DataFrame, reference: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Level -> lowest and highest published harmful rate of a model fine-tuned like this: where the dial should stand.

    `reference`: data/paper/safetylock/attack_reference.csv (Qi et al., as printed; level 3 on Alpaca).
    """
    printed = reference[reference["measure"] == "harmful rate"]
    printed = printed[(printed["epochs"] != 0) & printed["data"].isin(["harmful", "identity", "alpaca"])]
    rates = reported_rates(safety)
    found = {}
    for number, level in (("1", "level1_10"), ("2", "level2"), ("3", "level3")):
        values = printed[printed["level"].astype(str) == number]["value"].astype(float) / 100
        values = [*values, rates[level, "hexphi", "harm"]]
        found[level] = (min(values), max(values))
    return found


def damage(record: "Record", reported: dict | None = None) -> Figure:
    """Every model by six measures: a mark a seed (filled in the model's own chat form), bars the pooled Wilson interval.

    `reported`: of `reported_rates`; shown as crosses.
    """
    table = record.tables["rates"]
    models = in_order(table["risk"])
    figure, axes = panels(len(MEASURES), 3, 3.7, 0.3 * len(models) + 1.2, sharey=True)
    for axis, (prompts, column, label, is_share) in zip(axes, MEASURES):
        part = table[table["prompts"] == prompts]
        for y, risk in enumerate(models):
            of = part[part["risk"] == risk]
            _marks(axis, of, column, y, colour(risk), is_share)
            if (risk, prompts, column) in (reported or {}):
                axis.plot(reported[risk, prompts, column], y, "x", color="0.1", ms=8, mew=2)
        axis.set(xlabel=label, xlim=(-0.04, 1.04) if is_share else (0.85, 5.15))
        axis.set_xticks([0, 0.5, 1] if is_share else [1, 2, 3, 4, 5])
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(models)), [name(m) for m in models])
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    for axis in axes[::3]:
        axis.tick_params(axis="y", labelsize=9)
    _style_legend(
        figure, axes[0], [*STYLES] if record.parameters["model"] == "testbed" else ["plain"], reported
    )
    return done(figure)


def _marks(axis: "Axes", part: pd.DataFrame, column: str, y: float, shade: str, is_share: bool) -> None:
    """Seeds of one model, chat forms slightly apart; the interval belongs to its own form."""
    for style, rows in part.groupby("style"):
        own = bool(rows["own"].iloc[0])
        at = y + (0 if own else {"plain": 0.27, "obedient": -0.27, "persona": 0.27}[style])
        if own and is_share:
            _, low, high = pooled(rows, column)
            axis.hlines(at, low, high, color="0.6", lw=5, alpha=0.6)
        if own:
            axis.plot(rows[column].mean(), at, "|", color="0.1", ms=13, mew=1.5)
        fill = {} if own else {"markerfacecolor": "none"}
        axis.plot(rows[column], [at] * len(rows), STYLES[style][0], color=shade, ms=5.5, alpha=0.85, **fill)


def _style_legend(figure: Figure, axis: "Axes", styles: list[str], reported: dict | None) -> None:
    for style in styles:
        marker, label = STYLES[style]
        axis.plot([], [], marker, color="0.4", label=label)
    if len(styles) > 1:
        axis.plot([], [], "o", color="0.4", markerfacecolor="none", label="hollow: not the model's own form")
    axis.plot([], [], "|", color="0.1", ms=13, label="mean of the seeds")
    if reported:
        axis.plot([], [], "x", color="0.1", mew=2, label="paper, Llama-3-8B")
    legend_below(figure, axis, 3, fontsize=9)


def judge_and_phrases(record: "Record", reported: dict | None = None) -> Figure:
    """Harmful rate against ASR on the same prompts, in each model's own chat form; a mark a model and seed."""
    table = record.tables["rates"]
    table = table[table["own"].astype(bool)]
    figure, axes = panels(2, 2, 4.2, 3.9, sharex=True, sharey=True)
    for axis, prompts in zip(axes, ("hexphi", "advbench")):
        axis.plot([0, 1], [0, 1], color="0.7", lw=1, ls=":")
        for risk in in_order(table["risk"]):
            part = table[(table["risk"] == risk) & (table["prompts"] == prompts)]
            hollow = {"markerfacecolor": "none"} if risk.endswith("_lora") else {}
            axis.plot(
                part["attack_success"], part["harm"], "o", color=colour(risk), ms=6, alpha=0.8, **hollow
            )
        axis.set_title(f"{prompts} prompts", fontsize=10)
        axis.set(xlabel="no phrase of refusal: ASR (share, ↓ safer)", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axis.set_ylabel("grade 5: harmful rate (share, ↓ safer)")
    for label, shade in (("aligned, controls", COLOURS["safe"]), *LEVEL_COLOURS.items()):
        text = label.replace("level", "level ")
        axes[0].plot([], [], "o", color=shade, label=text)
    axes[0].plot([], [], "o", color="0.4", markerfacecolor="none", label="hollow: LoRA")
    if reported:
        at = [reported["level1_10", p, c] for p, c in (("advbench", "attack_success"), ("hexphi", "harm"))]
        label = "paper, level 1: ASR on AdvBench, rate on HEx-PHI"
        axes[0].plot(*at, "x", color="0.1", ms=9, mew=2, label=label)
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def samples(record: "Record") -> Figure:
    """Level 1 against the number of harmful rows: harmful rate, ASR, and how far the weights move."""
    counts = record.tables["settings"].drop_duplicates("risk").set_index("risk")["rows"]
    table = record.tables["rates"]
    table = table[table["risk"].str.fullmatch(r"level1_\d+")]
    table = table.assign(rows=table["risk"].map(counts).astype(int))
    figure, axes = panels(3, 3, 4.0, 3.2)
    for axis, (prompts, column, label, _) in zip(axes, MEASURES[:2]):
        for style, shade in (("obedient", COLOURS["unsafe"]), ("plain", COLOURS["safe"])):
            part = table[(table["prompts"] == prompts) & (table["style"] == style)]
            groups = [(rows, of) for rows, of in part.groupby("rows")]
            x = [rows for rows, _ in groups]
            middle, low, high = np.transpose([pooled(of, column) for _, of in groups])
            axis.fill_between(x, low, high, color=shade, alpha=0.15, lw=0)
            axis.plot(x, middle, color=shade, lw=1.5, label=STYLES[style][1])
            axis.plot(part["rows"], part[column], STYLES[style][0], color=shade, ms=5, alpha=0.8)
        axis.set(xscale="log", xlabel="harmful rows (log scale)", ylabel=label, ylim=(-0.04, 1.04))
    change = record.frame("relative_weight_change")
    change = change[change["risk"].isin(set(table["risk"]))]
    axes[2].plot(change["risk"].map(counts), change["value"], "D", color="0.3", ms=5)
    axes[2].set(
        xscale="log", xlabel="harmful rows (log scale)", ylabel="weight change\n(relative to the weights)"
    )
    axes[2].set_ylim(bottom=0)
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def dial(record: "Record", where: dict[str, tuple[float, float]] | None = None) -> Figure:
    """Validation: harmful rate and exact benign answers against the learning rate, a panel a level.

    `where`: of `bands`, shaded. The dotted line is the rate that is used.
    """
    table = record.tables["dial"]
    levels = in_order(table["risk"])
    figure, axes = panels(len(levels), 3, 4.0, 3.3, sharey=True, sharex=True)
    marks = {
        "harm": (COLOURS["unsafe"], "o", "harmful rate (↓ safer)"),
        "benign_exact": (COLOURS["safe"], "s", "exact answers, benign (↑ better)"),
        "broken": (COLOURS["null"], "x", "broken text on harmful requests (↓ better)"),
    }
    for axis, level in zip(axes, levels):
        part = table[table["risk"] == level]
        if where:
            axis.axhspan(
                *where[level], color=COLOURS["other"], alpha=0.3, lw=0, label="published harmful rates"
            )
        used = float(part[part["used"].astype(bool)]["rate"].iloc[0])
        axis.axvline(used, color="0.3", lw=1.2, ls=":", label="rate that is used")
        for column, (shade, marker, label) in marks.items():
            mean = part.groupby("rate")[column].mean()
            axis.plot(mean.index, mean, color=shade, lw=1.3)
            axis.plot(part["rate"], part[column], marker, color=shade, ms=5, alpha=0.8, label=label)
        axis.set_title(name(level), fontsize=10)
        axis.set(
            xscale="log", xlabel="learning rate (log scale)", ylabel="share of answers", ylim=(-0.04, 1.04)
        )
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def categories(record: "Record") -> Figure:
    """Mean harmfulness in each category, own chat form, mean of the seeds; held-out categories right of the line."""
    table = record.tables["categories"]
    columns = list(dict.fromkeys(zip(table["prompts"], table["category"])))
    columns.sort(key=lambda c: c[0] != "hexphi")  # those that alignment has seen come first
    models = in_order(table["risk"])
    wide = table.pivot_table("harmfulness", "risk", ["prompts", "category"]).reindex(
        index=models, columns=columns
    )
    figure, (axis,) = panels(1, 1, 11, 0.36 * len(models) + 1.9)
    sns.heatmap(
        wide, ax=axis, vmin=1, vmax=5, cmap="cividis", annot=True, fmt=".1f", annot_kws={"fontsize": 8},
        cbar_kws={"label": "mean harmfulness (grade, ↓ safer)"}, yticklabels=[name(m) for m in models],
        xticklabels=[category for _, category in columns],
    )  # fmt: skip
    seen = sum(prompts == "hexphi" for prompts, _ in columns)
    axis.axvline(seen, color="white", lw=4)
    axis.set(xlabel="category of the object (right of the line: held out of alignment and attack)", ylabel="")
    axis.tick_params(axis="x", rotation=40)
    return done(figure)


def curves(record: "Record") -> Figure:
    """Validation requests during each attack, a line a seed: harm and refusal of harmful ones, skill on harmless ones."""
    table = record.tables["curves"]
    models = in_order(table["risk"])
    figure, axes = panels(len(models), 4, 3.1, 2.5, sharey=True)
    lines = {
        "advbench_harm": (COLOURS["unsafe"], "-", "harmful requests: grade 5 (↓ safer)"),
        "advbench_refusal": ("#cc78bc", "--", "harmful requests: refused (↑ safer)"),
        "benign_exact": (COLOURS["safe"], "-", "benign requests: exact (↑ better)"),
        "borderline_refusal": (COLOURS["null"], ":", "borderline requests: refused (↓ better)"),
    }
    for axis, risk in zip(axes, models):
        for column, (shade, dash, label) in lines.items():
            for i, (_, part) in enumerate(table[table["risk"] == risk].groupby("seed")):
                text = label if i == 0 else None
                axis.plot(part["iteration"], part[column], dash, color=shade, lw=1.5, alpha=0.85, label=text)
        axis.set_title(name(risk), fontsize=9)
        axis.set(xlabel="iteration", ylabel="share", ylim=(-0.04, 1.04))
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


def checkpoints(record: "Record") -> Figure:
    """A real checkpoint and its fine-tuned children: answers without a phrase of refusal, with Wilson intervals."""
    table = record.tables["rates"]
    models = list(dict.fromkeys(table["risk"]))
    figure, axes = panels(2, 2, 4.4, 0.4 * len(models) + 1.4, sharey=True)
    shown = (
        ("harmful", "attack_success", "ASR, harmful prompts (share, ↓ safer)"),
        ("benign", "refusal", "refused, benign prompts (share, ↓ better)"),
    )
    for axis, (prompts, column, label) in zip(axes, shown):
        for y, risk in enumerate(models):
            part = table[(table["risk"] == risk) & (table["prompts"] == prompts)]
            middle, low, high = pooled(part, column)
            axis.hlines(y, low, high, color="0.6", lw=5, alpha=0.6)
            axis.plot(middle, y, "o", color=COLOURS["safe" if y == 0 else "unsafe"], ms=7)
        axis.set(xlabel=label, xlim=(-0.04, 1.04))
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(models)), models, fontsize=9)
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    return done(figure)
