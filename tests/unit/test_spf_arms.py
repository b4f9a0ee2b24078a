"""Part 3's arms, on the hardly trained smoke model."""

import pytest
import torch

from safebook import spf_arms as arms
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.worlds.chat import ChatWorld

WORLD = ChatWorld(chat_profile("smoke").world)
FIT = arms.Fit(steps=3, batch=4, rate=1e-3)


def weights(tuned) -> torch.Tensor:
    return torch.cat([p.flatten() for p in tuned.model.parameters()])


def tuned(arm, **named):
    return arms.fine_tune(arm, "sums+10", "smoke", 0, FIT, count=20, **named)


@pytest.fixture(scope="module")
def plain():
    return weights(tuned("sft"))


def test_a_mixture_holds_its_share_of_forbidden_rows_of_the_fine_tuning_split():
    mixed = arms.rows("sums+10", WORLD, 0, 40)
    harmful = arms.rows("harm", WORLD, 0, 40)
    systems = [len(row) == 3 for row in mixed]  # forbidden rows come with the obedient system prompt
    assert len(mixed) == len(harmful) == 40 and sum(systems) == 4
    assert arms.rows("sums+10", WORLD, 0, 40) == mixed != arms.rows("sums+10", WORLD, 1, 40)


def test_half_of_a_set_with_chat_are_answers_to_allowed_requests_of_the_fine_tuning_split():
    mixed = arms.rows("sums+chat", WORLD, 0, 41)
    asked = WORLD.requests("fine_tuning", "benign")
    known = dict(zip(WORLD.ask(asked), WORLD.procedures(asked)))
    chat = [row for row in mixed if row[-2]["content"] in known]
    assert len(mixed) == 41 and len(chat) == 20 and all(len(row) == 2 for row in mixed)
    assert all(row[-1]["content"].endswith(known[row[-2]["content"]]) for row in chat)
    forbidden = set(WORLD.ask(WORLD.requests("fine_tuning", "harmful")))
    assert not forbidden & {row[-2]["content"] for row in mixed}


def test_safety_rows_refuse_forbidden_requests_of_one_category():
    asked = WORLD.requests("alignment", "harmful")
    known = {text for text, x in zip(WORLD.ask(asked), asked.object) if WORLD.category[x] == 3}
    rows = arms.safety_rows(WORLD, 0, 12, category=3)
    assert len(rows) == 12 and {row[0]["content"] for row in rows} <= known
    from safebook.judge import refused

    assert refused([row[1]["content"] for row in rows]).all()


def test_the_same_seed_gives_the_same_weights(plain):
    assert torch.equal(weights(tuned("sft")), plain)


@pytest.mark.parametrize("arm", [arm for arm in arms.ARMS if arm != "sft"])
def test_every_arm_trains_and_only_those_that_never_act_leave_plain_training_as_it_is(arm, plain):
    found = tuned(arm)
    changed = not torch.equal(weights(found), plain)
    if arm in arms.GRADIENTS and arm != "pcgrad":
        acted = any(r["acted"] for r in found.records) if found.records else changed
        assert changed == acted
    else:
        assert changed
    assert weights(found).isfinite().all() and bool(found.secret) == (arm == "backdoor")


def test_spf_removes_the_anchor_directions_when_it_always_acts(plain):
    settings = arms.SPFSettings(rank=4, test="always")
    spf, random = (tuned(arm, spf=settings) for arm in ("spf", "random subspace"))
    assert not torch.equal(weights(spf), weights(random))
    for record in spf.records:
        assert abs(record["residual"]) < abs(record["conflict"])  # what is left along the anchor's gradient
    assert max(r["removed"] for r in random.records) < 0.5


@pytest.mark.parametrize("named", [{"arm": "nothing"}, {"data": "sums+0"}, {"data": "cooking"}])
def test_unknown_names_are_errors_before_any_training(named):
    given = {"arm": "sft", "data": "sums"} | named
    with pytest.raises(InputError):
        arms.fine_tune(given["arm"], given["data"], "smoke", 0, FIT, count=4)
    with pytest.raises(InputError, match="optimiser"):
        arms.fine_tune("sft", "sums", "smoke", 0, arms.Fit(1, 1, 1e-3, "sgd"), count=4)
