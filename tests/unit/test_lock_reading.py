"""Contrasts that tell wording from safety differ in what they say and in nothing else; the AUC is scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from safebook import judge
from safebook.errors import InputError
from safebook.lock_reading import (
    arbitrary,
    aucs,
    directions,
    first_pairs,
    readings,
    shuffled,
    unseen,
)
from safebook.safetylock import Samples
from safebook.streams import stream
from safebook.subjects import Subject, subject
from safebook.worlds.chat_tokens import tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def asked():
    return subject("testbed", "smoke")


@pytest.fixture(scope="module")
def found(asked):
    return readings(asked, 40, seed=3)


def said(chats):
    return [chat[-1]["content"] for chat in chats]


def verdicts(asked, chats):
    """Is each request forbidden? By the world's law, from the words."""
    world = asked.world
    result = []
    for text in said(chats):
        words = text.split()
        operator = next(i for i, o in enumerate(world.operators) if o in words)
        thing = next(i for i, x in enumerate(world.objects) if x in words)
        result.append(bool(world.forbidden[operator, thing]))
    return np.array(result)


def questions(chats):
    return [chat[:1] for chat in chats]


def test_answers_differ_in_refusal_and_requests_do_not(asked, found):
    for name, forbidden in (("answers", True), ("wording", False), ("refusal in front", False)):
        pair = found[name]
        assert questions(pair.chosen) == questions(pair.rejected)
        assert (verdicts(asked, questions(pair.chosen)) == forbidden).all()
        assert judge.refused(said(pair.chosen)).all() and not judge.refused(said(pair.rejected)).any()


def test_a_refusal_in_front_leaves_the_last_tokens_alone(asked, found):
    words, pair = tokenizer(asked.world.settings), found["refusal in front"]
    for first, second in zip(said(pair.chosen), said(pair.rejected)):
        assert words(first)["input_ids"][-5:] == words(second)["input_ids"][-5:]
        assert first.split(" . ")[-3:] == second.split(" . ")[-3:]


def test_safety_is_told_with_wording_and_kind_of_object_alike(asked, found):
    world = asked.world
    content, matched = found["content"], found["matched requests"]
    for safe, unsafe in ((content.chosen, content.rejected), (matched.rejected, matched.chosen)):
        assert not verdicts(asked, questions(safe)).any() and verdicts(asked, questions(unsafe)).all()
        for part in (safe, unsafe):  # all about restricted objects
            things = [next(x for x in world.objects if x in said(questions([c]))[0].split()) for c in part]
            kinds = world.category[[world.objects.index(x) for x in things]]
            assert (kinds < world.settings.categories).all()
    assert not judge.refused(said(content.chosen) + said(content.rejected)).any()
    assert not verdicts(asked, found["topic"].chosen + found["topic"].rejected).any()


def test_all_are_of_the_test_split_and_reproducible(asked, found):
    again = readings(asked, 40, seed=3)
    assert again == found and readings(asked, 40, seed=4) != found
    asked_in_alignment = {t for c in asked.pairs[0] for t in [c[0]["content"]]}
    for pair in found.values():
        assert len(pair.chosen) == len(pair.rejected) == 40
        assert not asked_in_alignment & {c[0]["content"] for c in pair.chosen + pair.rejected}


@pytest.mark.parametrize("kind", ["topics", "tasks"])
def test_arbitrary_contrasts_are_harmless_and_answered_where_answers_are_read(asked, kind):
    answered, open_ = (arbitrary(asked, kind, p, 30, 0) for p in ("response", "prompt"))
    for first, second in ((answered.chosen, open_.chosen), (answered.rejected, open_.rejected)):
        assert [c[:-1] for c in first] == second and len(first) == 30
        assert not judge.refused(said(first)).any()
    assert {c[0]["content"] for c in open_.chosen}.isdisjoint(c[0]["content"] for c in open_.rejected)
    if kind == "topics":
        assert not verdicts(asked, open_.chosen + open_.rejected).any()
    with pytest.raises(InputError, match="kind"):
        arbitrary(asked, "weather", "prompt", 30, 0)


def planted(chats=30, tokens=4):
    """Two layers, three heads; one head tells the classes."""
    generator = stream(CPU, "planted readings")
    chosen = (torch.arange(2 * chats) < chats).repeat_interleave(tokens)
    pairs = torch.arange(chats).repeat(2).repeat_interleave(tokens)
    values = torch.randn(2, len(chosen), 3, 8, generator=generator)
    values[1, chosen, 2, 0] += 2.0
    return Samples(values, chosen, pairs)


def test_auc_is_that_of_scikit_learn_and_turns_with_the_sign():
    s = planted()
    along = directions(s)
    area = aucs(s, along)
    assert area.shape == (2, 3) and np.unravel_index(area.argmax(), (2, 3)) == (1, 2)
    for layer in range(2):
        for head in range(3):
            scores = s.values[layer, :, head].double() @ along[layer, head].double()
            assert area[layer, head] == pytest.approx(roc_auc_score(s.chosen.numpy(), scores.numpy()))
    np.testing.assert_allclose(aucs(s, -along), 1 - area, atol=1e-12)


def test_directions_are_unit_differences_of_means():
    s = planted()
    gap = s.values[1, s.chosen, 2].mean(0) - s.values[1, ~s.chosen, 2].mean(0)
    torch.testing.assert_close(directions(s)[1, 2], gap / gap.norm(), atol=1e-5, rtol=1e-5)
    assert directions(s)[1, 2, 0] > 0.9


def test_shuffled_labels_keep_chats_whole_and_classes_equal():
    s = planted()
    dealt = shuffled(s, stream(CPU, "x"))
    assert int(dealt.chosen.sum()) == int(s.chosen.sum())
    of_chat = (2 * s.pairs + s.chosen).tolist()
    assert len(set(zip(of_chat, dealt.chosen.tolist()))) == len(set(of_chat))
    agreement = float((dealt.chosen == s.chosen).float().mean())
    assert 0.25 < agreement < 0.75
    assert torch.equal(dealt.chosen, shuffled(s, stream(CPU, "x")).chosen)


def test_first_pairs_keep_both_sides():
    few = first_pairs(planted(), 5)
    assert set(few.pairs.tolist()) == set(range(5)) and few.values.shape[1] == len(few.chosen) == 40
    assert few.chosen.float().mean() == 0.5


def test_a_checkpoint_is_judged_on_benign_prompts_that_no_lock_has_read(asked):
    from safebook.lock_arms import contrast

    sets = {name: asked.sets[name] for name in ("benign",)} | {"harmful": asked.sets["hexphi"]}
    real = Subject("some/model", "smoke", None, sets, asked.pairs, 8)
    read = {str(c) for c in contrast(real, "prompt")[1]}
    kept = unseen(real, 7)
    assert len(kept.sets["benign"]) == len(kept.sets["harmful"]) == 7
    assert not read & {str(c) for c in kept.sets["benign"].chats}
    with pytest.raises(InputError, match="asked"):
        unseen(asked, 7)
