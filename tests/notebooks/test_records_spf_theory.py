"""Records of the theory's measurements: relations that hold whatever was measured."""

import math

import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook import spf_theory as theory
from safebook.plots import spf_theory as figures
from safebook.spf_arms import TASKS

RUN = "spf-08-theory"
RUN_KEY = ["data", "optimiser", "arm", "seed"]


@records(RUN)
def test_shares_kept_are_shares_and_random_directions_meet_the_lemma(folder):
    r = results.load(folder)
    table = r.tables["retained"]
    assert table["retained"].between(-1e-6, 1 + 1e-6).all() and table["expected"].between(0, 1).all()
    assert set(table["data"]) == {*TASKS, "harm"} and set(table["state"]) == {"aligned", "after SPF"}
    for _, part in table.groupby(["seed", "state", "data", "draw", "subspace"]):
        # Of more directions no more is kept.
        assert (part.sort_values("share")["retained"].diff().dropna() <= 1e-6).all()
    random = table[table["subspace"] == "random"]
    assert abs((random["retained"] - random["expected"]).mean()) < 0.05


@records(RUN)
def test_every_run_is_there_with_every_step(folder):
    r = results.load(folder)
    steps, looks = r.tables["steps"], r.tables["looks"]
    for (_, optimiser, _, _), part in steps.groupby(RUN_KEY):
        wanted = r.parameters["sgd_steps" if optimiser == "sgd" else "adamw_steps"]
        assert part.sort_values("step")["step"].tolist() == list(range(wanted))
    found = steps.groupby(["data", "optimiser"])["arm"].unique().map(set)
    for data in r.parameters["data"]:
        assert found[data, "sgd"] == {"sft", "spf", "spf, complete", "random subspace", "mixing"}
        assert found[data, "adamw 0.5"] == {"sft", "spf", "spf, update", "random subspace", "mixing"}
        assert found[data, "adamw 0.9"] == {"sft", "spf", "spf, update"}
    # All arms start from the same model.
    first = looks[looks["iteration"] == 0].groupby(["data", "seed"])[["loss", "held"]].nunique()
    assert (first == 1).all().all()


@records(RUN)
def test_gradients_are_changed_by_the_arms_that_change_them_and_only_in_conflict(folder):
    steps = results.load(folder).tables["steps"]
    plain = steps[steps["arm"].isin(["sft", "mixing", "spf, update"])]
    assert (plain["kept"] - 1).abs().max() < 1e-5
    for arm in ("spf", "spf, complete", "random subspace"):
        part = steps[steps["arm"] == arm]
        assert (part[part["conflict"] >= 0]["kept"] - 1).abs().max() < 1e-5 or (part["conflict"] < 0).all()
        assert (part["kept"] <= 1 + 1e-5).all()


@records(RUN)
def test_complete_spf_under_sgd_has_no_first_order_part_in_conflict(folder):
    steps = results.load(folder).tables["steps"]
    part = steps[(steps["arm"] == "spf, complete") & (steps["conflict"] < 0)]
    assert (part["first_order"].abs() <= 1e-3 * part["length"] * part["safety_norm"] + 1e-8).all()


@records(RUN)
def test_shares_and_drifts_follow_from_the_steps(folder):
    r = results.load(folder)
    drift = r.tables["drift"].set_index(RUN_KEY)
    for key, part in r.tables["steps"].groupby(RUN_KEY):
        data, optimiser, arm, seed = key
        rows = part.sort_values("step").to_dict("records")
        where = {"data": data, "optimiser": optimiser, "arm": arm}
        for name, value in theory.drift(rows).items():
            assert drift.loc[key, name] == pytest.approx(value, rel=1e-4, abs=1e-5), (key, name)
        shares = theory.against(rows)
        assert r.scalars("steps_against_safety", **where)[seed] == pytest.approx(shares["against"], abs=1e-6)
        assert r.scalars("rising", **where)[seed] == pytest.approx(shares["rising"], abs=1e-6)
        used = r.scalars("bound_used", loss="anchor", **where)[seed]
        wanted = max(0.0, drift.loc[key, "rise"]) / drift.loc[key, "bound"]
        assert used == pytest.approx(wanted, rel=1e-2, abs=1e-3)


@records(RUN)
def test_the_worst_set_is_the_highest_number(folder):
    r = results.load(folder)
    for metric, labels in (
        ("bound_used", {"optimiser": "sgd", "arm": "spf", "loss": "anchor"}),
        ("bound_used", {"optimiser": "adamw 0.5", "arm": "spf", "loss": "held-out"}),
        ("log2_extra_steps", {"arm": "spf", "rho": "assumed"}),
    ):
        by_set = [r.scalars(metric, data=data, **labels) for data in r.parameters["data"]]
        for seed, value in r.scalars(metric, data="highest", **labels).items():
            assert value == pytest.approx(max(found[seed] for found in by_set))


@records(RUN)
def test_steps_against_safety_are_counted_on_all_sets_together(folder):
    r = results.load(folder)
    steps = r.tables["steps"]
    frame = (
        r.frame("steps_against_safety")
        .query("data == 'all'")
        .set_index(["optimiser", "arm", "seed"])["value"]
    )
    for (optimiser, arm, seed), part in steps.groupby(["optimiser", "arm", "seed"]):
        found = {key[2]: value for key, value in frame.items() if key[:2] == (optimiser, arm)}
        hit = part[part["conflict"] < 0]
        assert (seed in found) == bool(len(hit))
        if len(hit):
            against = hit["first_order"] > theory.ROUNDING * hit["length"] * hit["safety_norm"]
            assert found[seed] == pytest.approx(against.mean(), abs=0.5 / len(hit))


@records(RUN)
def test_energy_removed_is_compared_with_that_of_isotropic_directions(folder):
    r = results.load(folder)
    table = r.tables["retained"]
    paper = r.parameters["rank"]
    for (seed, share, subspace), part in table.groupby(["seed", "share", "subspace"]):
        hit = part[part["cosine"] < 0] if (part["cosine"] < 0).any() else part
        rank = "of the runs" if share == pytest.approx(paper) else f"{share:g}"
        found = r.scalars("log2_removed", rank=rank, subspace=subspace)[seed]
        wanted = math.log2((1 - hit["retained"]).mean() / (1 - hit["expected"]).mean())
        assert found == pytest.approx(wanted, abs=1e-3)


@records(RUN)
def test_extra_steps_are_measured_against_what_is_kept(folder):
    r = results.load(folder)
    for data in r.parameters["data"]:
        for arm in ("spf", "spf, complete", "random subspace"):
            kept = r.scalars("kept", data=data, arm=arm, optimiser="sgd")
            slower = r.scalars("log2_steps", data=data, arm=arm)
            extra = r.scalars("log2_extra_steps", data=data, arm=arm, rho="measured")
            for seed in r.seeds:
                wanted = slower[seed] - math.log2(1 / max(kept[seed], 1e-6))
                assert extra[seed] == pytest.approx(wanted, abs=1e-6)


def test_printed_steps_come_from_the_data_file():
    printed = figures.reported(pd.read_csv(paths.DATA / "paper/spf/replication_steps.csv"))
    assert printed == {"adamw 0.9": (11.0, 32.0), "adamw 0.5": (3.0, 32.0)}
