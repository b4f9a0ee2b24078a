"""Records of a lock's transfer: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook.lock_arms import ARMS
from safebook.plots import lock_transfer as figures
from safebook.risks import RISKS

RUN = "safetylock-02-transfer"
LEVELS = list(figures.LEVELS)


@records(RUN)
def test_every_child_has_every_contrast_in_both_arms(folder):
    r = results.load(folder)
    table = r.tables["cosines"]
    assert table["cosine"].between(-1.000001, 1.000001).all()
    models = {*RISKS, "aligned_sft", "pretrained"} | ({"other seed"} if len(r.seeds) > 1 else set())
    assert set(table["model"]) == models
    for _, part in table.groupby(["arm", "model", "seed", "heads"]):
        assert sorted(part["contrast"]) == sorted(figures.CONTRASTS)
    assert set(table["arm"]) == set(ARMS)


@records(RUN)
def test_relatives_are_nearer_than_strangers_and_small_tunes_than_pretraining(folder):
    """Directions of one initialisation's heads mean nothing in another's; alignment moves more than any attack."""
    r = results.load(folder)
    table = r.tables["cosines"]
    table = table[(table["heads"] == "all") & (table["contrast"] == "safety")]
    mean = table.groupby(["arm", "model"])["cosine"].mean()
    for arm in ARMS:
        assert mean[arm, "level1_10"] > mean[arm, "pretrained"]
        if "other seed" in mean[arm]:
            assert abs(mean[arm, "other seed"]) < 0.5 < mean[arm, "level1_10"]
    changes = r.tables["changes"].groupby("model")["change"].mean()
    assert (changes > 0).all() and changes["pretrained"] > changes["aligned_sft"]


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    cosines, kl, rates = (r.tables[k] for k in ("cosines", "divergences", "rates"))
    for seed in r.seeds:
        for arm in ARMS:
            here = cosines[
                (cosines["seed"] == seed) & (cosines["arm"] == arm) & (cosines["heads"] == "locked")
            ]
            for contrast in figures.CONTRASTS:
                part = here[here["model"].isin(LEVELS) & (here["contrast"] == contrast)]
                found = r.scalars("direction_cosine", arm=arm, contrast=contrast, heads="locked")[seed]
                assert len(part) == 3 and found == pytest.approx(part["cosine"].min(), abs=2e-6)
            part = kl[(kl["seed"] == seed) & (kl["arm"] == arm) & kl["model"].isin(LEVELS)]
            for kind in ("safety", "random"):
                found = r.scalars("log10_divergence", arm=arm, direction=kind)[seed]
                assert found == pytest.approx(part[part["direction"] == kind]["ratio"].max(), abs=2e-6)
            harm = rates[(rates["seed"] == seed) & (rates["prompts"] == "hexphi")]
            harm = harm[harm["arm"] == arm].pivot_table("harm", "model", "lock").loc[LEVELS]
            for other in ("own", "other seed", "random directions"):
                if other in harm:
                    found = r.scalars("rate_difference", arm=arm, other=other)[seed]
                    assert found == pytest.approx((harm["base"] - harm[other]).abs().max(), abs=2e-6)


@records(RUN)
def test_densities_are_densities_and_divergences_are_positive(folder):
    r = results.load(folder)
    table = r.tables["divergences"]
    assert (table["kl"] >= 0).all() and (table["classes"] > 0).all()
    assert "halves" in set(table["model"])
    curves = r.tables["curves"]
    for _, part in curves.groupby(["arm", "model", "class"]):
        part = part.sort_values("at")
        area = np.trapezoid(part["density"], part["at"])
        assert 0.5 < area < 1.05  # a child's mass may lie outside the base model's frame
    base = curves[curves["model"] == "aligned"]
    for _, part in base.groupby(["arm", "class"]):
        part = part.sort_values("at")
        assert np.trapezoid(part["density"], part["at"]) == pytest.approx(1, abs=0.03)


@records(RUN)
def test_without_a_lock_a_model_is_asked_once_and_with_one_on_the_same_prompts(folder):
    table = results.load(folder).tables["rates"]
    assert not table.duplicated(["seed", "model", "arm", "lock", "prompts"]).any()
    assert set(table[table["lock"] == "none"]["arm"]) == {"both"}
    assert (table.groupby("prompts")["n"].nunique() == 1).all()
    np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
    for model in RISKS:
        found = set(table[table["model"] == model]["lock"])
        assert {"none", "base"} <= found and ("own" in found) == (model in LEVELS)


def test_published_bound_and_the_vendors_next_version():
    stated = pd.read_csv(paths.DATA / "paper/safetylock/stated.csv")
    bound = stated[stated["quantity"] == "cosine of base and fine-tuned directions"]
    assert bound["value"].astype(float).tolist() == [0.99] and bound["bound"].tolist() == ["above"]


def test_models_are_in_the_books_order():
    assert figures.in_order(["halves", "pretrained", "level3", "level1_10"]) == [
        "level1_10", "level3", "pretrained", "halves",
    ]  # fmt: skip
    assert figures.three(["halves", "aligned", "child"]) == ["child"]
