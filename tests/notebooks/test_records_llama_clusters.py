"""Records of the check on Llama: relations that hold whatever was measured."""

import math

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook.chat_profiles import chat_profile
from safebook.plots.llama_clusters import KINDS, SUMMED, WIDTH, places

RUN = "llama-04-clusters-and-weights"
STAGES, POSITIONS, CONTRASTS = {"base", "chat", "benign"}, {"answer", "decision"}, {"plain", "matched"}


@records(RUN)
def test_separation_is_the_difference_of_mean_distances_over_the_root_of_the_width(folder):
    r = results.load(folder)
    root = math.sqrt(chat_profile(r.size).model.width)
    table = r.tables["tau"].query("metric == 'euclidean'")
    assert set(table["stage"]) == STAGES and set(table["position"]) == POSITIONS
    assert set(table["prompts"]) == set(KINDS) and set(table["contrast"]) == CONTRASTS
    for (seed, stage, position, contrast), part in table.groupby(["seed", "stage", "position", "contrast"]):
        mean = part.pivot(index="layer", columns="prompts", values="mean")
        safe = "safe" if contrast == "plain" else "borderline"
        expected = ((mean[safe] - mean["unsafe"]) / root).mean()
        found = r.scalars("separation", stage=stage, position=position, contrast=contrast)[seed]
        assert found == pytest.approx(expected, abs=1e-5)


@records(RUN)
def test_changes_follow_and_shares_are_shares(folder):
    r = results.load(folder)
    for update, (before, after) in {"alignment": ("base", "chat"), "benign": ("chat", "benign")}.items():
        for position, contrast in places(r):
            where = {"position": position, "contrast": contrast}
            old, new = (r.scalars("separation", stage=s, **where) for s in (before, after))
            for seed, value in r.scalars("separation_change", update=update, **where).items():
                assert value == pytest.approx(new[seed] - old[seed], abs=1e-9)
    frame = r.frame()
    shares = ("accuracy", "called_safe", "success_auc", "refusal", "success")
    assert frame[frame["metric"].isin(shares)]["value"].between(0, 1).all()
    assert set(frame[frame["metric"].isin(shares)]["metric"]) == set(shares)


@records(RUN)
def test_evaluated_prompts_are_two_thirds_of_those_asked_and_jailbreaks_are_theirs(folder):
    r = results.load(folder)
    counts = r.tables["tau"].drop_duplicates("prompts").set_index("prompts")["n"]
    most = r.parameters["samples"]
    assert max(counts[["safe", "unsafe", "borderline"]]) <= most - most // 3
    table = r.tables["jailbreaks"]
    per = table[(table["stage"] == "chat") & (table["position"] == "answer")].groupby("seed")["n"]
    assert (per.nunique() == 1).all() and (per.first() == counts["unsafe"]).all()
    assert (per.sum() == counts["jailbreak"]).all() and (table["successes"] <= table["n"]).all()
    whole = table.groupby(["seed", "stage", "position"])[["successes", "n"]].sum()
    for seed, share in r.scalars("success", stage="chat", prompts="jailbreak").items():
        found = whole.loc[(seed, "base", "answer")]  # one model's successes, whichever tau tells them
        assert share == pytest.approx(found["successes"] / found["n"])


@records(RUN)
def test_nulls_of_the_column_space_follow_from_its_dimensions(folder):
    r = results.load(folder)
    table, model = r.tables["writes"], chat_profile(r.size).model
    np.testing.assert_allclose(table["expected"], 1 - table["basis"] / model.hidden, atol=1e-5)
    assert (table["basis"] <= model.width).all() and table[["energy", "median"]].stack().between(0, 1).all()
    assert (np.abs(table["expected_median"] ** 2 - table["expected"]) < 0.01).all()
    assert ((table["stable_rank"] >= 1 - 1e-6) & (table["stable_rank"] <= model.width)).all()
    needed = math.ceil(2 / 3 * model.layers)
    for (seed, update), part in table.groupby(["seed", "update"]):
        excess = (part["energy"] - part["expected"]).nlargest(needed).iloc[-1]
        assert r.scalars("energy_excess", update=update)[seed] == pytest.approx(excess, abs=1e-5)


@records(RUN)
def test_random_updates_prefer_nothing_and_the_claims_take_the_lowest_upper_layer(folder):
    r = results.load(folder)
    own = r.tables["reads"].query("inputs == 'own'")
    assert (own["random_low"] <= own["random_high"]).all()
    assert np.abs((own["random_low"] + own["random_high"]) / 2).mean() < 0.35
    upper = own[2 * (own["layer"] - 1) >= own["layer"].max()]
    for (seed, update, contrast, measure), part in upper.groupby(["seed", "update", "contrast", "measure"]):
        where = {"update": update, "contrast": contrast, "measure": measure, "inputs": "own"}
        found = r.scalars("log2_ratio", **where, arm="measured")[seed]
        assert found == pytest.approx(part["log2_ratio"].min(), abs=1e-5)
        assert r.scalars("log2_ratio", **where, arm="random")[seed] <= part["random_high"].min() + 1e-5


def test_published_sums_divided_by_five_give_the_gaps_of_the_specification():
    """The chat model's largest gap per prompt, at layer 14, and the base model's there."""
    import pandas as pd

    from safebook import paths

    table = pd.read_csv(paths.DATA / "paper/pcfg/llama_tau.csv")
    table = table[
        (table["model"] == "llama-3-8b") & (table["measure"] == "euclidean") & (table["layer"] == 14)
    ]
    wide = table.pivot(index="variant", columns="prompts", values="mean")
    gap = (wide["safe"] - wide["unsafe"]) / SUMMED
    assert gap["chat"] == pytest.approx(0.81, abs=0.005) and gap["base"] == pytest.approx(0.06, abs=0.005)
    assert WIDTH == 64**2
