"""Records of deep fine-tuning: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook import spf_measures as measures

RUN = "spf-05-deep-finetuning"
SHARES = ["harm", "attack_success", "refusal", "broken", "benign_exact", "over_refusal", "task", "known"]


@records(RUN)
def test_every_arm_is_tested_at_every_depth_from_the_same_start(folder):
    r = results.load(folder)
    table, p = r.tables["epochs"], r.parameters
    assert not table.duplicated(["data", "arm", "seed", "epochs"]).any()
    assert set(table["arm"]) == set(measures.MAIN) and set(table["data"]) == set(p["data"])
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
    assert set(acts["arm"]) == {"spf", "random subspace"} and acts["setting"].nunique() == 1
    assert acts[["acted", "removed"]].stack().between(0, 1).all()
    for _, part in grid.groupby("arm"):
        chosen = part[part["chosen"].astype(bool)]
        assert len(chosen) == 1 and chosen["score"].iloc[0] == part["score"].max()


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
    for data in r.parameters["data"]:
        for seed in r.seeds:
            best = max(r.scalars("refusal_kept", method=a, data=data)[seed] for a in measures.SIMPLE)
            assert r.scalars("refusal_kept", method="best simple", data=data)[seed] == best
