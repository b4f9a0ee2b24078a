"""Records of the spectra of gradients: relations that hold whatever was measured."""

import pandas as pd
import pytest
from test_records import records

from safebook import gradient_samples, paths, results
from safebook.plots import spf as names
from safebook.spf_arms import TASKS

RUN = "spf-01-spectra"


def ends(r):
    """One sequence and the batch."""
    return (("one", 1), ("batch", r.tables["signal"]["sequences"].max()))


@records(RUN)
def test_ratios_rise_with_the_rank_and_reach_one_at_most(folder):
    table = results.load(folder).tables["ratios"]
    assert table["ratio"].between(0, 1.000001).all()
    where = ["seed", "stage", "gradient", "targets_cut", "sequences"]
    for _, part in table.groupby(where):
        assert part.sort_values("k")["ratio"].is_monotonic_increasing
    assert set(table["gradient"]) == set(gradient_samples.KINDS)
    assert set(table["stage"]) == set(gradient_samples.STAGES)


@records(RUN)
def test_equal_targets_are_equal_and_bound_the_rank_at_the_last_matrix(folder):
    table = results.load(folder).tables["signal"]
    equal = table[table["targets_cut"] == "equal"]
    assert (equal.groupby("sequences")["targets"].nunique() == 1).all()
    assert (equal["rank"] <= equal["targets"] + 1e-6).all()
    assert (table["effective"] <= table["targets"] + 1e-6).all() and (table["effective"] >= 1 - 1e-6).all()
    whole = table[table["targets_cut"] == "all"]
    assert whole.groupby("sequences")["targets"].nunique().max() > 1  # which is why they are cut


@records(RUN)
def test_singular_values_fall_and_begin_at_one(folder):
    table = results.load(folder).tables["spectra"]
    for _, part in table.groupby(["seed", "stage", "gradient", "sequences"]):
        values = part.sort_values("index")["sigma"]
        assert values.iloc[0] == pytest.approx(1) and values.is_monotonic_decreasing


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table = r.tables["signal"]
    table = table[table["targets_cut"] == "equal"]
    for seed in r.seeds:
        for rows, number in ends(r):
            part = table[(table["seed"] == seed) & (table["sequences"] == number)]
            share = part.set_index(["stage", "gradient"])["share"]
            for kind in gradient_samples.SAFETY:
                gap = {
                    s: share[s, kind] - max(share[s, task] for task in TASKS) for s in gradient_samples.STAGES
                }
                for stage, expected in gap.items():
                    where = {"gradient": kind, "stage": stage, "rows": rows}
                    assert r.scalars("explained_gap", **where)[seed] == pytest.approx(expected, abs=3e-6)
                    ratio = r.scalars("explained_ratio", **where)[seed]
                    assert ratio == pytest.approx(share[stage, kind], abs=2e-6)
                where = {"gradient": kind, "stage": "highest control", "rows": rows}
                before = max(gap["random"], gap["pretrained"])
                assert r.scalars("explained_gap", **where)[seed] == pytest.approx(before, abs=3e-6)


@records(RUN)
def test_an_untrained_model_is_surprised_by_every_token(folder):
    """Its loss is that of a uniform guess, so that all targets carry the gradient; known tasks then have few that do."""
    r = results.load(folder)
    table = r.tables["signal"]
    table = table[(table["targets_cut"] == "equal") & (table["stage"] == "random")]
    assert (table["effective"] > 0.95 * table["targets"]).all()
    if r.size != "smoke":
        trained = r.tables["signal"]
        trained = trained[(trained["targets_cut"] == "equal") & (trained["stage"] == "aligned")]
        known = trained[trained["gradient"] == "lookup"]
        assert known["loss"].max() < table["loss"].min()


def test_the_published_values_are_those_of_the_page():
    known = pd.read_csv(paths.DATA / "paper/spf/geometry.csv")
    stated = known[(known["quantity"] == "cumulative explained ratio") & (known["work"] == "paper")]
    assert len(stated) == 1 and float(stated["rank"].iloc[0]) == 10


def test_every_kind_and_stage_has_a_name():
    assert set(names.KINDS) == set(gradient_samples.KINDS) and set(names.STAGES) == set(
        gradient_samples.STAGES
    )
    assert set(names.ANCHORS) == set(gradient_samples.ANCHORS)
