"""Figures of paper 1's check on Llamas: distances to the two clusters, and the update of the gate projections.

Tables of the record that are read: `tau` (mean and sd per layer), `separation`, `jailbreaks`, `writes`, `reads`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safebook.attacks import wilson
from safebook.plots import COLOURS, done, legend_below

if TYPE_CHECKING:
    import pandas as pd

    from safebook.results import Record

STAGES = {"base": "base", "chat": "chat", "benign": "chat after harmless training"}
STAGE_COLOURS = {"base": "0.55", "chat": COLOURS["unsafe"], "benign": COLOURS["comply"]}
UPDATES = {
    "alignment": ("alignment: chat minus base", COLOURS["unsafe"], "o"),
    "benign": ("control: harmless training", COLOURS["comply"], "s"),
}
#: Kind of prompt -> colour, marker, name.
KINDS = {
    "safe": (COLOURS["safe"], "o", "safe"),
    "unsafe": (COLOURS["unsafe"], "*", "unsafe"),
    "jailbreak": ("#cc78bc", "^", "jailbreak"),
    "borderline": (COLOURS["comply"], "s", "matched safe"),
}
POSITIONS = {"answer": "answer tokens", "decision": "deciding token"}
CONTRASTS = {"plain": "safe against unsafe", "matched": "matched safe against unsafe"}
NEARER = "tau / √width  (↑ nearer to safe)"
#: Of the published figure: test prompts whose values were added up, and width of the models.
SUMMED, WIDTH = 5, 4096


def has(record: "Record", **labels) -> bool:
    """Is there such a series? A run on checkpoints may lack the control, the jailbreaks and the matched prompts."""
    frame = record.frame()
    for name, value in labels.items():
        frame = frame[frame[name] == value] if name in frame else frame[:0]
    return len(frame) > 0


def width(record: "Record") -> float:
    """Units that an MLP reads; tau over its root compares models of different widths."""
    return next(iter(record.scalars("width").values()))


def _lines(axis: Axes, table: "pd.DataFrame", scale: float, band: bool) -> None:
    """Mean tau against depth, a line a kind and seed; band: one standard deviation over prompts."""
    for kind, (colour, marker, name) in KINDS.items():
        for i, (_, line) in enumerate(table[table["prompts"] == kind].groupby("seed")):
            depth, mean = line["layer"] / table["layer"].max(), line["mean"] / scale
            label = name if i == 0 else None
            axis.plot(depth, mean, marker=marker, ms=4, lw=1, color=colour, label=label)
            if band:
                sd = line["sd"] / scale
                axis.fill_between(depth, mean - sd, mean + sd, color=colour, alpha=0.1, lw=0)
    axis.axhline(0, color="0.7", lw=0.8)


def published_scales(record: "Record", published: "pd.DataFrame") -> Figure:
    """The published tau on its own scale and per prompt, and ours: rows base and chat, x is depth.

    `published`: data/paper/pcfg/llama_tau.csv. Ours: answer tokens, safe against unsafe.
    """
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.2), sharex=True, layout="constrained")
    reported = published[published["measure"] == "euclidean"]
    ours = record.tables["tau"].query(
        "position == 'answer' and contrast == 'plain' and metric == 'euclidean'"
    )
    for row, stage in zip(axes, ("base", "chat")):
        here = reported[reported["variant"] == stage]
        for model, dash in (("llama-3-8b", "-"), ("llama-2-7b", ":")):
            for kind, (colour, marker, name) in KINDS.items():
                line = here[(here["model"] == model) & (here["prompts"] == kind)]
                if not len(line):
                    continue
                depth, label = line["layer"] / 32, name if model == "llama-3-8b" else None
                style = {"ls": dash, "color": colour, "marker": marker, "ms": 3, "lw": 1, "label": label}
                row[0].plot(depth, line["mean"], **style)
                row[1].plot(depth, line["mean"] / SUMMED / WIDTH**0.5, **style)
        for axis in row[:2]:
            axis.axhline(0, color="0.7", lw=0.8)
        own = ours[(ours["stage"] == stage) & (ours["prompts"] != "borderline")]  # not in the paper
        _lines(row[2], own, width(record) ** 0.5, band=False)
        row[0].set_ylabel(f"{STAGES[stage]} model\ntau (↑ nearer to safe)")
        for axis in row[1:]:
            axis.set_ylabel("tau / √width  (↑)")
    titles = (
        "published, as drawn:\nthe sum of five prompts",
        "published, per prompt:\ndivided by five",
        "measured here",
    )
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    for axis in axes[1]:
        axis.set_xlabel("depth (layer / layers)")
    axes[1, 0].plot([], [], ":", color="0.4", label="dotted: Llama-2-7B; solid: Llama-3-8B")
    for axis in (axes[0, 1], axes[1, 1]):
        axis.sharey(axes[1, 1])
    legend_below(figure, axes[1, 0], 5, fontsize=9)
    return done(figure)


def places(record: "Record") -> Iterator[tuple[str, str]]:
    """The pairs of position and contrast that the record has."""
    table = record.tables["tau"]
    for position in POSITIONS:
        for contrast in CONTRASTS:
            if ((table["position"] == position) & (table["contrast"] == contrast)).any():
                yield position, contrast


def tau_by_layer(record: "Record", position: str, contrast: str, metric: str = "euclidean") -> Figure:
    """Mean tau against depth, a panel a model, a line a seed, band: one sd over the prompts of that seed."""
    table = record.tables["tau"]
    table = table[
        (table["position"] == position) & (table["contrast"] == contrast) & (table["metric"] == metric)
    ]
    stages = [s for s in STAGES if s in set(table["stage"])]
    figure, axes = plt.subplots(
        1, len(stages), figsize=(3.9 * len(stages), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, stage in zip(axes[0], stages):
        scale = width(record) ** 0.5 if metric == "euclidean" else 1.0
        _lines(axis, table[table["stage"] == stage], scale, band=True)
        axis.set_title(STAGES[stage], fontsize=10)
        axis.set(xlabel="depth (layer / layers)")
    axes[0, 0].set_ylabel(NEARER if metric == "euclidean" else "cosine tau (↑ nearer to safe)")
    figure.suptitle(f"{POSITIONS[position]}; {CONTRASTS[contrast]}", fontsize=11)
    legend_below(figure, axes[0, 0], 4, fontsize=9)
    return done(figure)


def separation(record: "Record") -> Figure:
    """Separation and nearest-mean accuracy against depth, a column a position and contrast, a line a seed."""
    table, columns = record.tables["separation"], list(places(record))
    figure, axes = plt.subplots(
        2, len(columns), figsize=(2.9 * len(columns) + 0.6, 5.4), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, (position, contrast) in zip(axes.T, columns):
        part = table[(table["position"] == position) & (table["contrast"] == contrast)]
        for axis, measure in zip(column, ("separation", "accuracy")):
            for stage in (s for s in STAGES if s in set(part["stage"])):
                for i, (_, line) in enumerate(part[part["stage"] == stage].groupby("seed")):
                    name = STAGES[stage] if i == 0 else None
                    depth, colour = line["layer"] / part["layer"].max(), STAGE_COLOURS[stage]
                    axis.plot(depth, line[measure], marker="o", ms=3, lw=1, color=colour, label=name)
        column[0].axhline(0, color="0.7", lw=0.8)
        column[1].axhline(0.5, color="0.7", lw=0.8)
        column[0].set_title(f"{POSITIONS[position]}\n{CONTRASTS[contrast]}", fontsize=9)
        column[1].set_xlabel("depth (layer / layers)")
    axes[0, 0].set_ylabel("S / √width  (↑ apart)")
    axes[1, 0].set_ylabel("nearest-mean\naccuracy (↑ apart)")
    legend_below(figure, axes[0, 0], 3, fontsize=9)
    return done(figure)


def jailbreaks(record: "Record") -> Figure:
    """Success of each disguise, the share of its prompts that lies nearer to the safe mean, and how well tau tells successes."""
    table = record.tables["jailbreaks"]
    kinds = list(dict.fromkeys(table["disguise"]))
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 0.34 * len(kinds) + 1.9), layout="constrained")
    for y, kind in enumerate(kinds):
        part = table[
            (table["disguise"] == kind) & (table["stage"] == "chat") & (table["position"] == "decision")
        ]
        hits, n = int(part["successes"].sum()), int(part["n"].sum())
        axes[0].plot(wilson(hits, n), [y, y], color="0.75", lw=4, solid_capstyle="butt")
        axes[0].plot(
            part["successes"] / part["n"], [y] * len(part), "o", color=COLOURS["unsafe"], ms=6, alpha=0.8
        )
        for stage, shift in (("base", -0.13), ("chat", 0.13)):
            here = table[
                (table["disguise"] == kind) & (table["stage"] == stage) & (table["position"] == "decision")
            ]
            name = STAGES[stage] if y == 0 else None
            height = [y + shift] * len(here)
            axes[1].plot(
                here["called_safe"], height, "o", color=STAGE_COLOURS[stage], ms=6, alpha=0.8, label=name
            )
    for axis in axes[:2]:
        axis.set(
            yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5), xlim=(-0.03, 1.03)
        )
        axis.grid(axis="y", color="0.92")
    axes[0].set(xlabel="share that succeed, chat model", ylabel="disguise")
    axes[1].set(xlabel="share nearer to the safe mean\n(deciding token, upper layers)", yticklabels=[])
    axes[1].axvline(0.5, color="0.7", lw=0.8)
    frame, labels = record.frame("success_auc"), []
    for y, (position, stage) in enumerate((p, s) for p in POSITIONS for s in ("base", "chat")):
        values = frame[(frame["position"] == position) & (frame["stage"] == stage)]["value"]
        axes[2].plot(values, [y] * len(values), "o", color=STAGE_COLOURS[stage], ms=6, alpha=0.8)
        labels.append(f"{POSITIONS[position]}, {stage}")
    axes[2].set(
        yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5), xlim=(-0.03, 1.03)
    )
    axes[2].set(xlabel="AUC: tau tells success from failure (→)")
    axes[2].axvline(0.5, color="0.7", lw=0.8)
    axes[2].grid(axis="y", color="0.92")
    legend_below(figure, axes[1], 2, fontsize=9)
    return done(figure)


def _updates(table: "pd.DataFrame") -> Iterator[tuple[str, str, str, "pd.DataFrame"]]:
    """Name, colour, marker and rows of each update of the table."""
    for update, (name, colour, marker) in UPDATES.items():
        part = table[table["update"] == update]
        if len(part):
            yield name, colour, marker, part


def column_space(record: "Record") -> Figure:
    """Energy and median length of the update outside the column space, a dot a layer and seed; band: random updates."""
    table = record.tables["writes"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True, layout="constrained")
    random = (
        table[table["update"] == "alignment"]
        .groupby("layer")[["expected", "spread", "expected_median"]]
        .mean()
    )
    low, high = random["expected"] - 3 * random["spread"], random["expected"] + 3 * random["spread"]
    axes[0].fill_between(random.index, low, high, color="0.8", lw=0, label="random updates, ±3 sd")
    for axis, null in zip(axes, ("expected", "expected_median")):
        axis.plot(random.index, random[null], color="0.5", lw=1, label="random updates, mean")
    for axis, measure in zip(axes, ("energy", "median")):
        for shift, (name, colour, marker, part) in enumerate(_updates(table)):
            place = part["layer"] + 0.16 * (shift - 0.5)
            axis.plot(place, part[measure], marker, color=colour, ms=5, alpha=0.8, label=name)
        axis.set(xlabel="layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("share of energy outside C(W)\n(↑ where W could not write)")
    axes[1].set_ylabel("median length outside C(W)")
    legend_below(figure, axes[0], 4, fontsize=9)
    return done(figure)


def row_space(record: "Record") -> Figure:
    """log2 of unsafe over safe for what the update reads, a dot a layer and seed; bars: random updates (alignment's spectrum)."""
    table = record.tables["reads"]
    table = table[table["inputs"] == "own"]
    contrasts = [c for c in CONTRASTS if c in set(table["contrast"])]
    figure, axes = plt.subplots(
        len(contrasts), 2, figsize=(10, 2.7 * len(contrasts) + 0.7), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    titles = {"projection": "leading directions (M3)", "gain": "norm of the whole update (M4)"}
    for row, contrast in zip(axes, contrasts):
        for axis, measure in zip(row, titles):
            part = table[(table["contrast"] == contrast) & (table["measure"] == measure)]
            for layer, found in part[part["update"] == "alignment"].groupby("layer"):
                ends = found["random_low"].min(), found["random_high"].max()
                label = "random updates" if layer == part["layer"].min() else None
                axis.plot([layer] * 2, ends, color="0.8", lw=6, solid_capstyle="butt", label=label)
            for shift, (name, colour, marker, dots) in enumerate(_updates(part)):
                place = dots["layer"] + 0.16 * (shift - 0.5)
                axis.plot(place, dots["log2_ratio"], marker, color=colour, ms=5, alpha=0.8, label=name)
            axis.axhline(0, color="0.5", lw=0.8)
            axis.axhline(1, color="0.5", lw=0.8, ls=":")
            axis.set_title(f"{titles[measure]}; {CONTRASTS[contrast]}", fontsize=9)
            axis.xaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel("log2 (unsafe / safe)\n(↑ reads unsafe more)")
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    legend_below(figure, axes[0, 0], 4, fontsize=9)
    return done(figure)
