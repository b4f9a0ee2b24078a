"""Figures of what a lock costs: ability, over-refusal and broken text against its strength, and beside repairs.

Tables of the record that are read: `curve` (validation: a row a model, seed, arm and strength) and `test` (a row a model, seed,
treatment and arm). Columns of measures: `lock_tests.utility`.
"""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.restoring import ARMS
from safebook.plots.risks import LEVEL_COLOURS, colour, in_order, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safebook.results import Record

MARKERS = {"level1": "s", "level2": "^", "level3": "o"}
FAMILIES = ("sums", "lookup", "sorting", "rewriting")
#: Column -> label, whether it is a share.
MEASURES = {
    "harm": ("harmful rate\n(hexphi, share, ↓ safer)", True),
    "attack_success": ("ASR\n(harmful prompts, share, ↓ safer)", True),
    "exact": ("exact answers\n(benign, share, ↑ better)", True),
    "accuracy": ("task accuracy, mean of four\n(share, ↑ better)", True),
    "benign_refusal": ("over-refusal\n(benign, share, ↓ better)", True),
    "borderline_refusal": ("over-refusal\n(borderline, share, ↓ better)", True),
    "benign_broken": ("broken text\n(benign, share, ↓ better)", True),
    "perplexity": ("perplexity\n(held-out dialogues, log, ↓ better)", False),
    "dist1": ("dist-1\n(answers to benign requests, share)", True),
}
TREATMENTS = {
    "none": ("0.25", "D"),
    "lock": (COLOURS["safe"], "o"),
    "random directions": (COLOURS["null"], "x"),
    "safety SFT": (COLOURS["comply"], "^"),
    "DPO": (COLOURS["unsafe"], "v"),
    "task vector": ("#cc78bc", "P"),
}


def measures(record: "Record") -> list[str]:
    """The measures that the record has, in the book's order."""
    return [column for column in MEASURES if column in record.tables["curve"]]


def _marker(risk: str) -> str:
    return MARKERS.get(risk.split("_")[0], "D")


def _axis(axis: "Axes", column: str) -> None:
    label, is_share = MEASURES[column]
    axis.set_ylabel(label, fontsize=8)
    if is_share:
        axis.set_ylim(-0.04, 1.04)
    else:
        axis.set_yscale("log")


def curves(record: "Record", arm: str) -> Figure:
    """Validation: every measure against alpha, a colour a model, all seeds and their mean. The dotted line: alpha in use."""
    table = record.tables["curve"]
    table = table[table["position"] == arm]
    shown, models = measures(record), in_order(table["risk"])
    figure, axes = panels(len(shown), 3, 3.7, 2.6)
    used = table.loc[(table["multiple"] - 1).abs().idxmin(), "alpha"]
    for axis, column in zip(axes, shown):
        axis.axvline(used, color="0.3", lw=1.1, ls=":")
        for risk in models:
            part = table[table["risk"] == risk]
            shade = colour(risk) if risk == "aligned" or risk.split("_")[0] in LEVEL_COLOURS else None
            mean = part.groupby("alpha")[column].mean()
            (line,) = axis.plot(mean.index, mean, color=shade, lw=1.4)
            axis.plot(
                part["alpha"], part[column], _marker(risk), color=line.get_color(), ms=4.5, alpha=0.7,
                label=name(risk),
            )  # fmt: skip
        axis.set_xlabel("alpha (spreads sigma of a head)", fontsize=9)
        _axis(axis, column)
    axes[0].plot([], [], ":", color="0.3", label="alpha in use")
    figure.suptitle(f"{ARMS[arm][2]}, validation prompts", fontsize=10)
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def multiples(record: "Record") -> list[float]:
    """Strengths of the curve, as multiples of the strength in use."""
    return sorted(set(record.tables["curve"]["multiple"]))


def at_strength(record: "Record", multiple: float) -> Figure:
    """Validation at one strength: a row a measure that is a share, a mark a model and seed, a panel an arm.

    The grey mark of each row is the mean without a lock.
    """
    table = record.tables["curve"]
    shown = [column for column in measures(record) if MEASURES[column][1]]
    arms = [arm for arm in ARMS if arm in set(table["position"])]
    models = in_order(table["risk"])
    figure, axes = panels(len(arms), 2, 5.6, 0.46 * len(shown) + 1.5, sharey=True)
    for axis, arm in zip(axes, arms):
        of = table[table["position"] == arm]
        part, without = (of[(of["multiple"] - m).abs() < 1e-9] for m in (multiple, 0.0))
        for y, column in enumerate(shown):
            for k, risk in enumerate(models):
                at = y + 0.18 * (k - (len(models) - 1) / 2)
                values = part[part["risk"] == risk][column]
                axis.plot(without[without["risk"] == risk][column].mean(), at, "|", color="0.6", ms=9, mew=2)
                axis.plot(values, [at] * len(values), _marker(risk), color=colour(risk), ms=4.5, alpha=0.8)
        axis.set_title(f"{ARMS[arm][2]}: alpha = {part['alpha'].iloc[0]:g}", fontsize=10)
        axis.set(xlim=(-0.04, 1.04), xlabel="share")
        axis.grid(axis="y", color="0.92")
    axes[0].set_yticks(range(len(shown)), [MEASURES[c][0].replace("\n", " ") for c in shown], fontsize=8)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    for risk in models:
        axes[0].plot([], [], _marker(risk), color=colour(risk), label=name(risk))
    axes[0].plot([], [], "|", color="0.6", ms=9, mew=2, label="without a lock, mean")
    legend_below(figure, axes[0], 5, fontsize=9)
    return done(figure)


def families(record: "Record") -> Figure:
    """Test: accuracy in each task family, a panel a model, a mark a seed: no lock, each arm's lock, random directions."""
    table = record.tables["test"]
    models = in_order(table["risk"])
    figure, axes = panels(len(models), 4, 3.4, 3.0, sharey=True, sharex=True)
    kinds = [
        ("none", "none"),
        *((t, a) for a in ("response", "prompt") for t in ("lock", "random directions")),
    ]
    for axis, risk in zip(axes, models):
        for k, (treatment, arm) in enumerate(kinds):
            part = _of(table, risk, treatment, arm)
            shade, marker, words = ARMS[arm]
            hollow = {"markerfacecolor": "none"} if treatment == "random directions" else {}
            text = words if treatment != "random directions" else f"{words}: random directions"
            for x, family in enumerate(FAMILIES):
                values = part[f"accuracy_{family}"]
                axis.plot(
                    [x + 0.15 * (k - 2)] * len(values), values, marker, color=shade, ms=5, alpha=0.8,
                    label=text if x == 0 else None, **hollow,
                )  # fmt: skip
        axis.set_title(name(risk), fontsize=9)
        axis.set_xticks(range(len(FAMILIES)), FAMILIES, fontsize=9)
        axis.set(ylim=(-0.04, 1.04), xlabel="task family", ylabel="accuracy (share, ↑ better)")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)


def _of(table: pd.DataFrame, risk: str, treatment: str, arm: str) -> pd.DataFrame:
    same = (table["risk"] == risk) & (table["treatment"] == treatment)
    return table[same & (table["position"] == arm)]


def trade_off(record: "Record") -> Figure:
    """Test: harmful rate against three abilities for the lock and the repairs that stop where it is; a panel an arm's target."""
    table = record.tables["test"]
    repaired = in_order(table[table["treatment"] == "DPO"]["risk"])
    shown = ("accuracy", "exact", "borderline_refusal")
    cells = [(risk, arm) for risk in repaired for arm in ("response", "prompt")]
    figure, axes = panels(len(cells) * len(shown), len(shown), 3.9, 3.0, sharex=True)
    for i, (risk, arm) in enumerate(cells):
        for j, column in enumerate(shown):
            axis = axes[i * len(shown) + j]
            for treatment, (shade, marker) in TREATMENTS.items():
                part = _of(table, risk, treatment, "none" if treatment == "none" else arm)
                if not len(part):
                    continue
                axis.plot(
                    part["harm"],
                    part[column],
                    marker,
                    color=shade,
                    ms=6,
                    alpha=0.55,
                    mew=1.5,
                    label=treatment,
                )
                axis.plot(part["harm"].mean(), part[column].mean(), marker, color=shade, ms=10, mew=2)
            axis.set(xlim=(-0.04, 1.04), xlabel="harmful rate (hexphi, share, ↓ safer)")
            _axis(axis, column)
        axes[i * len(shown)].set_title(f"{name(risk)}; {ARMS[arm][2]}", fontsize=9, loc="left")
    legend_below(figure, axes[0], 6, fontsize=9)
    return done(figure)


def beside_paper(record: "Record", paper: pd.DataFrame, risk: str = "level3") -> pd.DataFrame:
    """A row a measure, a column a treatment: ours (mean of the seeds, arm of the published position) and the paper's.

    `paper`: data/paper/safetylock/utility.csv. The measures are not the same: ours stand for theirs. Accuracies and dist-1
    in percent.
    """
    table = record.tables["test"]
    rows = {}
    for column in [*(f"accuracy_{f}" for f in FAMILIES), "accuracy", "exact", "dist1", "perplexity"]:
        scale = 1 if column == "perplexity" else 100
        label = f"ours: {column.replace('accuracy_', 'accuracy, ').replace('dist1', 'dist-1')}"
        rows[label] = {}
        for treatment in TREATMENTS:
            part = _of(table, risk, treatment, "none" if treatment == "none" else "response")
            if len(part):
                rows[label][treatment] = f"{round(scale * float(part[column].mean()), 1):g}"
    known = {
        "none": "none",
        "safetylock": "lock",
        "DPO": "DPO",
        "PPO": "PPO",
        "model editing": "model editing",
    }
    printed = paper[(paper["version"] == 2024) & (paper["fine_tuned_on"] == "alpaca")]
    for row in printed.itertuples():
        sign = {"is": "", "at least": "≥ ", "at most": "≤ "}[row.bound]
        text = f"{sign}{round(float(row.value), 1):g}"
        rows.setdefault(f"paper: {row.measure}", {})[known[row.defence]] = text
    wide = pd.DataFrame(rows).T
    return wide[[c for c in (*TREATMENTS, "PPO", "model editing") if c in wide]].fillna("")
