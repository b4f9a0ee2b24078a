"""Figures of what defences do inside. Tables of the record that are read: `behaviour`, `clusters`, `reads`, `sensitivity`."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safebook.plots import COLOURS, done, legend_below, panels
from safebook.plots.risks import pooled

if TYPE_CHECKING:
    from safebook.results import Record

#: Case -> name, colour, marker.
CASES = {
    "aligned": ("aligned", "0.25", "P"),
    "fine-tuned": ("fine-tuned (plain)", COLOURS["unsafe"], "o"),
    "harmless rows": ("control: harmless rows", "#ca9161", "X"),
    "lock, response": ("lock, arm response", "#0173b2", "s"),
    "random lock, response": ("random directions, response", "#8fc1e3", "s"),
    "lock, prompt": ("lock, arm prompt", "#0173b2", "D"),
    "random lock, prompt": ("random directions, prompt", "#8fc1e3", "D"),
    "spf": ("SPF", COLOURS["comply"], "^"),
    "random subspace": ("random subspace, SPF's rank", "#7fd1b9", "^"),
    "mixing": ("loss mixing, same anchor", "#cc78bc", "v"),
}
CONTROLS = ("harmless rows", "random lock, response", "random lock, prompt", "random subspace")
STEP = "plain, step "
MEANS = {"own": "own means", "aligned": "the aligned model's means"}
#: Column of `behaviour`, label, column of the number of answers.
BEHAVIOUR = (
    ("refusal", "refused, forbidden\n(share, ↑ safer)", "n"),
    ("harm", "harmful rate\n(share, ↓ safer)", "n"),
    ("broken", "broken, forbidden\n(share, ↓ better)", "n"),
    ("exact", "exact, harmless\n(share, ↑ better)", "harmless_n"),
    ("matched_refusal", "refused, matched\n(share, ↓ better)", "matched_n"),
    ("harmless_refusal", "refused, harmless\n(share, ↓ better)", "harmless_n"),
)
#: Metric, which means, label.
INSIDE = (
    ("separation", "own", "S, own means\n(÷ √width, ↑ apart)"),
    ("separation", "aligned", "S, aligned means\n(÷ √width, ↑ apart)"),
    ("tau_forbidden", "aligned", "tau, forbidden\n(÷ √width, ↓ refusing side)"),
    ("tau_allowed", "aligned", "tau, allowed\n(÷ √width, ↑ allowed side)"),
    ("accuracy", "own", "nearest mean\n(share, ↑ apart)"),
)
MEASURES = {"projection": "leading directions (M3)", "gain": "whole update (M4)"}


def cases(record: "Record") -> list[str]:
    """The record's cases in the book's order: earlier states of plain fine-tuning after the aligned model, unknown ones last."""
    found = list(dict.fromkeys(record.tables["behaviour"]["case"]))
    steps = sorted((c for c in found if c.startswith(STEP)), key=lambda c: int(c.removeprefix(STEP)))
    known = [case for case in CASES if case in found]
    first = [case for case in known if case == "aligned"]
    rest = [case for case in known if case != "aligned"]
    return [*first, *steps, *rest, *(c for c in found if c not in {*steps, *known})]


def defended(record: "Record") -> list[str]:
    """Defences and their controls."""
    return [c for c in cases(record) if c in CASES and c not in ("aligned", "fine-tuned")]


def contrasts(record: "Record") -> list[str]:
    return list(dict.fromkeys(record.tables["clusters"]["contrast"]))


def name(case: str) -> str:
    """A case's name in the book; a checkpoint goes by the last part of its path."""
    if case in CASES:
        return CASES[case][0]
    if case.startswith(STEP):
        return f"plain, after {case.removeprefix(STEP)} steps"
    model, colon, rest = case.partition(": ")
    return model.rstrip("/").rpartition("/")[2] + colon + rest


def look(case: str) -> tuple[str, str]:
    """Colour and marker."""
    if case in CASES:
        return CASES[case][1:]
    locked = case.partition(": ")[2]
    return CASES[locked][1:] if locked in CASES else (COLOURS["unsafe"], "o")


def _series(record: "Record", metric: str, case: str, **labels) -> dict[int, float]:
    frame = record.frame(metric)
    for label, value in {"case": case, **labels}.items():
        frame = frame[frame[label] == value]
    return dict(zip(frame["seed"], frame["value"]))


def plane(record: "Record") -> Figure:
    """Refusals against the separation as a share of the aligned model's, by own and by the aligned model's means (matched)."""
    figure, axes = panels(2, 2, 5.0, 4.2, sharey=True)
    course = ["aligned", *(c for c in cases(record) if c.startswith(STEP)), "fine-tuned"]
    shown = [c for c in cases(record) if not c.startswith(STEP)]
    for axis, means in zip(axes, MEANS):
        labels = {"contrast": "matched", "means": means}
        whole = _series(record, "separation", "aligned", **labels)

        def place(case: str, labels=labels, whole=whole) -> tuple[list[float], list[float]]:
            inside, said = _series(record, "separation", case, **labels), _series(record, "refusal", case)
            return [inside[s] / whole[s] for s in whole], [said[s] for s in whole]

        points = np.array([place(case) for case in course])  # (cases, 2, seeds)
        for seed in range(points.shape[2]):
            axis.plot(points[:, 0, seed], points[:, 1, seed], "-", color=COLOURS["unsafe"], lw=0.7, alpha=0.4)
        axis.plot(
            *points.mean(2).T, "-", color=COLOURS["unsafe"], lw=2, label="plain fine-tuning, its course"
        )
        axis.plot(*points.mean(2)[1:-1].T, ".", color=COLOURS["unsafe"], ms=7)
        for case in shown:
            colour, marker = look(case)
            fill = {"markerfacecolor": "none"} if case in CONTROLS else {}
            x, y = place(case)
            axis.plot(x, y, marker, color=colour, ms=4.5, alpha=0.5, **fill)
            axis.plot(np.mean(x), np.mean(y), marker, color=colour, ms=10, mew=1.8, label=name(case), **fill)
        axis.axvline(1, color="0.8", lw=0.8, ls=":")
        axis.set_xlabel(f"separation, {MEANS[means]}\n(share of the aligned model's, → apart)", fontsize=9)
        axis.set_ylabel("refused, forbidden requests\n(share, ↑ safer)", fontsize=9)
        axis.set_ylim(-0.05, 1.05)
    legend_below(figure, axes[0], 3, fontsize=8)
    return done(figure)


def everything(record: "Record") -> Figure:
    """A row a case, a panel a measure: behaviour above, inside below; dots are seeds, bars intervals of shares."""
    shown, table = cases(record), record.tables["behaviour"]
    said = [m for m in BEHAVIOUR if m[0] in table]
    contrast = "matched" if "matched" in contrasts(record) else contrasts(record)[0]
    ratios = record.tables["sensitivity"]
    count = max(len(said), len(INSIDE) + 1)
    figure, axes = panels(2 * count, count, 2.05, 0.25 * len(shown) + 1.1, sharey=True)
    for j in range(count):
        for axis, there in ((axes[j], j < len(said)), (axes[count + j], j <= len(INSIDE))):
            axis.set_visible(there)
    for y, case in enumerate(shown):
        colour, marker = look(case)
        part = table[table["case"] == case]

        def mark(axis, values, y=y, colour=colour, marker=marker) -> None:
            axis.plot(values, [y] * len(values), marker, color=colour, ms=4.5, alpha=0.75)
            axis.plot(np.mean(values), y, "|", color="0.1", ms=10, mew=1.4)

        for axis, (column, _, n) in zip(axes, said):
            _, low, high = pooled(part.assign(n=part[n]), column)
            axis.hlines(y, low, high, color=colour, lw=5, alpha=0.2)
            mark(axis, part[column])
        for axis, (metric, means, _) in zip(axes[count:], INSIDE):
            mark(axis, list(_series(record, metric, case, contrast=contrast, means=means).values()))
        own = ratios[(ratios["case"] == case) & (ratios["contrast"] == contrast)]["log2_ratio"]
        mark(axes[count + len(INSIDE)], own)
    labels = [m[1] for m in said] + [""] * (count - len(said)) + [m[2] for m in INSIDE]
    labels.append("sensitivity\n(log2 forbidden / allowed)")
    for axis, label in zip(axes, labels):
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(2))
        axis.grid(axis="y", color="0.93")
        first = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "|"]
        if first:
            axis.axvline(first[0], color="0.5", lw=0.8, ls=":")
    for axis in axes[: len(said)]:
        axis.set_xlim(-0.05, 1.05)
    for axis in (axes[0], axes[count]):
        axis.set_yticks(range(len(shown)), [name(case) for case in shown], fontsize=8)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_ylabel("case", fontsize=8)
    return done(figure)


def by_layer(record: "Record", contrast: str, means: str) -> Figure:
    """Separation against the layer, three panels: course of the attack, locks, arms that train; with aligned and fine-tuned."""
    table = record.tables["clusters"]
    table = table[(table["contrast"] == contrast) & (table["means"] == means)]
    found = cases(record)
    groups = {
        "plain fine-tuning": [c for c in found if c.startswith(STEP) or c == "harmless rows"],
        "locks": [c for c in found if "lock," in c],
        "defended training": [c for c in found if c in ("spf", "random subspace", "mixing")],
        "models": [c for c in found if c not in CASES and not c.startswith(STEP) and "lock," not in c],
    }
    groups = {title: part for title, part in groups.items() if part}
    figure, axes = panels(len(groups), len(groups), 4.0, 3.6, sharey=True)
    for axis, (title, part) in zip(axes, groups.items()):
        ends = [c for c in ("aligned", "fine-tuned") if c in found]
        for i, case in enumerate([*ends, *part]):
            colour, marker = look(case)
            if case.startswith(STEP):
                colour, marker = ("#f6c7a1", "#eda36b", "#e1782f")[i % 3], "."
            lines = table[table["case"] == case].pivot_table("separation", "layer", "seed")
            fill = {"markerfacecolor": "none"} if case in CONTROLS else {}
            axis.plot(lines.index, lines, color=colour, lw=0.6, alpha=0.4)
            axis.plot(
                lines.index, lines.mean(axis=1), marker=marker, ms=5, color=colour, lw=1.6, label=name(case), **fill
            )  # fmt: skip
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("layer")
        axis.set_ylabel("S / √width (↑ apart)", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.legend(fontsize=7, frameon=False)
    return done(figure)


def reading(record: "Record") -> Figure:
    """What updates read, mean over the upper layers: a row a case, columns M3 and M4, rows of panels the updates."""
    table = record.tables["reads"]
    contrast = "matched" if "matched" in set(table["contrast"]) else table["contrast"].iloc[0]
    table = table[(table["contrast"] == contrast) & (2 * table["layer"] > table["layer"].max())]
    mean = table.groupby(["update", "measure", "case", "seed"])[["measured", "low", "high"]].mean()
    updates = [u for u in ("since pretraining", "of fine-tuning") if u in set(table["update"])]
    shown = [c for c in cases(record) if c in set(table["case"])]
    figure, axes = panels(2 * len(updates), 2, 4.6, 0.24 * len(shown) + 1.0, sharey=True)
    places = [(update, measure) for update in updates for measure in MEASURES]
    for axis, (update, measure) in zip(axes, places):
        for y, case in enumerate(shown):
            if (update, measure, case) not in mean.index.droplevel("seed"):
                continue
            part: pd.DataFrame = mean.loc[(update, measure, case)]
            colour, marker = look(case)
            axis.hlines(y, part["low"].mean(), part["high"].mean(), color="0.8", lw=6)
            axis.plot(part["measured"], [y] * len(part), marker, color=colour, ms=5, alpha=0.75)
            axis.plot(part["measured"].mean(), y, "|", color="0.1", ms=10, mew=1.4)
        axis.axvline(0, color="0.5", lw=0.8)
        axis.set_title(f"{update}: {MEASURES[measure]}", fontsize=9)
        axis.set_xlabel(f"log2 (forbidden / {contrast})  (→ reads forbidden more)", fontsize=8)
        axis.grid(axis="y", color="0.93")
    for axis in axes[::2]:
        axis.set_yticks(range(len(shown)), [name(case) for case in shown], fontsize=8)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_ylabel("case", fontsize=8)
    axes[0].plot([], [], color="0.8", lw=6, label="random updates")
    axes[0].plot([], [], "|", color="0.1", ms=10, label="mean of the seeds")
    legend_below(figure, axes[0], 2, fontsize=8)
    return done(figure)
