"""Records of the conflict of gradients: relations that hold whatever was measured."""

import pytest
from test_records import records

from safebook import gradient_samples, results
from safebook.spf_arms import TASKS

RUN = "spf-02-conflict"
CONTROLS = ("fixed reply", "right answer")


@records(RUN)
def test_every_anchor_meets_every_set_at_every_stage(folder):
    r = results.load(folder)
    table = r.tables["cosines"]
    sets = [kind for kind in gradient_samples.KINDS if kind not in gradient_samples.SAFETY]
    assert not table.duplicated(["seed", "stage", "set", "anchor"]).any()
    assert len(table) == len(r.seeds) * 3 * len(sets) * 4
    for frame in (table, r.tables["layers"]):
        assert frame[["mean", "low", "high"]].abs().max().max() <= 1.000001
        assert frame["negative"].between(0, 1).all() and (frame["low"] <= frame["high"]).all()
    depth = int(max(r.frame("layers")["value"]))
    assert set(r.tables["layers"]["layer"]) == set(range(-1, depth + 1))


@records(RUN)
def test_answering_forbidden_requests_conflicts_with_refusing_them(folder):
    """The positive control: if the measure does not see this, it sees nothing."""
    r = results.load(folder)
    if r.size == "smoke":
        pytest.skip("the smoke models have not learned to refuse")
    table = r.tables["cosines"]
    part = table[(table["stage"] == "aligned") & (table["set"] == "compliance")].set_index("anchor")["mean"]
    assert (part["refusal"] < 0).all()
    harmless = table[
        (table["stage"] == "aligned") & (table["anchor"] == "refusal") & table["set"].isin(TASKS)
    ]
    assert part["refusal"].mean() < harmless["mean"].mean()


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table, steps = r.tables["cosines"], r.tables["steps"]
    tasks = [data for data in r.parameters["sets"] if data in TASKS]
    for seed in r.seeds:
        part = table[(table["seed"] == seed) & (table["stage"] == "aligned") & table["set"].isin(TASKS)]
        highest = part.groupby("anchor")["mean"].max()
        where = {"stage": "aligned", "set": "least of the tasks"}
        assert r.scalars("conflict", anchor="refusal", **where)[seed] == pytest.approx(
            highest["refusal"], abs=2e-6
        )
        control = r.scalars("conflict", anchor="strongest control", **where)[seed]
        assert control == pytest.approx(min(highest[a] for a in CONTROLS), abs=2e-6)
        run = steps[(steps["seed"] == seed) & (steps["arm"] == "sft") & steps["set"].isin(tasks)]
        rates = (run["cosine"] < 0).groupby([run["anchor"], run["set"]]).mean().groupby("anchor").min()
        where = {"arm": "sft", "set": "least of the tasks"}
        found = r.scalars("conflict_rate", anchor="refusal", **where)[seed]
        assert found == pytest.approx(rates["refusal"])
        control = r.scalars("conflict_rate", anchor="strongest control", **where)[seed]
        assert control == pytest.approx(max(rates[a] for a in CONTROLS))


@records(RUN)
def test_all_arms_start_alike_and_run_as_long(folder):
    """The first cosine is taken at the aligned weights on the same batch, with or without a defence."""
    r = results.load(folder)
    steps = r.tables["steps"]
    assert (steps.groupby(["seed", "arm", "set", "anchor"]).size() == r.parameters["steps"]).all()
    first = steps[(steps["step"] == 0) & (steps["anchor"] == "refusal")]
    first = first[first["set"] == r.parameters["defended"]]
    assert set(first["arm"]) == {"sft", "spf", "random subspace"}
    assert (first.groupby("seed")["cosine"].agg(lambda x: x.max() - x.min()) < 1e-4).all()
    table = r.tables["behaviour"]
    assert set(table["arm"]) == {"aligned", "sft", "spf", "random subspace", "mixing"}
    for column in ("refusal", "harm", "broken", "benign_exact", "task"):
        assert table[column].between(0, 1).all()
    before = table[table["arm"] == "aligned"].set_index(["seed", "set"])["task_loss"]
    after = table[table["arm"] == "sft"].set_index(["seed", "set"])["task_loss"]
    assert (after < before).all()  # plain fine-tuning learns
