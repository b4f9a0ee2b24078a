"""Records of what defences do inside: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook.plots.defences_inside import CASES, STEP, cases

RUN = "synthesis-02-what-defences-do-inside"
KEYS = ["case", "seed"]


@records(RUN)
def test_every_case_is_measured_by_behaviour_and_inside(folder):
    r = results.load(folder)
    found = cases(r)
    assert set(CASES) <= set(found) and sum(case.startswith(STEP) for case in found) == 3
    for name in ("behaviour", "clusters", "sensitivity"):
        counts = r.tables[name].groupby(KEYS).size()
        assert len(counts) == len(found) * len(r.seeds) and counts.nunique() == 1, name
    shares = r.tables["behaviour"].drop(columns=["case", "seed", "n", "harmless_n", "matched_n"])
    assert ((shares >= 0) & (shares <= 1)).all().all()


@records(RUN)
def test_plain_fine_tuning_is_the_testbeds_attack(folder):
    """Trained once more for its earlier states, it ends where the attacked model is."""
    r = results.load(folder)
    assert max(r.scalars("retrained_distance").values()) < 0.02


@records(RUN)
def test_the_aligned_model_is_its_own_reference(folder):
    """By its own means and by the aligned model's the aligned model has the same clusters."""
    r = results.load(folder)
    table = r.tables["clusters"]
    wide = table[table["case"] == "aligned"].pivot_table("separation", ["seed", "contrast", "layer"], "means")
    assert np.allclose(wide["own"], wide["aligned"], atol=2e-6)
    assert (table["accuracy"].between(0, 1)).all()
    difference = table["tau_allowed"] - table["tau_forbidden"]
    assert np.allclose(difference, table["separation"], atol=5e-6)
    for metric, value in (("separation_kept", 1.0), ("separation_lost", 0.0), ("set_apart_again", 0.0)):
        case = "fine-tuned" if metric == "set_apart_again" else "aligned"
        assert set(r.scalars(metric, case=case).values()) == {value}


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table = r.tables["clusters"]
    table = table[(table["contrast"] == "matched") & (2 * table["layer"] > table["layer"].max())]
    mean = table.groupby(["case", "seed", "means"])["separation"].mean()
    said = r.tables["behaviour"].set_index(KEYS)["refusal"]
    for seed in r.seeds:
        whole = mean["aligned", seed, "own"]
        for case in ("fine-tuned", "lock, prompt", "spf", "mixing"):
            kept = mean[case, seed, "own"] / whole
            close = {"abs": 1e-4 * max(1.0, 1 / abs(whole)), "rel": 1e-3}
            assert r.scalars("separation_kept", case=case)[seed] == pytest.approx(kept, **close)
            refused = said[case, seed] / said["aligned", seed] if said["aligned", seed] else 0.0
            ahead = r.scalars("refusals_ahead", case=case)[seed]
            assert ahead == pytest.approx(refused - kept, **close)
            back = mean[case, seed, "aligned"] - mean["fine-tuned", seed, "aligned"]
            assert r.scalars("set_apart_again", case=case)[seed] == pytest.approx(back, abs=5e-6)


@records(RUN)
def test_settings_are_chosen_by_the_highest_score_on_validation(folder):
    grid = results.load(folder).tables["grid"]
    for _, part in grid.groupby("arm", sort=False):
        assert part["chosen"].sum() == 1
        assert part.loc[part["chosen"], "score"].iloc[0] == part["score"].max()


@records(RUN)
def test_updates_read_within_or_beyond_random_ones_and_a_lock_changes_no_weight(folder):
    r = results.load(folder)
    reads = r.tables["reads"]
    assert (reads["low"] <= reads["high"]).all()
    assert "of fine-tuning" not in set(reads[reads["case"] == "aligned"]["update"])
    assert set(reads[reads["case"] == "lock, prompt"]["update"]) == set(
        reads[reads["case"] == "fine-tuned"]["update"]
    )
    if r.size != "smoke":
        assert min(r.scalars("refusal", case="aligned").values()) > 0.9
