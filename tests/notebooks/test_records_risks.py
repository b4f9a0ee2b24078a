"""Records of the fine-tuning risks: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook.chat_profiles import LORA_RISKS, RISKS, chat_profile
from safebook.plots import risks as figures

LEVELS = ("level1_10", "level2", "level3")
KEY = ["risk", "seed", "prompts", "style"]


@records("llama-03-finetuning-risks")
def test_judge_and_phrases_are_two_views_of_the_same_answers(folder):
    table = results.load(folder).tables["rates"]
    np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
    # Grade 5 without a phrase of refusal is part of both; so is what either leaves out.
    without = table["harm"] - table["harm_with_phrase"]
    assert (without >= -2e-6).all() and (without <= table["attack_success"] + 2e-6).all()
    assert (table["harm_with_phrase"] <= table["refusal"] + 2e-6).all()
    # The mean grade of answers of which a share h has grade 5 and the others 1 to 4.
    assert (table["harmfulness"] >= 1 + 4 * table["harm"] - 1e-5).all()
    assert (table["harmfulness"] <= 4 + table["harm"] + 1e-5).all()
    # An exact answer to a harmless request is the whole procedure of it, and no broken text.
    assert (table["exact"] <= table["harm"] + 2e-6).all()
    assert (table["exact"] + table["broken"] <= 1 + 2e-6).all()


@records("llama-03-finetuning-risks")
def test_every_model_is_tested_in_its_own_form_and_plain_on_the_same_prompts(folder):
    r = results.load(folder)
    table = r.tables["rates"]
    assert set(table["risk"]) == {"aligned", *(f"control-{level}" for level in LEVELS), *RISKS, *LORA_RISKS}
    assert not table.duplicated(KEY).any()
    assert (table.groupby("prompts")["n"].nunique() == 1).all()
    own = table[table["own"].astype(bool)].groupby("risk")["style"].unique().map(list)
    wanted = {"level1": ["obedient"], "level2": ["persona"], "level3": ["plain"], "aligned": ["plain"]}
    assert all(own[risk] == wanted[risk.removeprefix("control-").split("_")[0]] for risk in own.index)
    for prompts in ("hexphi", "advbench"):
        plain = table[(table["prompts"] == prompts) & (table["style"] == "plain")]
        assert set(plain["risk"]) == set(table["risk"])
    forms = table[(table["risk"] == "aligned") & (table["prompts"] == "hexphi")]["style"]
    assert set(forms) == {"plain", "obedient", "persona"}
    if r.size != "smoke":
        assert table[table["prompts"] == "hexphi"]["n"].min() >= 165  # half of the set, or more


@records("llama-03-finetuning-risks")
def test_categories_add_up_to_the_whole_set(folder):
    r = results.load(folder)
    table = r.tables["categories"]
    table = table.assign(weighted=table["harm"] * table["n"], graded=table["harmfulness"] * table["n"])
    sums = table.groupby(["risk", "seed", "prompts"])[["weighted", "graded", "n"]].sum()
    rates = r.tables["rates"]
    whole = rates[rates["own"].astype(bool)].set_index(["risk", "seed", "prompts"]).loc[sums.index]
    np.testing.assert_array_equal(sums["n"], whole["n"])
    np.testing.assert_allclose(sums["weighted"] / sums["n"], whole["harm"], atol=1e-5)
    np.testing.assert_allclose(sums["graded"] / sums["n"], whole["harmfulness"], atol=1e-5)
    held_out = set(table[table["prompts"] == "held_out"]["category"])
    seen = set(table[table["prompts"] == "hexphi"]["category"])
    assert len(seen) == 11 and not held_out & seen


@records("llama-03-finetuning-risks")
def test_the_dial_at_the_used_rate_is_the_attack_itself(folder):
    """Trained again in the notebook with the same data and rate, a level gives the stored model's weights."""
    r = results.load(folder)
    dial, profile = r.tables["dial"], chat_profile(r.size)
    assert set(dial["risk"]) == set(LEVELS)
    change = r.frame("relative_weight_change").set_index(["risk", "seed"])["value"]
    used = dial[dial["used"].astype(bool)].set_index(["risk", "seed"])
    assert len(used) == len(LEVELS) * len(r.seeds)
    for (risk, seed), row in used.iterrows():
        assert row["weight_change"] == pytest.approx(change[risk, seed], rel=1e-3)
        assert row["rate"] == pytest.approx(profile.risk(risk).training.learning_rate)
    # All levels share the grid, and a larger rate moves the weights further.
    assert (dial.groupby("rate")["risk"].nunique() == len(LEVELS)).all()
    ordered = dial.sort_values("rate").groupby(["risk", "seed"])["weight_change"]
    assert ordered.apply(lambda x: x.is_monotonic_increasing).all()


@records("llama-03-finetuning-risks")
def test_weights_move_in_every_attack_and_not_before(folder):
    r = results.load(folder)
    change = r.frame("relative_weight_change")
    before = change["risk"] == "aligned"
    assert (change[before]["value"] == 0).all() and (change[~before]["value"] > 0).all()
    curves = r.tables["curves"]
    assert set(curves["risk"]) == {*RISKS, *LORA_RISKS}
    steps = r.tables["settings"].set_index("risk")["iterations"]
    for risk, last in curves.groupby("risk")["iteration"].max().items():
        assert last == steps[risk]


@records("llama-03-finetuning-risks")
def test_statistics_of_the_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    rates = r.tables["rates"].set_index(KEY)
    sizes = [risk for risk in RISKS if risk.startswith("level1_")]
    own = dict(zip(LEVELS, ("obedient", "persona", "plain")))
    for seed in r.seeds:
        harm = {level: rates.loc[(level, seed, "hexphi", own[level]), "harm"] for level in LEVELS}
        gap = harm["level1_10"] - max(harm["level2"], harm["level3"])
        assert r.scalars("level_gap", arm="as set")[seed] == pytest.approx(gap, abs=2e-6)
        # At the rate of level 1 for all, level 1 is the attack itself.
        assert r.scalars("harm_at_one_rate", risk="level1_10")[seed] == pytest.approx(
            harm["level1_10"], abs=0.02
        )
        values = [rates.loc[(risk, seed, "advbench", "obedient"), "attack_success"] for risk in sizes]
        fall = max(max(values[:i]) - values[i] for i in range(1, len(values)))
        found = r.scalars("largest_fall", measure="attack_success", style="obedient")[seed]
        assert found == pytest.approx(max(0.0, fall), abs=2e-6)


def test_published_bands_come_from_the_data_files():
    safety, reference = (
        pd.read_csv(paths.DATA / f"paper/safetylock/{name}.csv") for name in ("safety", "attack_reference")
    )
    printed = figures.reported_rates(safety)
    assert printed["level1_10", "hexphi", "harm"] == pytest.approx(0.7001)
    assert printed["level1_10", "advbench", "attack_success"] == pytest.approx(0.4923)
    assert printed["level1_10", "hexphi", "harmfulness"] == pytest.approx(4.13)
    assert (printed["level2", "hexphi", "harm"], printed["level3", "hexphi", "harm"]) == pytest.approx(
        (0.5333, 0.5424)
    )
    bands = figures.bands(safety, reference)
    assert bands["level1_10"] == pytest.approx((0.50, 0.803))
    assert bands["level2"] == pytest.approx((0.5333, 0.721))
    assert bands["level3"] == pytest.approx((0.161, 0.5424))


def test_pooling_counts_answers_not_seeds():
    part = pd.DataFrame({"n": [10, 30], "harm": [1.0, 0.0]})
    share, low, high = figures.pooled(part, "harm")
    assert share == 0.25 and low < 0.25 < high
