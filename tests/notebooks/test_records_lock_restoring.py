"""Records of the locked models: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook.lock_arms import strength
from safebook.plots import restoring as figures

RUN = "safetylock-03-restoring-safety"
ARMS = ("response", "prompt")
KEY = ["risk", "seed", "lock", "position", "sign", "prompts"]


@records(RUN)
def test_every_lock_has_its_controls_on_the_same_prompts(folder):
    table = results.load(folder).tables["rates"]
    assert not table.duplicated(KEY).any()
    assert (table.groupby("prompts")["n"].nunique() == 1).all()
    for _, part in table[table["risk"].isin(figures.LEVELS)].groupby(["risk", "seed"]):
        cells = set(zip(part["lock"], part["position"], part["sign"], part["prompts"]))
        for prompts in ("hexphi", "benign"):
            wanted = {(k, a, "positive", prompts) for k in figures.LOCKS if k != "none" for a in ARMS}
            assert wanted | {("none", "none", "none", prompts)} <= cells
    # A lock turned is asked beside the same lock's controls, too.
    turned = table[table["sign"] == "negative"]
    assert set(turned["risk"]) == {"aligned", "level3"}
    assert (turned.groupby(["risk", "seed"])["lock"].unique().map(len) == 3).all()
    assert (turned["alpha"] < 0).all() and (table[table["sign"] == "positive"]["alpha"] > 0).all()


@records(RUN)
def test_judge_and_phrases_are_two_views_of_the_same_answers(folder):
    table = results.load(folder).tables["rates"]
    np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
    assert (table["harmfulness"] >= 1 + 4 * table["harm"] - 1e-5).all()
    assert (table["harmfulness"] <= 4 + table["harm"] + 1e-5).all()
    assert (table["exact"] + table["broken"] <= 1 + 2e-6).all()


@records(RUN)
def test_categories_add_up_to_the_whole_set(folder):
    r = results.load(folder)
    table = r.tables["categories"]
    table = table.assign(graded=table["harmfulness"] * table["n"])
    key = ["risk", "seed", "lock", "position", "sign"]
    sums = table.groupby(key)[["graded", "n"]].sum()
    rates = r.tables["rates"].query("prompts == 'hexphi'").set_index(key).loc[sums.index]
    np.testing.assert_array_equal(sums["n"], rates["n"])
    np.testing.assert_allclose(sums["graded"] / sums["n"], rates["harmfulness"], atol=1e-5)
    assert table["category"].nunique() == 11


@records(RUN)
def test_strengths_are_the_chosen_ones_and_heads_those_of_one_model(folder):
    r = results.load(folder)
    heads = r.tables["heads"]
    for (_, _, arm), part in heads.groupby(["risk", "seed", "position"]):
        chosen = strength(r.size, arm)
        assert len(part) == chosen.heads and (part["alpha"] == chosen.alpha).all()
        assert not part.duplicated(["layer", "head"]).any()
    assert set(heads["risk"]) == {"aligned", *figures.LEVELS}
    base = r.tables["rates"].query("lock == 'base'")
    for arm in ARMS:
        used = base[base["position"] == arm]["alpha"].abs()
        assert (used == strength(r.size, arm).alpha).all()


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_table(folder):
    r = results.load(folder)
    rates = r.tables["rates"].set_index(KEY)
    none = ("none", "none", "none")
    for seed in r.seeds:
        for lock, arm in [(k, a) for k in ("base", "random directions") for a in ARMS]:
            at = {
                risk: rates.loc[(risk, seed, lock, arm, "positive", "hexphi"), "harm"]
                for risk in figures.LEVELS
            }
            before = rates.loc[("level1_10", seed, *none, "hexphi"), "harm"]
            removed = 1 - at["level1_10"] / before if before else 0.0
            labels = {"lock": lock, "position": arm}
            found = r.scalars("harm_removed", risk="level1_10", **labels)[seed]
            assert found == pytest.approx(removed, abs=1e-4)
            highest = r.scalars("highest_harm", risks="level 2 and 3", **labels)[seed]
            assert highest == pytest.approx(max(at["level2"], at["level3"]), abs=2e-6)
            counted = r.tables["rates"].query(
                "seed == @seed and lock == @lock and position == @arm and prompts == 'advbench' and sign == 'positive'"
            )
            counted = counted[counted["risk"].str.startswith("level1_")]
            assert len(counted) == 5
            most = r.scalars("highest_attack_success", risks="level 1", **labels)[seed]
            assert most == pytest.approx(counted["attack_success"].max(), abs=2e-6)
            turned = rates.loc[("aligned", seed, lock, arm, "negative", "hexphi"), "harm"]
            rise = turned - rates.loc[("aligned", seed, *none, "hexphi"), "harm"]
            assert r.scalars("rate_rise", risk="aligned", **labels)[seed] == pytest.approx(rise, abs=2e-6)


def test_the_paper_s_cells_come_from_the_data_file():
    found = figures.reported(pd.read_csv(paths.DATA / "paper/safetylock/safety.csv"))
    assert found["level1_10", "none", "hexphi", "harm"] == pytest.approx(0.7001)
    assert found["level1_10", "base", "hexphi", "harm"] == pytest.approx(0.0333)
    assert found["level1_10", "base", "advbench", "attack_success"] == pytest.approx(0.0019)
    assert ("level2", "base", "hexphi", "harm") not in found  # not available to us
