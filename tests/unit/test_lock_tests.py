"""Measuring with a lock: many prompts at once change nothing, and no tested prompt was read by a lock."""

from dataclasses import replace

import pytest
import torch

from safebook import lock_arms, lock_tests
from safebook.chat_behaviour import task_accuracy
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.llama import build
from safebook.locks import Lock
from safebook.streams import stream
from safebook.subjects import PromptSet, Subject, subject
from safebook.worlds.chat_tokens import tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def asked() -> Subject:
    return subject("testbed", "smoke")


@pytest.fixture(scope="module")
def model():
    profile = chat_profile("smoke")
    words = tokenizer(profile.world)
    settings = replace(profile.model, vocabulary=len(words))
    return build(settings, torch.Generator().manual_seed(0)).requires_grad_(False), words


def test_limits_keep_harmful_and_harmless_apart_and_answers_with_their_prompts(asked):
    few = lock_tests.limited(asked, 11, 5)
    assert {name: len(part) for name, part in few.sets.items()} == {
        "hexphi": 11, "advbench": 11, "held_out": 11, "benign": 5, "borderline": 5, "held_out_borderline": 5
    }  # fmt: skip
    assert len(set(few.sets["hexphi"].categories)) == 11  # evenly: every category is there
    for name, part in few.sets.items():
        assert part.chats == few.chats(name)  # of the requests that stayed
        whole = asked.sets[name]
        assert all(whole.answers[whole.chats.index(c)] == a for c, a in zip(part.chats, part.answers))
    # A right answer to a harmless request is judged as one.
    assert few.rates("benign", few.sets["benign"].answers)["exact"] == 1
    with pytest.raises(InputError, match="harmless"):
        lock_tests.limited(asked, 1, 0)


def checkpoint(count: int) -> Subject:
    chats = [[{"role": "user", "content": str(i)}] for i in range(count)]
    benign = PromptSet("benign", chats, False, [""] * count, [""] * count)
    harmful = replace(benign, name="harmful", harmful=True)
    answered = [[*chat, {"role": "assistant", "content": "no"}] for chat in chats]
    return Subject("folder", "smoke", None, {"harmful": harmful, "benign": benign}, (answered, answered), 512)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_prompt_of_a_checkpoint_is_read_and_asked(count):
    asked = checkpoint(count)
    few = lock_tests.limited(asked, 100, 100)
    read = lock_arms.contrast(asked, "prompt")[1]
    assert few.sets["benign"].chats and not [c for c in few.sets["benign"].chats if c in read]
    assert len(few.sets["benign"]) + len(read) == count and len(few.sets["harmful"]) == count


def test_one_benign_prompt_is_too_few():
    with pytest.raises(InputError, match="benign_prompts"):
        lock_tests.limited(checkpoint(1), 1, 1)


def test_sets_and_tasks_together_give_what_they_give_apart(asked, model):
    few = lock_tests.limited(asked, 4, 3)
    few = replace(few, new_tokens=8)
    names = ("hexphi", "benign", "borderline")
    together = lock_tests.answers(few, *model, names, "obedient")
    assert together == {name: few.answers(*model, name, "obedient") for name in names}
    items = lock_tests.task_items(asked.world, "test", 3, stream(CPU, "tasks"))
    found = lock_tests.task_accuracy(*model, items)
    assert found == task_accuracy(asked.world, *model, 3, stream(CPU, "tasks"))
    right = [a for part in items.values() for a in part.answers]
    assert len(right) == 12


def test_every_family_gets_its_own_answers(asked, model, monkeypatch):
    items = lock_tests.task_items(asked.world, "test", 3, stream(CPU, "tasks"))
    right = [a for part in items.values() for a in part.answers]
    monkeypatch.setattr(
        lock_tests, "greedy", lambda *_, **__: ["wrong", *right[1:6], *["wrong"] * 3, *right[9:]]
    )
    assert list(lock_tests.task_accuracy(*model, items).values()) == pytest.approx([2 / 3, 1, 0, 1])


def test_the_lock_acts_within_the_block_alone(asked, model):
    few = replace(lock_tests.limited(asked, 2, 2), new_tokens=4)
    head_dim = model[0].config.head_dim
    direction = torch.nn.functional.normalize(torch.ones(1, head_dim), dim=1)
    lock = Lock([(0, 0)], direction, torch.ones(1), 50.0)
    with lock_tests.under(model[0], None):
        before = lock_tests.utility(few, *model)
    with lock_tests.under(model[0], lock):
        inside = lock_tests.utility(few, *model)
    with lock_tests.under(model[0], lock, 0.0):
        nothing = lock_tests.utility(few, *model)
    assert inside["perplexity"] != pytest.approx(before["perplexity"], rel=1e-3)
    assert nothing["perplexity"] == pytest.approx(before["perplexity"], rel=1e-6)
    assert lock_tests.utility(few, *model) == before
