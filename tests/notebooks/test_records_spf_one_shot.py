"""Records of the overlap of one sample with a batch: relations that hold whatever was measured."""

import pytest
from test_records import records

from safebook import gradient_samples, results
from safebook.spf_arms import SHARE, TASKS

RUN = "spf-03-one-shot"


@records(RUN)
def test_overlaps_and_energies_are_shares_and_every_sample_is_there(folder):
    r = results.load(folder)
    for name, column in (("samples", "overlap"), ("ranks", "overlap"), ("captured", "captured")):
        table = r.tables[name]
        assert table[column].between(0, 1.000001).all() and table["chance"].between(0, 1).all()
    samples = r.tables["samples"]
    counts = samples.groupby(["seed", "stage", "gradient"]).size()
    kinds = [kind for kind in gradient_samples.KINDS if kind != "compliance"]
    assert (counts == r.parameters["singles"]).all() and len(counts) == len(r.seeds) * 3 * len(kinds)


@records(RUN)
def test_chance_is_the_rank_over_the_outputs(folder):
    """At least one direction of a matrix; a wider rank has more by chance."""
    r = results.load(folder)
    table = r.tables["ranks"]
    width = max(r.frame("width")["value"])
    chance = table.groupby("k")["chance"].mean()
    assert chance.is_monotonic_increasing
    at_one = chance.loc[1] if 1 in chance.index else None
    assert at_one is None or at_one <= 1 / width + 1e-6  # matrices have `width` outputs or more
    assert r.tables["samples"]["chance"].mean() <= max(SHARE, 1 / width) + 1e-6


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    samples, energy = r.tables["samples"], r.tables["captured"]
    for seed in r.seeds:
        part = samples[samples["seed"] == seed]
        mean = part["above"].groupby([part["stage"], part["gradient"]]).mean()
        for kind in gradient_samples.SAFETY:
            found = r.scalars("overlap_above_chance", gradient=kind, stage="aligned")[seed]
            assert found == pytest.approx(mean["aligned", kind], abs=2e-6)
            control = max(mean["random", kind], *(mean["aligned", task] for task in TASKS))
            where = {"gradient": "highest control", "stage": f"against {kind}"}
            assert r.scalars("overlap_above_chance", **where)[seed] == pytest.approx(control, abs=2e-6)
        held = energy[(energy["seed"] == seed) & (energy["stage"] == "aligned")]
        held = held[held["gradient"] == "one wording"].set_index("batch")["above"]
        where = {"gradient": "one wording", "stage": "aligned"}
        found = r.scalars("captured_above_chance", of="compliance", **where)[seed]
        assert found == pytest.approx(held["compliance"], abs=2e-6)
        found = r.scalars("captured_above_chance", of="highest task", **where)[seed]
        assert found == pytest.approx(held[list(TASKS)].max(), abs=2e-6)


@records(RUN)
def test_the_overlap_with_the_own_batch_is_the_diagonal(folder):
    r = results.load(folder)
    across = r.tables["across"]
    own = across[across["gradient"] == across["batch"]].set_index(["seed", "stage", "gradient"])["overlap"]
    samples = r.tables["samples"].groupby(["seed", "stage", "gradient"])["overlap"].mean()
    assert (own - samples).abs().max() < 2e-6
