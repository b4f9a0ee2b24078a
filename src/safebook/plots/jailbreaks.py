"""Figures of the attacks: how often they succeed, and where the attacked prompts land."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from safebook.plots import COLOURS, MODELS, done, in_order, legend_below, panels

if TYPE_CHECKING:
    import pandas as pd

    from safebook.results import Record

PROMPTS = ("safe", "unsafe", "JB-CO-Task", "JB-CO-Text", "JB-MisGen", "text shift", "composition")
SHIPPED = "JB-MisGen as shipped"
SUBSETS = {"all": ("D", "0.55", -0.22), "successful": ("o", "comply", 0.0), "refused": ("X", "unsafe", 0.22)}
RANDOM = "random soft tokens"


def _share(table: "pd.DataFrame", attack: str) -> "pd.DataFrame":
    return table[table["attack"] == attack]


def success_by_attack(record: "Record") -> Figure:
    """Share that complies exactly, a panel a kind of prompt; dots are seeds, bars the Wilson interval of all of them."""
    table = record.tables["success"]
    models = in_order(table["model"])
    shown = [*PROMPTS, SHIPPED]
    figure, axes = panels(len(shown), 4, 2.6, 0.3 * len(models) + 0.9, sharey=True, sharex=True)
    for axis, attack in zip(axes, shown):
        part = _share(table, attack)
        pooled = part[part["seed"] == "all"]
        y = pooled["model"].map(models.index)
        axis.hlines(y, pooled["low"], pooled["high"], color="0.6", lw=5, alpha=0.6)
        single = part[part["seed"] != "all"]
        colour = COLOURS["safe"] if attack in ("safe", SHIPPED) else COLOURS["unsafe"]
        axis.plot(single["share"], single["model"].map(models.index), "o", color=colour, ms=5, alpha=0.8)
        axis.set_title(attack, fontsize=10)
        axis.set(xlabel="share complying, exact", xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axis.grid(axis="y", color="0.92")
    axes[0].set(yticks=range(len(models)), yticklabels=[MODELS[m] for m in models])
    axes[0].invert_yaxis()
    return done(figure)


def success_by_k(record: "Record") -> Figure:
    """Success of the soft prompts against their number, both step counts; a line a seed, a panel a model."""
    table = _share(record.tables["success"], "Adv")
    models = in_order(table["model"])
    figure, axes = panels(len(models), 4, 2.7, 2.6, sharey=True, sharex=True)
    colours = dict(zip(sorted(set(table["steps"])), (COLOURS["safe"], COLOURS["unsafe"])))
    for axis, model in zip(axes, models):
        for (steps, seed), part in table[table["model"] == model].groupby(["steps", "seed"], sort=True):
            dash = "-" if steps == min(colours) else "--"
            if seed == "all":
                axis.fill_between(
                    part["k"], part["low"], part["high"], color=colours[steps], alpha=0.15, lw=0
                )
                axis.plot([], [], "o" + dash, color=colours[steps], ms=4, label=f"{steps} steps")
            else:
                axis.plot(part["k"], part["share"], "o" + dash, color=colours[steps], ms=4, lw=1.2)
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="soft tokens k", xticks=sorted(set(table["k"])), ylim=(-0.04, 1.04))
    axes[0].set(ylabel="share complying, exact")
    axes[0].legend(frameon=False, fontsize=8)
    return done(figure)


def _rows(table: "pd.DataFrame") -> list[tuple[str, int, int]]:
    """(attack, steps, k) in the order in which they are shown."""
    plain = [(name, 0, 0) for name in PROMPTS if name in set(table["attack"])]
    soft = _share(table, "Adv")[["steps", "k"]].drop_duplicates().sort_values(["steps", "k"])
    control = sorted(set(_share(table, RANDOM)["k"]))
    return (
        plain
        + [("Adv", steps, k) for steps, k in soft.itertuples(index=False)]
        + [(RANDOM, 0, k) for k in control]
    )


def landing(record: "Record", model: str) -> Figure:
    """Where the attacked prompts lie between unsafe and safe ones, by four measures; a mark a seed and subset."""
    table = record.tables["landing"]
    rows = _rows(table)
    table = table[table["model"] == model]
    measures = ("tau", "tau at the decision", "row projection", "sensitivity")
    figure, axes = plt.subplots(1, 4, figsize=(12, 0.3 * len(rows) + 1.6), sharey=True, layout="constrained")
    for axis, measure in zip(axes, measures):
        for subset, (marker, colour, shift) in SUBSETS.items():
            part = table[(table["measure"] == measure) & (table["subset"] == subset)]
            y = [
                rows.index(row) + shift
                for row in part[["attack", "steps", "k"]].itertuples(index=False, name=None)
            ]
            axis.plot(
                part["place"], y, marker, color=COLOURS.get(colour, colour), ms=5, alpha=0.75, label=subset
            )
        for end, colour in ((-1, COLOURS["unsafe"]), (0, "0.7"), (1, COLOURS["safe"])):
            axis.axvline(end, color=colour, lw=0.8, ls="--")
        axis.set(title=measure, xlabel="place (-1 unsafe, 1 safe)", xlim=(-1.1, 1.1), xticks=[-1, 0, 1])
        axis.grid(axis="y", color="0.92")
    words = {"Adv": "Adv, k = {}, {} steps", RANDOM: RANDOM + ", k = {}"}
    names = [words[a].format(k, steps) if a in words else a for a, steps, k in rows]
    axes[0].set(yticks=range(len(rows)), yticklabels=names)
    axes[0].invert_yaxis()
    figure.suptitle(MODELS[model], fontsize=11)
    legend_below(figure, axes[0], 3)
    return done(figure)


def strength(record: "Record") -> Figure:
    """Place by tau of all prompts of an attack against its success, a panel a model; a mark an attack and seed."""
    table = record.tables["landing"]
    table = table[(table["measure"] == "tau") & (table["subset"] == "all")]
    table = table[~table["attack"].isin(("safe", "unsafe", RANDOM))]
    models = in_order(table["model"])
    groups = [
        g for g in dict.fromkeys((attack, steps) for attack, steps, _ in _rows(table)) if g[0] != RANDOM
    ]
    marks = dict(zip(groups, zip("osD^vP", sns.color_palette("colorblind", len(groups)))))
    figure, axes = panels(len(models), 4, 2.8, 3.0, sharex=True)
    for axis, model in zip(axes, models):
        part = table[table["model"] == model]
        for (attack, steps), (marker, colour) in marks.items():
            chosen = part[(part["attack"] == attack) & (part["steps"] == steps)]
            size = 24 + 6 * chosen["k"]
            label = attack if not steps else f"{attack}, {steps} steps (larger: more soft tokens)"
            axis.scatter(
                chosen["success"], chosen["place"], size, color=colour, marker=marker, alpha=0.7, label=label
            )
        axis.axhline(-1, color=COLOURS["unsafe"], lw=0.8, ls="--")
        axis.axhline(1, color=COLOURS["safe"], lw=0.8, ls="--")
        axis.set_title(MODELS[model], fontsize=10)
        axis.set(xlabel="share complying, exact", xlim=(-0.05, 1.05))
    axes[0].set(ylabel="place of the attack by tau\n(-1 unsafe, 1 safe)")
    legend_below(figure, axes[0], 3, fontsize=9)
    return done(figure)
