"""Relations that hold in the records of sensitivity and jailbreaks whatever the numbers are."""

import math

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import results
from safebook.attacks import wilson

SEEDS_AND_MODEL = ["model", "seed"]


@records("pcfg-07-sensitivity")
def test_histograms_hold_every_prompt_and_the_medians(folder):
    r = results.load(folder)
    table = r.tables["histogram"]
    groups = table.groupby(["model", "prompts", "seed"])
    assert (groups["count"].sum() == r.parameters["samples"]).all()
    medians = r.frame("median_sensitivity").query("scale == 'plain'").set_index(["model", "prompts", "seed"])
    for key, part in groups:
        share = part["count"].cumsum() / part["count"].sum()
        bin_ = part[share >= 0.5].iloc[0]  # the bin that holds the median, or its upper neighbour's edge
        width = bin_["right"] - bin_["left"]
        median = math.log10(medians.loc[key, "value"])
        assert bin_["left"] - 1e-6 <= median <= bin_["right"] + width + 1e-6


@records("pcfg-07-sensitivity")
def test_ratios_are_those_of_the_medians_and_the_gap_follows(folder):
    r = results.load(folder)
    medians = r.frame("median_sensitivity").pivot(
        index=SEEDS_AND_MODEL, columns=["scale", "prompts"], values="value"
    )
    for scale in ("plain", "relative"):
        for model in set(r.frame("log2_ratio")["model"]):
            for kind in ("safe", "unsafe"):
                for seed, value in r.scalars("log2_ratio", model=model, prompts=kind, scale=scale).items():
                    after, before = (medians.loc[(m, seed), (scale, kind)] for m in (model, "pretrained"))
                    assert value == pytest.approx(math.log2(after / before), abs=1e-9)
            for seed, value in r.scalars("log2_gap", model=model, measure=scale).items():
                safe, unsafe = (medians.loc[(model, seed), (scale, kind)] for kind in ("safe", "unsafe"))
                assert value == pytest.approx(math.log2(safe / unsafe), abs=1e-9)


@records("pcfg-07-sensitivity")
def test_the_least_favourable_protocol_is_not_better_than_any(folder):
    r = results.load(folder)
    for kind, sign in (("unsafe", 1), ("safe", -1)):
        worst = r.scalars("least_favourable", arm="protocols", prompts=kind, scale="plain")
        for model in ("ssft-medium", "dpo-medium", "unlearning-medium"):
            ratios = r.scalars("log2_ratio", model=model, prompts=kind, scale="plain")
            assert all(sign * worst[seed] >= sign * ratios[seed] for seed in r.seeds)
    frame = r.frame()
    for metric in ("larger_after", "mann_whitney_p"):
        assert frame[frame["metric"] == metric]["value"].between(0, 1).all()


@records("pcfg-08-jailbreaks")
def test_counts_add_up_and_intervals_are_wilsons(folder):
    r = results.load(folder)
    table = r.tables["success"]
    cell = ["model", "attack", "steps", "k"]
    single, pooled = table[table["seed"] != "all"], table[table["seed"] == "all"].set_index(cell)
    sums = single.groupby(cell)[["successes", "n"]].sum()
    pd.testing.assert_frame_equal(sums, pooled[["successes", "n"]].sort_index(), check_like=True)
    assert (single.groupby(cell)["seed"].nunique() == len(r.seeds)).all()
    for row in table.itertuples():
        assert row.low <= row.share + 1e-9 and row.share <= row.high + 1e-9
        np.testing.assert_allclose((row.low, row.high), wilson(row.successes, row.n), atol=1e-9)


@records("pcfg-08-jailbreaks")
def test_subsets_are_parts_and_plain_prompts_lie_at_the_ends(folder):
    r = results.load(folder)
    if "landing" not in r.tables:
        assert r.size == "smoke"  # no measure tells safe from unsafe
        return
    table = r.tables["landing"]
    assert table["n"].min() >= 5 and table["place"].between(-1 - 1e-6, 1 + 1e-6).all()
    key = ["model", "seed", "attack", "steps", "k", "measure"]
    wide = table.pivot(index=key, columns="subset", values="n").fillna(0)
    assert (wide["successful"] + wide["refused"] <= wide["all"]).all()  # the rest is answered wrongly
    ends = table[table["subset"] == "all"].set_index("attack")["place"]
    np.testing.assert_allclose(ends["safe"], 1, atol=1e-5)
    np.testing.assert_allclose(ends["unsafe"], -1, atol=1e-5)


@records("pcfg-08-jailbreaks")
def test_statistics_are_the_means_of_their_cells(folder):
    """5b recomputed from the table: every placed attack on every one of three protocols weighs the same."""
    r = results.load(folder)
    where = {"arm": "protocols", "steps": 10, "measure": "tau", "subset": "all"}
    counts = r.scalars("cells", statistic="attack_place", **where)
    if "landing" not in r.tables:
        assert r.size == "smoke" and set(counts.values()) == {0}
        return
    table = r.tables["landing"]
    chosen = table[(table["subset"] == "all") & (table["measure"] == "tau")]
    chosen = chosen[~chosen["attack"].isin(("safe", "unsafe", "random soft tokens"))]
    chosen = chosen[(chosen["model"] != "benign-medium") & (chosen["steps"] != 50)]
    means = chosen.groupby("seed")["place"].agg(["mean", "size"])
    found = r.scalars("attack_place", **where) if len(means) else {}
    for seed in means.index:
        assert means.loc[seed, "size"] == counts[seed] <= 27
        assert found[seed] == pytest.approx(means.loc[seed, "mean"], rel=1e-4, abs=1e-4)
    for measure in ("tau", "tau at the decision", "row projection", "sensitivity"):
        at = {"statistic": "matched_place", "arm": "protocols", "steps": 10, "measure": measure}
        matched = [r.scalars("cells", subset=s, **at) for s in ("successful", "refused")]
        assert matched[0] == matched[1]  # compared over the same attacks and models
    frame = r.frame()
    agreement = frame[frame["metric"] == "strength_agreement"]["value"]
    assert agreement.between(-1, 1).all()
