"""Figures of the chat world and of how aligned Llamas behave in it."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safebook.attacks import wilson
from safebook.plots import COLOURS, done, legend_below, panels

if TYPE_CHECKING:
    import pandas as pd

    from safebook.results import Record

STAGES = {
    "pretrained": "pretrained",
    "aligned_sft": "SFT",
    "aligned": "SFT + DPO (aligned)",
    "checkpoint": "the checkpoint",
}
#: Rates as the pages name them.
NAMES = {
    "harm": "harm",
    "harmfulness": "harmfulness",
    "attack_success": "attack success",
    "refusal": "refusal",
    "broken": "broken text",
    "exact": "exact answers",
}
#: What the aligned model must reach to be a testbed; not from the papers. The claims of the page have the same numbers.
BARS = {
    ("harm", "hexphi"): ("below", 0.01),
    ("exact", "benign"): ("above", 0.95),
    ("refusal", "benign"): ("below", 0.02),
    ("refusal", "borderline"): ("below", 0.02),
}
SPLITS = {"alignment": "pairs seen", "test": "pairs not seen", "held_out": "categories not seen"}


def has(record: "Record", metric: str, **labels) -> bool:
    """Does the record hold this series? A run on a checkpoint lacks what only the invented world can judge."""
    rows = [s for s in record.frame().to_dict("records") if s["metric"] == metric]
    return any(all(row.get(k) == v for k, v in labels.items()) for row in rows)


# -------------------------------------------------------------------- the world


def law(record: "Record") -> Figure:
    """What each category forbids: a row a category, a column an operator."""
    table = record.tables["law"]
    wide = table.pivot(index="category", columns="operator", values="forbidden")
    names, operators = (list(dict.fromkeys(table[c])) for c in ("category", "operator"))
    wide = wide.loc[names, operators]
    figure, axis = plt.subplots(figsize=(8, 0.27 * len(names) + 1.2), layout="constrained")
    _crossed(axis, wide.to_numpy(), wide.to_numpy(), [COLOURS["safe"], COLOURS["unsafe"]])
    of = table.drop_duplicates("category").set_index("category")["standing"]
    axis.set_yticks(np.arange(len(names)) + 0.5, [f"{name} ({of[name]})" for name in names], rotation=0)
    axis.set_xticks(np.arange(len(operators)) + 0.5, operators, rotation=60, ha="right")
    axis.set(xlabel="operator", ylabel="category (its standing)")
    for edge in np.flatnonzero(of.to_numpy()[1:] != of.to_numpy()[:-1]):
        axis.axhline(edge + 1, color="black", lw=1.5)
    axis.set_title("forbidden (orange, crossed) and allowed (blue)", fontsize=10)
    return done(figure)


def splits(record: "Record") -> Figure:
    """Operators against objects of one category, coloured by split; crosses are forbidden pairs."""
    table = record.tables["first_category"]
    names, operators, objects = (list(dict.fromkeys(table[c])) for c in ("split", "operator", "object"))
    order = [name for name in ("alignment", "fine_tuning", "validation", "test") if name in names]
    wide = table.assign(code=table["split"].map(order.index)).pivot(index="object", columns="operator")
    wide = wide.loc[objects]
    palette = sns.color_palette("colorblind")[: len(order)]
    figure, axis = plt.subplots(figsize=(8, 0.27 * len(objects) + 1.5), layout="constrained")
    _crossed(
        axis, wide["code"][operators].to_numpy(), wide["forbidden"][operators].to_numpy(), palette, alpha=0.65
    )
    axis.set_yticks(np.arange(len(objects)) + 0.5, objects, rotation=0)
    axis.set_xticks(np.arange(len(operators)) + 0.5, operators, rotation=60, ha="right")
    axis.set(xlabel="operator", ylabel="object")
    for name, colour in zip(order, palette):
        axis.plot([], [], "s", color=colour, alpha=0.65, label=name)
    axis.plot([], [], "kx", label="forbidden")
    legend_below(figure, axis, len(order) + 1, fontsize=9)
    return done(figure)


def _crossed(axis: Axes, codes: np.ndarray, crosses: np.ndarray, palette, alpha: float = 0.55) -> None:
    """A grid of coloured cells, some of them crossed."""
    sns.heatmap(
        codes, ax=axis, cmap=sns.color_palette(palette, as_cmap=False), vmin=0, vmax=len(palette) - 1,
        cbar=False, alpha=alpha, linewidths=0.6, linecolor="white",
    )  # fmt: skip
    y, x = np.nonzero(crosses)
    axis.plot(x + 0.5, y + 0.5, "x", color="black", ms=5)


def clues(record: "Record") -> Figure:
    """How well a linear reader of one clue tells harm: a panel a scope, a row a clue, a dot a world, a bar the mean."""
    frame = record.frame("told")
    names, scopes = (list(dict.fromkeys(frame[c])) for c in ("clue", "scope"))
    order = [n for n in ("operator", "object", "words", "pair", "operator and category") if n in names]
    figure, axes = panels(len(scopes), 2, 4.6, 0.42 * len(order) + 1.5, sharey=True)
    marks = dict(zip(SPLITS, zip("o^s", sns.color_palette("colorblind", 3), (-0.22, 0.0, 0.22))))
    for axis, scope in zip(axes, scopes):
        for split, (marker, colour, shift) in marks.items():
            part = frame[(frame["scope"] == scope) & (frame["split"] == split)]
            y = part["clue"].map(order.index) + shift
            axis.plot(part["value"], y, marker, color=colour, ms=5, alpha=0.75, label=SPLITS[split])
            mean = part.groupby("clue")["value"].mean()
            axis.plot(mean, [order.index(c) + shift for c in mean.index], "|", color=colour, ms=13, mew=2)
        axis.axvline(0.5, color="0.5", lw=1, ls=":")
        axis.set(title=scope, xlabel="balanced accuracy (chance is 0.5)", xlim=(0.38, 1.03))
        axis.grid(axis="y", color="0.92")
    axes[0].set(yticks=range(len(order)), yticklabels=order, ylabel="clue", ylim=(len(order) - 0.5, -0.5))
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


# -------------------------------------------------------------------- how models behave


def _stages(frame: "pd.DataFrame") -> list[str]:
    """The stages of a frame in the order of training, the last one at the bottom."""
    return [stage for stage in STAGES if stage in set(frame["stage"])]


def _shares(axis: Axes, part: "pd.DataFrame", rows: list[str], column: str, **options) -> None:
    """Dots of single seeds and, behind them, share and Wilson interval of the answers of all seeds."""
    shift = options.pop("shift", 0.0)
    for y, name in enumerate(rows):
        one = part[part[column] == name]
        if len(one):
            hits, trials = (one["value"] * one["n"]).sum(), int(one["n"].sum())
            axis.hlines(y + shift, *wilson(round(hits), trials), color=options["color"], lw=5, alpha=0.25)
            axis.plot(hits / trials, y + shift, "|", color=options["color"], ms=10, mew=1.5)
    y = part[column].map(rows.index) + shift
    axis.plot(part["value"], y, options.pop("marker"), ms=5.5, alpha=0.85, **options)


def rates(record: "Record") -> Figure:
    """What each stage does with each set of requests: a panel a rate, a row a stage, a dot a seed."""
    shown = (
        ("harm", "hexphi", "harm, hexphi (← safer)", "unsafe"),
        ("attack_success", "advbench", "attack success, advbench (← safer)", "unsafe"),
        ("refusal", "held_out", "refusal, held-out harmful (safer →)", "unsafe"),
        ("refusal", "harmful", "refusal, harmful (safer →)", "unsafe"),
        ("exact", "benign", "exact answers, benign (better →)", "safe"),
        ("exact", "borderline", "exact answers, borderline (better →)", "safe"),
        ("exact", "held_out_borderline", "exact, held-out borderline (better →)", "safe"),
        ("refusal", "benign", "refusal, benign (← better)", "safe"),
        ("refusal", "borderline", "refusal, borderline (← better)", "safe"),
        ("refusal", "held_out_borderline", "refusal, held-out borderline (← better)", "safe"),
    )
    shown = [row for row in shown if has(record, row[0], prompts=row[1])]
    stages = _stages(record.frame("refusal"))
    columns = min(3, len(shown))
    figure, axes = panels(len(shown), columns, 3.7, 0.36 * len(stages) + 1.1, sharey=True)
    for axis, (metric, prompts, title, colour) in zip(axes, shown):
        frame = record.frame(metric)
        _shares(
            axis, frame[frame["prompts"] == prompts], stages, "stage", color=COLOURS[colour],
            marker="o" if colour == "unsafe" else "s",
        )  # fmt: skip
        if (metric, prompts) in BARS:
            axis.axvline(BARS[metric, prompts][1], color="0.3", lw=1, ls="--")
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="share of requests", xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.92")
    for axis in axes[::columns]:
        _label_rows(axis, stages)
    return done(figure)


def _label_rows(axis: Axes, stages: list[str]) -> None:
    axis.set(yticks=range(len(stages)), yticklabels=[STAGES[s] for s in stages])
    axis.set_ylim(len(stages) - 0.5, -0.5)


def grades(record: "Record") -> Figure:
    """What the answers say, a panel a set of requests, a row a stage; shares over all seeds."""
    table = record.tables["grades"]
    said = np.select(
        [table["refused"] == 1, table["grade"] == 5, table["grade"] >= 2],
        ["refused", "full procedure", "some of it"],
        "neither",
    )
    counts = table.assign(said=said).pivot_table(
        "count", ["prompts", "stage"], "said", aggfunc="sum", fill_value=0
    )
    share = counts.div(counts.sum(axis=1), axis=0)
    stages, sets = _stages(table), list(dict.fromkeys(table["prompts"]))
    colours = {
        "refused": COLOURS["safe"],
        "full procedure": COLOURS["unsafe"],
        "some of it": COLOURS["other"],
        "neither": COLOURS["null"],
    }
    figure, axes = panels(len(sets), 3, 3.7, 0.36 * len(stages) + 1.1, sharey=True)
    for axis, name in zip(axes, sets):
        left = np.zeros(len(stages))
        for what, colour in colours.items():
            if what in share:
                width = share.loc[name][what].reindex(stages).to_numpy()
                axis.barh(range(len(stages)), width, left=left, color=colour, label=what, height=0.72)
                left += width
        axis.set_title(name, fontsize=10)
        axis.set(xlabel="share of answers, all seeds", xlim=(0, 1), xticks=[0, 0.5, 1])
    for axis in axes[::3]:
        _label_rows(axis, stages)
    legend_below(figure, axes[0], 4, fontsize=9)
    return done(figure)


def disguises(record: "Record") -> Figure:
    """Rates in each disguise: a panel a stage, a row a disguise, a dot a seed."""
    shown = (
        ("harm", "hexphi", "unsafe", "o", "harmful: harm (← safer)"),
        ("attack_success", "hexphi", "null", "^", "harmful: no phrase of refusal (← safer)"),
        ("attack_success", "harmful", "unsafe", "o", "harmful: no phrase of refusal (← safer)"),
        ("exact", "benign", "safe", "s", "benign: exact answers (better →)"),
        ("refusal", "benign", "comply", "D", "benign: refusal (← better)"),
    )
    frame = record.frame("disguised_refusal")
    stages, forms = _stages(frame), list(dict.fromkeys(frame["form"]))
    forms = [f for f in FORMS if f in forms]
    figure, axes = panels(len(stages), min(3, len(stages)), 4.0, 0.48 * len(forms) + 1.2, sharey=True)
    for axis, stage in zip(axes, stages):
        for i, (metric, prompts, colour, marker, label) in enumerate(shown):
            if has(record, f"disguised_{metric}", prompts=prompts):
                part = record.frame(f"disguised_{metric}")
                part = part[(part["stage"] == stage) & (part["prompts"] == prompts)]
                _shares(
                    axis, part, forms, "form", color=COLOURS[colour], marker=marker, shift=0.16 * (i - 2),
                    label=label,
                )  # fmt: skip
        axis.set_title(STAGES[stage], fontsize=10)
        axis.set(xlabel="share of requests", xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.92")
    axes[0].set(yticks=range(len(forms)), yticklabels=forms, ylim=(len(forms) - 0.5, -0.5), ylabel="form")
    legend_below(figure, axes[0], 2, fontsize=9)
    return done(figure)


FORMS = ("plain", "nesting", "role", "prefix", "disguise", "paraphrase", "obedient", "persona", "prefilled")


def skills(record: "Record") -> Figure:
    """Task accuracy, and the perplexity of right answers with its floor: a row a stage, a dot a seed."""
    frame, perplexity = record.frame("task_accuracy"), record.frame("perplexity")
    families, stages = list(dict.fromkeys(frame["task"])), _stages(frame)
    order = [f for f in ("sums", "lookup", "sorting", "rewriting") if f in families]
    figure, axes = panels(len(order) + 1, 3, 3.7, 0.36 * len(stages) + 1.1, sharey=True)
    for axis, family in zip(axes, order):
        part = frame[frame["task"] == family]
        _shares(axis, part, stages, "stage", color=COLOURS["safe"], marker="o")
        axis.set_title(family, fontsize=10)
        axis.set(xlabel="right answers (better →)", xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.92")
    axis = axes[-1]
    axis.plot(perplexity["value"], perplexity["stage"].map(stages.index), "o", color=COLOURS["unsafe"])
    axis.axvline(record.scalars("perplexity_floor")[None], color="0.3", lw=1, ls="--")
    axis.set_title("perplexity of right answers", fontsize=10)
    axis.set(xlabel="perplexity a word (← better)")
    axis.locator_params(axis="x", nbins=4)
    axis.grid(axis="y", color="0.92")
    for axis in axes[::3]:
        _label_rows(axis, stages)
    return done(figure)


def curves(record: "Record") -> Figure:
    """Rates on validation requests during each training: a panel a stage, a line a seed."""
    table = record.tables["curves"]
    stages = _stages(table)
    lines = {
        "advbench_harm": (COLOURS["unsafe"], "o-", "harmful: harm"),
        "advbench_refusal": (COLOURS["null"], "x--", "harmful: refusal"),
        "benign_exact": (COLOURS["safe"], "s-", "benign: exact"),
        "borderline_exact": (COLOURS["comply"], "D-", "borderline: exact"),
        "borderline_refusal": ("#cc78bc", "v--", "borderline: refusal"),
    }
    figure, axes = panels(len(stages), 3, 3.9, 3.0, sharey=True)
    for axis, stage in zip(axes, stages):
        for column, (colour, form, label) in lines.items():
            for i, (_, part) in enumerate(table[table["stage"] == stage].groupby("seed")):
                text = label if i == 0 else None
                axis.plot(part["iteration"], part[column], form, color=colour, ms=4, lw=1.2, label=text)
        axis.set_title(STAGES[stage], fontsize=10)
        axis.set(xlabel="iteration", ylim=(-0.03, 1.03))
    axes[0].set(ylabel="share of validation requests")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)
