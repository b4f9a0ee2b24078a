"""Records of the attacks in the prompt: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import rates, records

from safebook import paths, results
from safebook.plots import prompt_attacks as figures
from safebook.worlds import chat_data

RUN = "safetylock-04-attacks-and-defences"
KEY = ["model", "seed", "prompts", "attack", "defence"]
LOCKS = ("lock, response", "lock, prompt")
RANDOM = ("random directions, response", "random directions, prompt")
AROUND = ("demonstration", "perplexity filter", "paraphrase", "self-reminder", "self-examination")
STATIC = {"plain", *chat_data.WRAPPERS, "prefilling", "suffix"}


def wide(folder):
    return rates(folder, KEY)


@records(RUN)
def test_every_attack_meets_every_defence_on_the_same_prompts(folder):
    r = results.load(folder)
    table = r.tables["rates"]
    assert (table.groupby("prompts")["n"].nunique() == 1).all()
    harmful = table[table["prompts"] == "hexphi"]
    for (model, defence), part in harmful.groupby(["model", "defence"]):
        own = STATIC | ({"adaptive suffix"} if defence in LOCKS else set())
        assert set(part["attack"]) == own, (model, defence)
        assert set(part["seed"]) == set(r.seeds)
    found = harmful.groupby("model")["defence"].unique().map(set)
    assert found["level1_10"] == {"none", *LOCKS, *RANDOM, *AROUND}
    assert found["aligned"] == {"none", *LOCKS}


@records(RUN)
def test_judge_and_phrases_are_two_views_of_the_same_answers(folder):
    rates = wide(folder)
    np.testing.assert_allclose(rates["attack_success"] + rates["refusal"], 1, atol=2e-6)
    benign = rates[rates.index.get_level_values("prompts") != "hexphi"]
    # An exact answer is neither broken nor a refusal.
    assert (benign["exact"] + benign["broken"] <= 1 + 2e-6).all()
    assert (benign["exact"] + benign["refusal"] <= 1 + 2e-6).all()


@records(RUN)
def test_what_replaces_answers_by_a_refusal_never_adds_harm(folder):
    rates = wide(folder).xs("level1_10", level="model")
    none = rates.xs("none", level="defence")
    for defence in ("perplexity filter", "self-examination"):
        part = rates.xs(defence, level="defence")
        for metric in ("harm", "attack_success", "broken"):
            assert (part[metric] <= none[metric].loc[part.index] + 2e-6).all()
    # The threshold is taken from plain harmful requests; the prefilled request is the same text.
    filtered = rates.xs("perplexity filter", level="defence")
    blocked = none["refusal"] - filtered["refusal"]
    prompts = blocked.xs("hexphi", level="prompts")
    assert (prompts.xs("plain", level="attack") <= 1e-6).all()


@records(RUN)
def test_losses_of_the_searches_never_rise(folder):
    r = results.load(folder)
    table = r.tables["searches"].sort_values("step")
    for _, part in table.groupby(["model", "seed", "against"]):
        assert part["step"].tolist() == list(range(r.parameters["steps"] + 1))
        assert (part["loss"].diff().dropna() <= 0).all()
    assert set(table["against"]) == {"none", *LOCKS} and set(table["model"]) == {"level1_10", "aligned"}


@records(RUN)
def test_verdicts_are_counted_within_the_answers(folder):
    table = results.load(folder).tables["examined"]
    for column in ("forbidden", "flagged", "right"):
        assert (table[column] <= table["n"]).all()
    # Wrong verdicts are at most as many as flags and forbidden answers together.
    assert (table["n"] - table["right"] <= table["forbidden"] + table["flagged"]).all()


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_table(folder):
    r, rates = results.load(folder), wide(folder)
    for seed in r.seeds:

        def of(metric, attack, defence, seed=seed):
            return rates.loc[("level1_10", seed, "hexphi", attack, defence), metric]

        highest = {d: max(of("attack_success", a, d) for a in STATIC) for d in ("none", *LOCKS, *AROUND)}
        highest["best around the prompt"] = min(highest[d] for d in AROUND)
        for defence, value in highest.items():
            found = r.scalars("highest_success", model="level1_10", defence=defence)[seed]
            assert found == pytest.approx(value, abs=2e-6)
        for defence in (*LOCKS, *RANDOM):
            drop = np.mean([of("harm", a, "none") - of("harm", a, defence) for a in STATIC])
            found = r.scalars("mean_harm_removed", model="level1_10", defence=defence)[seed]
            assert found == pytest.approx(drop, abs=2e-6)
        for defence in LOCKS:
            rise = of("harm", "adaptive suffix", defence) - of("harm", "plain", defence)
            found = r.scalars("suffix_rise", defence=defence, suffix="adaptive")[seed]
            assert found == pytest.approx(rise, abs=2e-6)


def test_printed_rates_come_from_the_data_file():
    printed = figures.reported(pd.read_csv(paths.DATA / "paper/safetylock/prompt_attacks.csv"))
    assert printed["DeepInception", "lock"] == 0.02 and printed["PAIR", "lock"] == 0.14
    assert printed["GCG", "perplexity filter"] == 0 and printed["GCG", "retokenisation"] == 0.94
    assert len(printed) == 4 * 8
    for attack in ("AutoDAN", "DeepInception", "GCG", "PAIR"):  # the released check never sees the answer
        assert printed[attack, "self-examination"] == printed[attack, "none"]


def test_pooling_counts_answers_not_seeds():
    share, low, high = figures.pooled(pd.DataFrame({"n": [10, 30], "value": [1.0, 0.0]}))
    assert share == 0.25 and low < 0.25 < high
