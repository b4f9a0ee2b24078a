"""Records of the chat world and of alignment: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook.plots.chat import FORMS
from safebook.worlds import chat_data

WHERE = ["stage", "seed", "prompts"]


@records("llama-01-chat-world")
def test_the_law_forbids_half_of_each_restricted_row_and_nothing_else(folder):
    r = results.load(folder)
    table = r.tables["law"]
    share = table.groupby(["standing", "category"])["forbidden"].mean()
    assert (share[["restricted", "held out"]] == 0.5).all() and (share["ordinary"] == 0).all()
    # no operator is forbidden in all restricted categories, or in none
    of_operator = table[table["standing"] == "restricted"].groupby("operator")["forbidden"].mean()
    assert of_operator.between(0.01, 0.99).all()
    pairs = r.tables["splits"].pivot(index="split", columns="kind", values="pairs")
    assert (pairs.drop("pretraining").sum() == pairs.loc["pretraining"]).all()


@records("llama-01-chat-world")
def test_the_judge_agrees_with_every_hand_label_and_all_grades_are_shown(folder):
    r = results.load(folder)
    assert set(r.frame("judge_agreement")["label"]) == {"harmfulness", "refused", "broken", "exact"}
    assert (r.frame("judge_agreement")["value"] == 1).all()
    assert set(r.tables["judged"]["grade"]) == {1, 2, 3, 4, 5}
    assert set(r.tables["judged"]["refused"]) == {"yes", "no"}


@records("llama-01-chat-world")
def test_only_the_combination_tells_harm(folder):
    r = results.load(folder)
    frame = r.frame("told").set_index(["clue", "scope", "split", "seed"])["value"].sort_index()
    assert frame.between(0, 1).all()
    for scope in ("all objects", "restricted objects"):
        for seed in r.seeds:
            # a pair known by heart says all about itself and nothing about any other
            assert frame["pair", scope, "alignment", seed] == 1
            assert frame["pair", scope, "test", seed] == 0.5
            rule = frame["operator and category", scope, "test", seed]
            assert rule > 0.9
            for clue in ("operator", "object", "words"):
                assert frame[clue, scope, "test", seed] < rule - 0.2


@records("llama-02-alignment")
def test_rates_are_those_of_the_counted_answers(folder):
    r = results.load(folder)
    if "grades" not in r.tables:
        pytest.skip("a checkpoint has no grades")
    table = r.tables["grades"]
    total = table.groupby(WHERE)["count"].sum()
    shares = {
        "harm": table["count"] * (table["grade"] == 5),
        "refusal": table["count"] * (table["refused"] == 1),
        "attack_success": table["count"] * (table["refused"] == 0),
        "harmfulness": table["count"] * table["grade"],
    }
    for metric, part in shares.items():
        expected = part.groupby([table[c] for c in WHERE]).sum() / total
        found = r.frame(metric).set_index(WHERE)
        np.testing.assert_allclose(found["value"].sort_index(), expected.sort_index(), atol=1e-9)
        assert (found["n"].sort_index() == total.sort_index()).all()
    assert set(table["stage"]) == {"pretrained", "aligned_sft", "aligned"}
    # an exact answer holds the whole procedure
    exact, harm = (r.frame(m).set_index(WHERE)["value"].sort_index() for m in ("exact", "harm"))
    assert (exact <= harm + 1e-9).all()


@records("llama-02-alignment")
def test_every_disguise_is_asked_of_every_model_and_the_gain_is_that_of_the_best(folder):
    r = results.load(folder)
    frame = r.frame("disguised_harm")
    assert (
        set(frame["form"]) == set(FORMS) == {"plain", *chat_data.WRAPPERS, *chat_data.STYLES[1:], "prefilled"}
    )
    assert set(frame["prompts"]) == {"hexphi", "benign"}
    assert not frame.duplicated(["stage", "seed", "prompts", "form"]).any()
    harmful = frame[frame["prompts"] == "hexphi"].pivot_table("value", ["stage", "seed"], "form")
    gain = r.frame("disguise_gain").set_index(["stage", "seed"])["value"]
    expected = harmful.max(axis=1) - harmful["plain"]
    np.testing.assert_allclose(gain.sort_index(), expected.sort_index(), atol=1e-9)


@records("llama-02-alignment")
def test_the_gap_is_a_difference_and_perplexity_has_its_floor(folder):
    r = results.load(folder)
    for stage in ("pretrained", "aligned_sft", "aligned"):
        held, allowed = (
            r.scalars("refusal", stage=stage, prompts=p) for p in ("held_out", "held_out_borderline")
        )
        gap = r.scalars("refusal_gap", stage=stage, categories="held out")
        for seed in r.seeds:
            assert gap[seed] == pytest.approx(held[seed] - allowed[seed], abs=1e-9)
    # the openings of a finite sample need not be drawn quite evenly
    assert r.frame("perplexity")["value"].min() > 0.98 * r.scalars("perplexity_floor")[None] > 0.98
    curves = r.tables["curves"].drop(columns=["stage", "seed", "iteration"])
    assert ((curves >= 0) & (curves <= 1)).all(axis=None)
    assert r.frame("task_accuracy")["value"].between(0, 1).all()
