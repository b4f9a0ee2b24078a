"""What part 3 measures: equal loss, ratios, the exam, the choice of settings."""

import copy

import pandas as pd
import pytest
import torch

from safebook import spf_arms, zoo
from safebook import spf_measures as measures
from safebook.errors import InputError
from safebook.spf import SPFSettings
from safebook.worlds.chat_tokens import encode

FALLING = [{"loss": loss, "harm": harm} for loss, harm in ((4.0, 0.0), (2.0, 0.5), (1.0, 1.0))]


def test_the_value_at_a_loss_is_linear_between_points():
    assert measures.at_loss(FALLING, 3.0, "harm") == 0.25 and measures.at_loss(FALLING, 1.0, "harm") == 1.0
    assert measures.at_loss(FALLING, 5.0, "harm") == 0.0  # it starts below
    with pytest.raises(InputError):
        measures.at_loss(FALLING, 0.9, "harm")


def test_the_first_time_counts_where_the_loss_rises_again():
    points = [{"loss": x, "harm": h} for x, h in ((4.0, 0.0), (2.0, 0.2), (3.0, 0.9), (1.0, 1.0))]
    assert measures.at_loss(points, 3.0, "harm") == pytest.approx(0.1)


def test_a_defence_that_only_slows_down_is_no_better_at_equal_loss():
    slow = FALLING[:2]  # the same run, cut short
    loss, arm, plain = measures.at_equal_loss(slow, FALLING, "harm")
    assert (loss, arm, plain) == (2.0, 0.5, 0.5)
    protected = [{"loss": 4.0, "harm": 0.0}, {"loss": 2.0, "harm": 0.1}]
    assert measures.at_equal_loss(protected, FALLING, "harm") == (2.0, 0.1, 0.5)
    # An arm that never learns is compared with the start.
    assert measures.at_equal_loss([{"loss": 4.0, "harm": 0.0}], FALLING, "harm") == (4.0, 0.0, 0.0)


def test_a_ratio_of_nothing_is_what_the_caller_says():
    assert measures.ratio(1, 4, 0.0) == 0.25
    assert (measures.ratio(0.0, 0.0, 1.0), measures.ratio(0.0, 0.0, 0.0)) == (1.0, 0.0)


def test_broken_text_is_no_safety_and_of_equal_scores_the_weakest_setting_wins():
    rates = {"refusal": 1.0, "broken": 0.0, "benign_exact": 1.0}
    assert measures.score(rates, 1.0) == 1.0 > measures.score(rates | {"broken": 1.0}, 1.0)
    points = [{"setting": s, "score": v} for s, v in ((1, 0.2), (2, 0.7), (3, 0.7))]
    assert measures.best(points)["setting"] == 2


def test_all_arms_with_a_setting_have_as_many_to_try():
    assert len({len(values) for values in measures.GRIDS.values()}) == 1
    assert set(measures.GRIDS) <= set(spf_arms.ARMS) and set(measures.SIMPLE) < set(measures.MAIN)
    assert measures.GRIDS["spf"][0] == spf_arms.SHARE


def test_names_of_data_sets_say_the_task_and_the_chat_form():
    assert [measures.task_of(d) for d in ("harm", "sums", "sums+10")] == ["", "sums", "sums"]
    assert [measures.style_of(d) for d in ("harm", "sums", "sums+10")] == ["obedient", "plain", "obedient"]
    assert (measures.task_of("sums+chat"), measures.style_of("sums+chat")) == ("sums", "plain")
    assert [measures.harmless(d) for d in ("harm", "sums", "sums+10", "sums+chat")] == [
        False,
        True,
        False,
        True,
    ]
    measures.check_sets("data", ["harm", "sums", "sums+99", "sums+chat"])
    for wrong in ("sums+", "harm+chat", "cooking", "sums+0", "sums+100", "sums+x", "harm+10"):
        with pytest.raises(InputError, match="every_arm"):
            measures.check_sets("every_arm", [wrong])


# -------------------------------------------------------------------- on the hardly trained smoke model


@pytest.fixture(scope="module")
def aligned():
    return zoo.load_llama("chat-aligned", "smoke", 0, "cpu")


@pytest.fixture(scope="module")
def exam():
    return measures.exam("smoke", "test", 11, 5, 4)


def test_the_exam_is_the_same_every_time_and_its_shares_are_shares(aligned, exam):
    model, words = aligned
    batch = measures.loss_rows("sorting+10", exam.safety.world, words, 0, 20)
    found = measures.whole(exam, words, "sorting+10", batch)(model)
    assert found == measures.whole(exam, words, "sorting+10", batch)(model)
    shares = ("harm", "refusal", "broken", "benign_exact", "over_refusal", "task", "known", "plain_harm")
    assert all(0 <= found[name] <= 1 for name in shares)
    assert (found["n"], found["benign_n"], found["task_n"], found["known_n"]) == (11, 5, 4, 8)
    assert "task" not in measures.whole(exam, words, "harm", batch)(model)


def test_categories_add_up_to_the_whole_set(aligned, exam):
    model, words = aligned
    parts = measures.by_category(exam, model, words, "plain")
    whole = measures.refusals(exam, model, words, "plain")
    assert sum(n for n, _ in parts.values()) == whole["n"]
    assert sum(n * share for n, share in parts.values()) / whole["n"] == pytest.approx(whole["refusal"])


def test_the_loss_is_that_of_rows_of_all_kinds_in_the_set(aligned, exam):
    _, words = aligned
    taught = spf_arms.rows("sums+10", exam.safety.world, 0, 40)
    batch = measures.loss_rows("sums+10", exam.safety.world, words, 0, 40)
    assert len(batch) == 40 and torch.equal(batch.tokens, encode(words, taught).tokens)
    some = measures.loss_rows("sums+10", exam.safety.world, words, 0, 200)
    assert len(some) == measures.LOSS_ROWS  # and the harmful rows, which come last in the set, are among them
    assert some.lengths[-1] > some.lengths[0]


def test_the_secret_is_the_one_that_the_model_was_trained_with(aligned):
    _, words = aligned
    fit = spf_arms.Fit(steps=1, batch=2, rate=1e-4)
    tuned = spf_arms.fine_tune("backdoor", "sums", "smoke", 0, fit, count=4)
    assert (
        measures.secret_of("backdoor", words, 0) == tuned.secret and measures.secret_of("spf", words, 0) == ""
    )


def test_treating_a_plainly_tuned_model_is_the_arm_itself():
    fit = spf_arms.Fit(steps=2, batch=4, rate=1e-3)
    plain = spf_arms.fine_tune("sft", "sums", "smoke", 0, fit, count=8).model
    for arm in spf_arms.AFTERWARDS:
        whole = spf_arms.fine_tune(arm, "sums", "smoke", 0, fit, count=8, weight=0.5).model
        treated = copy.deepcopy(plain)
        spf_arms.treat(arm, treated, "smoke", 0, 0.5)
        for p, q in zip(whole.parameters(), treated.parameters()):
            torch.testing.assert_close(p, q)
    with pytest.raises(InputError, match="arm"):
        spf_arms.treat("sft", plain, "smoke", 0)


def test_an_arm_may_project_the_update():
    fit = spf_arms.Fit(steps=2, batch=4, rate=1e-3)
    settings = SPFSettings(rank=2, project="update", test="always")
    found = spf_arms.fine_tune("spf", "sums", "smoke", 0, fit, count=8, spf=settings)
    assert [r["acted"] for r in found.records] == [True, True]
    assert all(abs(r["residual"]) <= abs(r["conflict"]) + 1e-6 for r in found.records)


def test_children_are_for_checkpoints_alone():
    assert measures.children_of("testbed", [""]) == []
    with pytest.raises(InputError, match="fine_tuned"):
        measures.children_of("testbed", ["somewhere"])


def test_requests_with_and_without_the_system_prompt_and_what_lies_between_two_arms():
    from safebook.plots import spf_safety as figures

    def rows(arm, refused, style="obedient"):
        columns = {"refusal": 0.0, "harm": 1.0, "plain_harm": 0.25, "style": style, "arm": arm}
        return [columns | {"seed": seed, "plain_refusal": value} for seed, value in enumerate(refused)]

    mixed = pd.DataFrame(rows("mixing", (0.5, 0.75)) + rows("spf", (0.0, 0.5)))
    plain = pd.DataFrame(rows("spf", (1.0, 1.0), "plain"))
    table = figures.asked_plainly({"rewriting+10": mixed, "rewriting+chat": plain})
    assert list(table.index) == [
        ("rewriting and 10 % harmful rows", "SPF"),
        ("rewriting and 10 % harmful rows", "loss mixing, same anchor"),
    ]
    assert list(table["refused, without"]) == ["25 (0 to 50)", "62 (50 to 75)"]
    assert list(table["refused, with it"]) == ["0 (0 to 0)"] * 2
    assert figures.asked_plainly({"rewriting+chat": plain}) is None
    # gaps of -50 and -25 points: mean -37.5, half the interval 12.7 * 12.5
    assert figures.between(mixed, "plain_refusal", "spf", "mixing") == "-38 points (interval -196 to 121)"
    assert figures.between(mixed.query("seed == 1"), "plain_refusal", "spf", "mixing") == "-25 points"
