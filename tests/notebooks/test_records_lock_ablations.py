"""Records of the lock's ablations: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import results
from safebook.lock_arms import ARMS, strength
from safebook.plots import lock_ablations as figures

RUN = "safetylock-07-ablations"
RATES = ["harm", "attack_success", "refusal", "broken", "exact", "benign_refusal", "benign_broken"]


@records(RUN)
def test_rates_are_shares_and_agree_with_each_other(folder):
    r = results.load(folder)
    for name in ("curves", "variants", "further"):
        table = r.tables[name]
        assert ((table[RATES] >= 0) & (table[RATES] <= 1)).all().all()
        np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
        assert (table["exact"] + table["benign_broken"] <= 1 + 2e-6).all()
        assert (table["n"].nunique(), table["benign_n"].nunique()) == (1, 1)


@records(RUN)
def test_variants_of_an_arm_move_the_heads_equally_far(folder):
    r = results.load(folder)
    table = r.tables["variants"]
    locked = table[table["family"] != "no lock"]
    for (_, arm), part in locked.groupby(["seed", "position"]):
        np.testing.assert_allclose(part["displacement"], part["displacement"].iloc[0], rtol=1e-4)
        chosen = part[part["option"].astype(str) == "by probe"].iloc[0]
        assert (chosen["count"], chosen["alpha"]) == (
            strength(r.size, arm).heads,
            strength(r.size, arm).alpha,
        )
    assert not table.duplicated(["seed", "model", "position", "family", "option"]).any()
    assert set(locked["position"]) == set(ARMS)
    everything = locked[locked["option"].astype(str) == "all"]["count"]
    assert everything.nunique() == 1 and everything.iloc[0] >= locked["count"].max()


@records(RUN)
def test_the_chosen_lock_gives_one_result_wherever_it_stands(folder):
    """In every family one option is the chosen lock itself; the hook on all tokens and the bias are the same function."""
    table = results.load(folder).tables["variants"]
    table = table[table["model"] == table["model"].iloc[0]]
    own = {"heads": "by probe", "tokens": "5", "scaling": "sigma", "direction": "mean", "code": "paper"}
    for seed in set(table["seed"]):
        for arm in ARMS:
            rows = table[(table["seed"] == seed) & (table["position"] == arm)]
            same = [rows[(rows["family"] == f) & (rows["option"].astype(str) == o)] for f, o in own.items()]
            same = pd.concat(same)
            assert len(same) == (5 if arm == "response" else 3) and len(same[RATES].drop_duplicates()) == 1
            for way in ("bias", "hook, all tokens"):
                # a token between two equal logits may fall to either side by rounding
                found = rows[(rows["family"] == "applied") & (rows["option"] == way)][RATES].to_numpy(float)
                np.testing.assert_allclose(found, same[RATES].to_numpy(float)[:1], atol=0.1)


@records(RUN)
def test_curves_hold_the_whole_grid_and_one_displacement(folder):
    r = results.load(folder)
    table = r.tables["curves"]
    grid = table[(table["kind"] == "grid") & (table["heads"] == "by probe")]
    cells = grid.groupby(["seed", "position"])
    alphas, counts = set(grid["alpha"]), set(grid["count"])
    assert (cells.size() == len(alphas) * len(counts)).all() and min(alphas) < 0 < max(alphas)
    assert set(r.parameters["alphas"]) <= alphas and r.scalars("paper_share")[None] in counts
    assert (cells["chosen"].sum() == 1).all()
    for _, part in table[table["kind"] == "equal"].groupby(["seed", "position"]):
        np.testing.assert_allclose(part["displacement"], part["displacement"].iloc[0], rtol=1e-4)
    # Of one number of heads the displacement is proportional to the strength.
    ratio = grid["displacement"] / grid["alpha"].abs()
    spread = ratio.groupby([grid["seed"], grid["position"], grid["count"]]).agg(lambda x: x.max() / x.min())
    assert (spread < 1.001).all()
    random = table[table["heads"] == "random directions"]
    assert set(random["alpha"]) == alphas
    assert len(table[table["kind"] == "none"]) == len(r.seeds)


@records(RUN)
def test_further_training_starts_from_the_lock_and_all_kinds_are_there(folder):
    r = results.load(folder)
    table, curves = r.tables["further"], r.tables["curves"]
    assert set(table["lock"]) == set(figures.LOCKS)
    for seed in r.seeds:
        bare = curves[(curves["seed"] == seed) & (curves["kind"] == "none")].iloc[0]
        for arm in ARMS:
            part = table[(table["seed"] == seed) & (table["position"] == arm)].set_index(
                ["lock", "iteration"]
            )
            chosen = curves[
                (curves["seed"] == seed) & (curves["position"] == arm) & curves["chosen"].astype(bool)
            ]
            chosen = chosen[(chosen["heads"] == "by probe") & (chosen["kind"] == "grid")].iloc[0]
            for kind, expected in (("no lock", bare), ("lock before", chosen)):
                found = part.loc[(kind, 0), RATES].astype(float)
                np.testing.assert_allclose(found, expected[RATES].astype(float), atol=0.1)
            last = part.index.get_level_values("iteration").max()
            gap = part.loc[("lock before", last), "harm"] - part.loc[("no lock", last), "harm"]
            recorded = r.scalars("harm_after_more_rows", lock="lock before", position=arm)[seed]
            assert recorded == pytest.approx(gap, abs=2e-6)
            assert r.scalars("bias_change", lock="lock before", position=arm)[seed] > 0


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table, curves = r.tables["variants"], r.tables["curves"]
    main = table["model"].iloc[0]
    for seed in r.seeds:
        bare = figures.cell(table, main, "no lock", "no lock", "no lock", "harm")[seed]
        for arm in ARMS:
            under = figures.cell(table, main, arm, "heads", "by probe", "harm")[seed]
            share = r.scalars("harm_removed", model=main, position=arm, heads="by probe")[seed]
            assert share == pytest.approx((bare - under) / bare if bare else 0.0, abs=1e-4)
            equal = curves[
                (curves["seed"] == seed) & (curves["position"] == arm) & (curves["kind"] == "equal")
            ]
            best = equal[equal["heads"] == "by probe"].set_index("count")["harm"]
            gap = r.scalars("rate_above_best", chosen="by probe", position=arm)[seed]
            assert gap >= 0 and gap == pytest.approx(
                best[r.scalars("paper_share")[None]] - best.min(), abs=2e-6
            )
