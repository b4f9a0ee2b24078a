"""Records of SPF's ablations: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results, spf_ablations
from safebook import spf_measures as measures

RUN = "spf-07-ablations"
SHARES = ["harm", "attack_success", "refusal", "broken", "benign_exact", "over_refusal", "known"]


@records(RUN)
def test_rates_are_shares_and_agree_with_each_other(folder):
    r = results.load(folder)
    for name in ("ranks", "variants"):
        table = r.tables[name]
        assert ((table[SHARES] >= 0) & (table[SHARES] <= 1)).all().all()
        np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
        assert table["n"].nunique() == 1 and table[["acted", "removed"]].stack().between(0, 1).all()
        assert not table.duplicated(["seed", "arm", "share"]).any()


@records(RUN)
def test_both_subspaces_are_there_at_every_rank_and_more_directions_hold_more(folder):
    r = results.load(folder)
    table, p = r.tables["ranks"], r.parameters
    for arm in ("spf", "random subspace"):
        found = table[table["arm"] == arm].groupby("seed")["share"].apply(list)
        assert all(shares == p["shares"] for shares in found) and set(found.index) == set(r.seeds)
    steps = r.tables["steps"]
    assert (steps[~steps["acted"].astype(bool)]["removed"] == 0).all()
    assert (
        steps[steps["acted"].astype(bool)]["conflict"] < 0
    ).all()  # the test of this page is the published one
    first = steps[(steps["step"] == 0) & (steps["arm"] == "spf")]
    for _, part in first.groupby("seed"):  # the same gradients: a larger subspace holds the smaller one
        assert part["acted"].nunique() == 1 and (np.diff(part.sort_values("share")["removed"]) >= -1e-6).all()


@records(RUN)
def test_variants_are_those_of_the_list_and_the_block_test_acts_at_least_as_often(folder):
    r = results.load(folder)
    table = r.tables["variants"]
    assert set(table["arm"]) == {"aligned", "sft", "mixing", "surgery", *spf_ablations.VARIANTS}
    for _, part in table.groupby("seed"):
        part = part.set_index("arm")
        assert part.loc["no conflict test", "acted"] == 1
        assert (
            part.loc["conflict tested block by block", "acted"] >= 0.99
        )  # some block conflicts in every step


@records(RUN)
def test_every_kind_of_anchor_is_tested_inside_and_outside(folder):
    r = results.load(folder)
    table = r.tables["anchors"]
    kinds = {*spf_ablations.ANCHORS, "aligned", "sft", "random subspace"}
    assert set(table["anchor"]) == kinds and set(table["tested_on"]) == {"own category", "other categories"}
    sizes = table.groupby(["seed", "anchor", "tested_on"]).size()
    assert (sizes == r.parameters["anchors"]).all()
    totals = table.groupby(["seed", "anchor", "category"])["n"].sum()
    assert totals.nunique() == 1


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table, variants = r.tables["ranks"], r.tables["variants"]
    for seed in r.seeds:
        part = table[table["seed"] == seed]
        start = part[part["arm"] == "aligned"]["refusal"].iloc[0]
        for arm, subspace in (("spf", "safety"), ("random subspace", "random")):
            swept = part[part["arm"] == arm].sort_values("share")
            kept = [measures.ratio(v, start, 0.0) for v in swept["refusal"]]
            below = r.scalars("below_best_rank", rank="recommended", subspace=subspace)[seed]
            assert below == pytest.approx(max(kept) - kept[0], abs=1e-6) and below >= 0
            assert -1 <= r.scalars("rank_and_accuracy", subspace=subspace)[seed] <= 1
        found = variants[variants["seed"] == seed].set_index("arm")["harm"]
        for variant in spf_ablations.VARIANTS:
            lead = r.scalars("harm_lead", variant=variant, at="equal steps")[seed]
            assert lead == pytest.approx(found[variant] - found["sft"], abs=1e-6)
    overlap = r.scalars("svd_overlap", directions="exact and low-rank")
    assert all(0 <= v <= 1 + 1e-5 for v in overlap.values())
