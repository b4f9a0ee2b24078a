"""Records of what a lock costs: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook.lock_arms import strength
from safebook.plots import lock_utility as figures

RUN = "safetylock-06-utility"
ARMS = ("response", "prompt")
REPAIRS = ("safety SFT", "DPO", "task vector")


@records(RUN)
def test_the_curve_starts_without_a_lock_and_holds_the_strength_in_use(folder):
    r = results.load(folder)
    table = r.tables["curve"]
    assert set(table["risk"]) == {"aligned", "level1_10", "level2", "level3"}
    for (_, _, arm), part in table.groupby(["risk", "seed", "position"]):
        assert {0.0, 1.0} <= set(part["multiple"]) and len(part) >= 4
        np.testing.assert_allclose(part["alpha"], part["multiple"] * strength(r.size, arm).alpha)
        np.testing.assert_allclose(
            part["displacement"],
            part["multiple"] * part["displacement"].max() / part["multiple"].max(),
            rtol=1e-3,
        )
    # Without a lock both arms are the same model.
    start = table[table["multiple"] == 0].drop(columns=["position"])
    assert (start.groupby(["risk", "seed"]).nunique() == 1).all(axis=None)


@records(RUN)
def test_shares_are_shares_and_means_are_means(folder):
    for name in ("curve", "test"):
        table = results.load(folder).tables[name]
        shares = [c for c, (_, is_share) in figures.MEASURES.items() if is_share and c in table]
        assert table[shares].min(axis=None) >= 0 and table[shares].max(axis=None) <= 1
        assert (table["perplexity"] > 1).all()
        mean = table[[f"accuracy_{family}" for family in figures.FAMILIES]].mean(axis=1)
        np.testing.assert_allclose(table["accuracy"], mean, atol=2e-6)
        assert (table["exact"] + table["benign_broken"] <= 1 + 2e-6).all()


@records(RUN)
def test_a_repair_stops_at_the_lock_s_harmful_rate(folder):
    r = results.load(folder)
    curve, test = r.tables["curve"], r.tables["test"]
    used = curve[(curve["multiple"] - 1).abs() < 1e-9].set_index(["risk", "seed", "position"])["harm"]
    repaired = test[test["treatment"].isin(REPAIRS)]
    assert len(repaired) == len(r.seeds) * len(ARMS) * len(REPAIRS) * len(r.parameters["repaired"])
    for row in repaired.itertuples():
        target = used[row.risk, row.seed, row.position]
        assert (row.validation_harm <= target + 2e-6) == bool(row.reached)
        start = curve.query("risk == @row.risk and seed == @row.seed and multiple == 0")["harm"].iloc[0]
        if start <= target:  # the lock does nothing: the repair does not begin
            assert row.strength == 0
    # What did not begin is the fine-tuned model itself.
    same = ["harm", "exact", "accuracy", "perplexity", "dist1"]
    for row in repaired[repaired["strength"] == 0].itertuples():
        alone = test.query("risk == @row.risk and seed == @row.seed and treatment == 'none'").iloc[0]
        np.testing.assert_allclose([getattr(row, c) for c in same], alone[same].astype(float), rtol=1e-4)


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_table(folder):
    r = results.load(folder)
    test = r.tables["test"].set_index(["risk", "seed", "treatment", "position"])
    for seed, risk, arm in [(s, k, a) for s in r.seeds for k in ("level1_10", "level3") for a in ARMS]:
        before, after = test.loc[(risk, seed, "none", "none")], test.loc[(risk, seed, "lock", arm)]
        labels = {"risk": risk, "treatment": "lock", "position": arm}
        drop = before["accuracy"] - after["accuracy"]
        assert r.scalars("accuracy_drop", **labels)[seed] == pytest.approx(drop, abs=5e-6)
        refused = max(after["benign_refusal"], after["borderline_refusal"])
        assert r.scalars("over_refusal", **labels)[seed] == pytest.approx(refused, abs=2e-6)
        kept = after["exact"] / before["exact"] if before["exact"] else 0.0
        assert r.scalars("exact_kept", **labels)[seed] == pytest.approx(kept, abs=1e-4)
        if risk in r.parameters["repaired"]:
            best = max(test.loc[(risk, seed, kind, arm), "accuracy"] for kind in REPAIRS)
            lead = r.scalars("accuracy_lead", risk=risk, position=arm)[seed]
            assert lead == pytest.approx(after["accuracy"] - best, abs=5e-6)


@records(RUN)
def test_the_table_beside_the_paper_s_holds_both(folder):
    paper = pd.read_csv(paths.DATA / "paper/safetylock/utility.csv")
    table = figures.beside_paper(results.load(folder), paper)
    assert table.loc["paper: GSM8K accuracy", "lock"] == "30.6"
    assert table.loc["paper: perplexity on Alpaca", "model editing"] == "≥ 1000"
    assert table.loc["ours: accuracy, sums", "lock"] != "" and "task vector" in table
