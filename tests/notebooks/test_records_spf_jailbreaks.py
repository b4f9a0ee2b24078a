"""Records of the jailbreaks after fine-tuning: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import rates, records

from safebook import paths, results
from safebook.plots import spf_jailbreaks as figures
from safebook.spf_jailbreaks import chosen
from safebook.worlds import chat_data

RUN = "spf-06-jailbreaks"
KEY = ["model", "at", "seed", "prompts", "attack"]
STATIC = [*chat_data.WRAPPERS, "prefilling"]
SEARCHED = ["template search", "suffix"]


def wide(folder):
    return rates(folder, KEY)


@records(RUN)
def test_every_attack_meets_every_model_on_the_same_prompts(folder):
    r = results.load(folder)
    table = r.tables["rates"]
    assert (table.groupby("prompts")["n"].nunique() == 1).all()
    harmful = table[table["prompts"] == "hexphi"]
    plain = {"plain", "plain, no system message"}
    for (model, at), part in harmful.groupby(["model", "at"]):
        searched = SEARCHED if at == "equal steps" else []
        assert set(part["attack"]) == {*plain, *STATIC, *searched}, (model, at)
        assert set(part["seed"]) == set(r.seeds)
    assert set(harmful[harmful["at"] == "equal steps"]["model"]) == set(figures.MODELS)
    assert set(harmful[harmful["at"] == "equal loss"]["model"]) == set(figures.FINE_TUNED)


@records(RUN)
def test_judge_and_phrases_are_two_views_of_the_same_answers(folder):
    rates = wide(folder)
    np.testing.assert_allclose(rates["attack_success"] + rates["refusal"], 1, atol=2e-6)
    benign = rates[rates.index.get_level_values("prompts") != "hexphi"]
    assert (benign["exact"] + benign["broken"] <= 1 + 2e-6).all()


@records(RUN)
def test_losses_of_the_searches_never_rise(folder):
    r = results.load(folder)
    for (_, _, kind), part in r.tables["searches"].groupby(["model", "seed", "search"]):
        steps = r.parameters["generations" if kind == "template search" else "suffix_steps"]
        assert part.sort_values("step")["step"].tolist() == list(range(steps + 1))
        assert (part.sort_values("step")["loss"].diff().dropna() <= 1e-9).all()
    found = r.tables["found"]
    assert len(found) == len(figures.MODELS) * len(r.seeds) * 2
    assert found[found["search"] == "template search"]["found"].str.contains(":").all()


@records(RUN)
def test_rises_are_against_the_aligned_model_of_the_same_seed(folder):
    r, rates = results.load(folder), wide(folder)
    for seed in r.seeds:

        def of(model, at, attack, seed=seed):
            return rates.loc[(model, at, seed, "hexphi", attack), "harm"]

        for method in figures.FINE_TUNED:
            for at, jailbreaks, prefix in (
                ("equal steps", [*STATIC, *SEARCHED], ""),
                ("equal loss", STATIC, "static "),
            ):
                ours = [of(method, at, a) for a in jailbreaks]
                own = [of("aligned", "equal steps", a) for a in jailbreaks]
                for kind, value in (
                    ("strongest", max(ours) - max(own)),
                    ("mean", np.mean(ours) - np.mean(own)),
                ):
                    found = r.scalars("success_rise", method=method, jailbreak=prefix + kind, at=at)[seed]
                    assert found == pytest.approx(value, abs=2e-6)
                found = r.scalars("success_rise", method=method, jailbreak="disguise", at=at)[seed]
                assert found == pytest.approx(
                    ours[jailbreaks.index("disguise")] - own[jailbreaks.index("disguise")]
                )


@records(RUN)
def test_models_are_compared_at_a_loss_that_each_reaches(folder):
    r = results.load(folder)
    table = r.tables["courses"]
    for seed in r.seeds:
        part = table[table["seed"] == seed]
        lowest = part.groupby("arm")["loss"].min()
        common = r.scalars("common_loss")[seed]
        assert common == pytest.approx(lowest.max(), abs=2e-6)
        for arm in figures.FINE_TUNED:
            first = part[(part["arm"] == arm) & (part["loss"] <= common + 2e-6)]["step"].min()
            assert r.scalars("step", arm=arm, at="equal loss")[seed] == first
            assert r.scalars("loss", arm=arm, at="equal loss")[seed] <= common + 2e-6


@records(RUN)
def test_settings_are_chosen_by_the_rule_and_alike_for_every_arm(folder):
    r = results.load(folder)
    table = r.tables["grid"].rename(columns={"used": "is_used"})
    plain = table[table["arm"] == "sft"]["exact"].iloc[0]
    sizes = table[table["arm"] != "sft"].groupby("arm").size()
    assert set(sizes.index) == {"spf", "mixing"} and sizes.nunique() == 1
    for arm in ("spf", "mixing"):
        points = table[table["arm"] == arm].to_dict("records")
        used = chosen(points, plain)["setting"]
        assert [p["setting"] for p in points if str(p["is_used"]) == "True"] == [used]
        assert r.scalars("setting", arm=arm)[r.seeds[0]] == used


def test_printed_rates_come_from_the_data_file():
    printed = figures.reported(pd.read_csv(paths.DATA / "paper/spf/attack_success.csv"))
    assert {name: pair for name, *pair in printed} == {
        "llama-3.1-8b": [0.019, 0.176],
        "mistral-7b": [0.24, 0.164],
        "qwen2.5-7b": [0.124, 0.106],
    }
