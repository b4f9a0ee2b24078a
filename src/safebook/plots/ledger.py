"""Figures and tables of the ledger: verdicts, how narrow they are, and what would change them. Reads the table `ledger`."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from safebook.plots import COLOURS, done, legend_below, panels

if TYPE_CHECKING:
    from safebook.results import Record

PAPERS = {
    "pcfg": "part 1, PCFG",
    "llama": "part 1 on Llama",
    "safetylock": "part 2, SafetyLock",
    "spf": "part 3, SPF",
}
#: Verdict -> colour, hatch; in the order of the bars.
VERDICTS = {
    "matches": (COLOURS["comply"], ""),
    "same direction": (COLOURS["safe"], ""),
    "not distinguishable from control": (COLOURS["other"], "//"),
    "differs": (COLOURS["unsafe"], "\\\\"),
    "not meaningful at this size": ("0.75", ""),
    "not run at this size": ("0.9", ""),
}
REPLICATES = ("matches", "same direction")
FAILS = ("not distinguishable from control", "differs")
JUDGED = (*REPLICATES, *FAILS)
ORIGINS = {"published": "published, with a value or a direction", "ours": "ours: controls, stricter forms"}
NUMBERS = ("value", "low", "high", "null", "threshold", "control", "needed", "more_seeds", "seeds")
CLIP = 30  # half-widths of the interval; margins beyond are drawn there


def table(record: "Record") -> pd.DataFrame:
    """The ledger with its numbers as numbers, nan where there are none."""
    found = record.tables["ledger"].copy()
    numeric = [c for c in found if c in NUMBERS or c.endswith(("_margin", "_half", "_beyond"))]
    found[numeric] = found[numeric].apply(pd.to_numeric, errors="coerce")
    return found


def paper_name(paper: str) -> str:
    return PAPERS.get(paper, paper)


def papers_of(found: pd.DataFrame) -> list[str]:
    return [p for p in PAPERS if p in set(found["paper"])]


def ratio(found: pd.DataFrame, kind: str) -> pd.Series:
    """Margin of a test in half-widths of its interval: above 1 it holds, below -1 the mean certainly falls short.

    An interval of no width counts as infinitely narrow; nan where the test was not made or lies exactly on its bar.
    """
    margin, half = found[f"{kind}_margin"].astype(float), found[f"{kind}_half"].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return margin / half


def closest(found: pd.DataFrame) -> pd.Series:
    """The smaller of the ratios of null and control, in half-widths: the test that decides."""
    return pd.concat([ratio(found, "null"), ratio(found, "control")], axis=1).min(axis=1)


# -------------------------------------------------------------------- figures


def verdicts(record: "Record") -> Figure:
    """Claims by verdict: a panel each by part, by the tests that they must pass, and by whose claims they are."""
    found = table(record)
    parts = (
        ("paper", papers_of(found), paper_name, "part"),
        ("tests", sorted(set(found["tests"])), str, "tests"),
    )
    parts += (("origin", [o for o in ORIGINS if o in set(found["origin"])], ORIGINS.get, "whose claim"),)
    figure, axes = panels(len(parts), 1, 7.2, 1.75)
    for axis, (column, names, label, title) in zip(axes, parts):
        counts = pd.crosstab(found[column], found["verdict"]).reindex(names)
        left = np.zeros(len(names))
        for verdict, (shade, hatch) in VERDICTS.items():
            if verdict not in counts:
                continue
            width = counts[verdict].to_numpy()
            bar = {"color": shade, "hatch": hatch, "edgecolor": "white", "label": verdict}
            axis.barh(range(len(names)), width, left=left, **bar)
            for y, (start, wide) in enumerate(zip(left, width)):
                if wide:
                    dark = verdict in ("differs", "same direction", "matches")
                    place = {
                        "ha": "center",
                        "va": "center",
                        "fontsize": 8,
                        "color": "white" if dark else "0.1",
                    }
                    box = {"facecolor": shade, "edgecolor": "none", "pad": 0.8}
                    axis.text(start + wide / 2, y, str(int(wide)), bbox=box, **place)
            left = left + width
        axis.set_yticks(range(len(names)), list(map(label, names)), fontsize=9)
        axis.set(xlabel="claims", ylabel=title)
        axis.set_ylim(len(names) - 0.5, -0.5)
    legend_below(figure, axes[0], 3, fontsize=8.5)
    return done(figure)


def margins(record: "Record") -> Figure:
    """How far each judged claim lies beyond its null and beyond its control, in half-widths of the interval, by part."""
    found = table(record)
    found = found[found["verdict"].isin(JUDGED)]
    names = papers_of(found)
    figure, axes = panels(2, 2, 4.6, 0.75 * max(1, len(names)) + 1.6, sharey=True)
    for axis, kind in zip(axes, ("null", "control")):
        for y, paper in enumerate(names):
            part = found[found["paper"] == paper]
            values = ratio(part, kind).clip(-CLIP, CLIP)
            order = values.argsort().argsort()  # a place of its own for each dot
            places = y + (order - (len(part) - 1) / 2) * (0.75 / max(1, len(part)))
            for verdict in JUDGED:
                own = (part["verdict"] == verdict) & values.notna()
                shape = "o" if verdict in REPLICATES else "X" if verdict == "differs" else "s"
                axis.plot(
                    values[own], places[own], shape, color=VERDICTS[verdict][0], mec="0.3", mew=0.4, ms=5
                )
        axis.axvspan(-1, 1, color="0.93", zorder=0)
        axis.axvline(0, color="0.4", lw=1, ls=":")
        axis.set_xscale("symlog", linthresh=1)
        axis.set(
            xlim=(-1.5 * CLIP, 1.5 * CLIP),
            xticks=[-10, -1, 0, 1, 10],
            xticklabels=["-10", "-1", "0", "1", "10"],
        )
        axis.set_xlabel(f"mean beyond the {kind}\n(half-widths of the interval, → as claimed)")
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(names)), list(map(paper_name, names)))
    axes[0].set(ylabel="part")
    if names:
        axes[0].set_ylim(len(names) - 0.4, -0.6)
    for verdict in JUDGED:
        shape = "o" if verdict in REPLICATES else "X" if verdict == "differs" else "s"
        axes[0].plot([], [], shape, color=VERDICTS[verdict][0], mec="0.3", mew=0.4, label=verdict)
    legend_below(figure, axes[0], 2, fontsize=8.5)
    return done(figure)


def more_seeds(record: "Record") -> Figure:
    """Of the claims that do not hold: how many would with so many seeds, at the measured means and spreads, a line a part."""
    found = table(record)
    found = found[found["verdict"].isin(FAILS)]
    figure, axes = panels(1, 1, 6.2, 3.6)
    styles = ("-", "--", "-.", ":")
    longest = max([20.0, *(1.5 * found["more_seeds"].dropna())])
    for paper, line in zip(papers_of(found), styles):
        part = found[found["paper"] == paper]
        needed = np.sort(part["more_seeds"].dropna().to_numpy())
        steps = np.concatenate([[2.5], needed, [longest]])
        height = np.concatenate([[0], np.arange(1, len(needed) + 1), [len(needed)]])
        never = int(part["more_seeds"].isna().sum())
        axes[0].step(steps, height, line, where="post", label=f"{paper_name(paper)}; with no number: {never}")
    axes[0].set(xscale="log", xlabel="seeds (log scale)", ylabel="claims that would then hold")
    axes[0].set_ylim(bottom=0)
    axes[0].yaxis.get_major_locator().set_params(integer=True)
    ticks = [n for n in (3, 5, 10, 20, 50, 100, 1000, 10000) if n <= longest]
    axes[0].set_xticks(ticks, list(map(str, ticks)))
    axes[0].minorticks_off()
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize=9)
    return done(figure)


# -------------------------------------------------------------------- tables


def number(x: float) -> str:
    return "" if pd.isna(x) else f"{x:.3g}"


def _measured(row: pd.Series) -> str:
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def _bars(row: pd.Series) -> str:
    """What had to be beaten."""
    sign = ">" if row["direction"] == "greater" else "<"
    found = [
        f"{kind} {sign} {number(row[kind])}" for kind in ("null", "threshold", "control") if number(row[kind])
    ]
    return ", ".join(found)


def changes(record: "Record", paper: str) -> pd.DataFrame:
    """The judged claims of a part that do not hold: what was measured against what, why not, and what would change it."""
    found = table(record)
    found = found[(found["paper"] == paper) & found["verdict"].isin(FAILS)]
    rows = []
    for _, row in found.iterrows():
        seeds = f"{row['more_seeds']:.0f}" if not pd.isna(row["more_seeds"]) else "none would do"
        sign = "≥" if row["direction"] == "greater" else "≤"
        rows.append(
            {
                "claim": row["claim"],
                "statement": row["statement"],
                "measured": _measured(row),
                "had to beat": _bars(row),
                "why not": row["why"],
                "would hold with seeds": seeds,
                "or with a mean": f"{sign} {number(row['needed'])}",
            }
        )
    return pd.DataFrame(rows)


def holding(record: "Record", paper: str) -> pd.DataFrame:
    """The claims of a part that hold, the narrowest first: how far beyond the test that decides, in half-widths."""
    found = table(record)
    found = found[(found["paper"] == paper) & found["verdict"].isin(REPLICATES)]
    found = found.assign(far=closest(found)).sort_values("far", kind="stable")
    rows = [
        {
            "claim": row["claim"],
            "statement": row["statement"],
            "whose": row["origin"],
            "measured": _measured(row),
            "had to beat": _bars(row),
            "half-widths beyond": "∞" if np.isinf(row["far"]) else number(row["far"]),
        }
        for _, row in found.iterrows()
    ]
    return pd.DataFrame(rows)
