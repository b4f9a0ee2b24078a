"""Records of the conflict of gradients: relations that hold whatever was measured."""

import pytest
import torch
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


def test_one_of_many_wordings_is_no_opposite_of_an_answer():
    """Why the positive control can fail: of a refusal that the model gives anyway, the loss that is left is about wording.

    Next-token logits of a model that spreads its refusals over equally likely first words: there the gradients of one
    wording and of an answer are orthogonal. With a single wording they oppose each other, if anything of it is left to learn.
    """

    def product(refusals):
        logits = torch.cat([torch.zeros(refusals), torch.tensor([-9.0])]).double().requires_grad_()
        losses = [-logits.log_softmax(0)[i] for i in (0, refusals)]  # one refusal, the answer
        one, answer = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses)
        return float(torch.cosine_similarity(one, answer, dim=0))

    assert abs(product(8)) < 1e-3
    assert product(1) < -0.999


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table, steps = r.tables["cosines"], r.tables["steps"]
    tasks = [data for data in r.parameters["sets"] if data in TASKS]
    for seed in r.seeds:
        part = table[(table["seed"] == seed) & (table["stage"] == "aligned") & table["set"].isin(TASKS)]
        run = steps[(steps["seed"] == seed) & (steps["arm"] == "sft") & steps["set"].isin(tasks)]
        rates = (run["cosine"] < 0).groupby([run["anchor"], run["set"]]).mean()
        for which, cosine, rate in (
            ("least of the tasks", "max", "min"),
            ("mean of the tasks", "mean", "mean"),
        ):
            found = part.groupby("anchor")["mean"].agg(cosine)
            below = rates.groupby("anchor").agg(rate)
            layers = part.groupby("anchor")["negative_layers"].agg(rate)
            strongest = (min(found[a] for a in CONTROLS), max(below[a] for a in CONTROLS))
            for metric, where, own, control in (
                ("layer_conflict", {"stage": "aligned"}, layers["refusal"], max(layers[a] for a in CONTROLS)),
                ("conflict", {"stage": "aligned"}, found["refusal"], strongest[0]),
                ("conflict_rate", {"arm": "sft"}, below["refusal"], strongest[1]),
            ):
                where = where | {"set": which}
                got = r.scalars(metric, anchor="refusal", **where)[seed]
                assert got == pytest.approx(own, abs=2e-6)
                got = r.scalars(metric, anchor="strongest control", **where)[seed]
                assert got == pytest.approx(control, abs=2e-6)


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
