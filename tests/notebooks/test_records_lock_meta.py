"""Records of the lock's heads: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook.lock_arms import ARMS, strength
from safebook.plots import lock_heads as figures

RUN = "safetylock-01-meta-lock"


@records(RUN)
def test_the_locked_heads_are_the_best_ones_of_every_model(folder):
    r = results.load(folder)
    table = r.tables["heads"]
    for (arm, _), part in table.groupby(["arm", "seed"]):
        count = strength(r.size, arm).heads
        assert part["locked"].sum() == count and sorted(part["rank"]) == list(range(len(part)))
        chosen, rest = (part[part["locked"] == k]["validation_accuracy"] for k in (1, 0))
        assert chosen.min() >= rest.max() - 1e-9
        assert not part.duplicated(["layer", "head"]).any()
        assert part["sigma"].min() > 0
    assert set(table["arm"]) == set(ARMS) and set(table["seed"]) == set(r.seeds)


@records(RUN)
def test_sigma_holds_half_the_gap_between_the_classes(folder):
    """Pooled over two classes of equal size: sigma^2 = within^2 + (gap / 2)^2."""
    table = results.load(folder).tables["heads"]
    table = table[table["arm"] == "response"]
    assert (table["sigma"] >= 0.98 * table["gaps"] / 2).all()


@records(RUN)
def test_overlaps_are_shares_and_nested_ones_are_larger(folder):
    r = results.load(folder)
    table = r.frame("head_overlap")
    assert table["value"].between(0, 1).all()
    wide = table.pivot_table("value", ["arm", "rule", "between", "seed"], "kind")
    assert (wide["nested"] >= wide["overlap"] - 1e-9).all()
    total = len(r.tables["heads"].groupby(["layer", "head"]))
    for arm in ARMS:
        chance = r.scalars("head_overlap", arm=arm, rule="paper", kind="overlap", between="chance")
        assert all(v == pytest.approx(strength(r.size, arm).heads / total) for v in chance.values())


@records(RUN)
def test_shuffled_labels_are_at_chance_unless_tokens_are_split(folder):
    """Fitted on nothing real, probes of unseen pairs are right half of the time; of seen answers' other tokens, more."""
    r = results.load(folder)
    table = r.tables["accuracies"]
    dealt = table[(table["labels"] == "shuffled") & (table["arm"] == "response")]
    mean = dealt.groupby("split")["all"].mean()
    assert mean["token"] > mean["pair"]
    if r.size != "smoke":
        assert abs(mean["pair"] - 0.5) < 0.1


@records(RUN)
def test_readings_are_complete_and_agree_with_the_scalars(folder):
    r = results.load(folder)
    table = r.tables["readings"]
    assert set(table["reading"]) == set(figures.READINGS)
    assert (table["low"] <= table["auc"]).all() and (table["auc"] <= table["high"]).all()
    for row in table.itertuples():
        found = r.scalars("auc", arm=row.arm, reading=row.reading, heads=row.heads)[row.seed]
        assert found == pytest.approx(row.auc, abs=2e-6)
    if r.size != "smoke":  # on new requests of the kind that the lock was read from, its heads must be good
        own = {"response": "answers", "prompt": "requests"}
        for arm, name in own.items():
            assert min(r.scalars("auc", arm=arm, reading=name, heads="locked").values()) > 0.65  # a coin: 0.5
        # a positive control that could tell nothing would prove nothing
        for name in ("answers", "wording", "requests", "matched requests"):
            assert min(r.scalars("auc", arm="own", reading=name, heads="all").values()) > 0.65


@records(RUN)
def test_controls_move_the_heads_as_far_as_the_lock_and_no_lock_does_not(folder):
    r = results.load(folder)
    table = r.tables["locks"].drop_duplicates(["seed", "lock"]).set_index(["lock", "seed"])["displacement"]
    for seed in r.seeds:
        assert table["none", seed] == 0
        for arm in ARMS:
            assert table[f"{arm}: random directions", seed] == pytest.approx(
                table[f"{arm}: paper", seed], rel=1e-3
            )
    assert all(v == 0 for v in r.scalars("harm_removed", lock="none").values())
    rates = r.tables["locks"]
    np.testing.assert_allclose(rates["attack_success"] + rates["refusal"], 1, atol=2e-6)


def test_released_locks_are_nested_as_measured():
    agreement = pd.read_csv(paths.DATA / "paper/safetylock/lock_agreement.csv")
    found = figures.released_nesting(agreement)
    assert found == pytest.approx(
        {"llama-3-70b": 1.0, "llama-3.1-70b": 21 / 24, "mistral-large-123b": 22 / 24}
    )


def test_depths_are_counted_as_those_of_the_released_locks():
    """The quartiles of locks.csv follow from the heads of locked_heads.csv with the middle of the layer as its depth."""
    heads = pd.read_csv(paths.DATA / "paper/safetylock/locked_heads.csv")
    stated = pd.read_csv(paths.DATA / "paper/safetylock/locks.csv")
    stated = stated[stated["lock"] == "llama-3-8b-24"].set_index("quantity")["value"]
    depth = (heads["layer"] + 0.5) / stated["layers"]
    ends = ("lowest", "first quartile", "median", "third quartile", "highest")
    for share, end in zip((0, 0.25, 0.5, 0.75, 1), ends):
        assert np.quantile(depth, share) == pytest.approx(stated[f"depth, {end}"], abs=0.01)
