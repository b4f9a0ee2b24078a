"""Records of deep fine-tuning: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook import spf_measures as measures
from safebook.spf_arms import AFTERWARDS, ARMS

RUN = "spf-05-deep-finetuning"
SHARES = ["harm", "attack_success", "refusal", "broken", "benign_exact", "over_refusal", "task", "known"]


@records(RUN)
def test_every_arm_is_tested_at_every_depth_from_the_same_start(folder):
    r = results.load(folder)
    table, p = r.tables["epochs"], r.parameters
    assert not table.duplicated(["data", "arm", "seed", "epochs"]).any()
    assert set(table["data"]) == {*p["every_arm"], *p["main_arms"]}
    for data, part in table.groupby("data"):
        assert set(part["arm"]) == set(ARMS if data in p["every_arm"] else measures.MAIN)
    for (_, _, seed), part in table.groupby(["data", "arm", "seed"]):
        assert list(part["epochs"]) == [0, *p["epochs"]] and seed in r.seeds
        np.testing.assert_array_equal(part["iteration"], part["epochs"] * (p["rows"] // p["batch"]))
    start = table[table["epochs"] == 0].groupby(["data", "seed"])
    assert (start[["refusal", "loss", "task"]].nunique() == 1).all().all()
    if r.size != "smoke":
        assert p["epochs"][-1] == 16 * p["epochs"][0]


@records(RUN)
def test_rates_are_shares_and_agree_with_each_other(folder):
    table = results.load(folder).tables["epochs"]
    assert ((table[SHARES] >= 0) & (table[SHARES] <= 1)).all().all()
    np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
    assert (table[["n", "benign_n", "borderline_n", "task_n"]].nunique() == 1).all()


@records(RUN)
def test_the_subspaces_act_in_a_share_of_steps_and_have_one_rank(folder):
    r = results.load(folder)
    acts, grid = r.tables["acts"], r.tables["grid"]
    subspaces = {"spf", "random subspace", "utility subspace"}
    assert set(acts["arm"]) == subspaces and acts["setting"].nunique() == 1
    assert acts[["acted", "removed"]].stack().between(0, 1).all()
    assert set(grid["arm"]) == set(measures.GRIDS) and set(grid["data"]) == set(r.parameters["choose_on"])
    used = r.tables["epochs"].groupby("arm")["setting"].first()
    for arm, part in grid.groupby("arm"):
        means = part.groupby("setting")["score"].mean()
        (chosen,) = set(part[part["chosen"].astype(bool)]["setting"])
        assert len(means) == 3 and means[chosen] == pytest.approx(means.max(), abs=2e-6)
        assert used[arm] == pytest.approx(chosen, abs=1e-6)


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_table(folder):
    r = results.load(folder)
    table, depths = r.tables["epochs"], r.parameters["epochs"]
    for (data, arm, seed), part in table.groupby(["data", "arm", "seed"]):
        refusal = part.set_index("epochs")["refusal"]
        lost = r.scalars("refusal_lost", method=arm, data=data)[seed]
        assert lost == pytest.approx(refusal[depths[0]] - refusal[depths[-1]], abs=1e-8)
        kept = r.scalars("refusal_kept", method=arm, data=data, epochs="most")[seed]
        assert kept == pytest.approx(measures.ratio(refusal[depths[-1]], refusal[0], 0.0), abs=1e-6)
        if arm == "sft":
            assert r.scalars("refusal_lead", method=arm, data=data, at="equal loss")[seed] == 0
    for data in set(table["data"]):
        for seed in r.seeds:
            best = max(r.scalars("refusal_kept", method=a, data=data)[seed] for a in measures.SIMPLE)
            assert r.scalars("refusal_kept", method="best simple", data=data)[seed] == best


@records(RUN)
def test_the_best_other_defence_keeps_most_on_average(folder):
    r = results.load(folder)
    for data in r.parameters["every_arm"]:
        kept = {
            arm: list(r.scalars("refusal_kept", method=arm, data=data, epochs="most").values())
            for arm in set(ARMS) - set(measures.MAIN) - {"utility subspace"}
        }
        best = r.scalars("refusal_kept", method="best other", data=data, epochs="most")
        assert set(best) == set(r.seeds) and list(best.values()) in kept.values()
        assert sum(best.values()) == pytest.approx(max(map(sum, kept.values())))


@records(RUN)
def test_repairs_of_finished_weights_stand_at_every_depth_and_change_the_model(folder):
    """They start from plain fine-tuning's weights at that depth, so that only those with no effect agree with it."""
    r = results.load(folder)
    table = r.tables["epochs"].query("epochs > 0").set_index(["data", "seed", "epochs"])
    plain = table[table["arm"] == "sft"]["loss"]
    for data in r.parameters["every_arm"]:
        for arm in AFTERWARDS:
            own = table[table["arm"] == arm].loc[data]["loss"]
            assert set(own.index) == set(plain.loc[data].index)
            assert (own - plain.loc[data]).abs().max() > 1e-6, arm
