"""Repairs that stop where they are safe enough."""

import copy
from dataclasses import replace

import pytest
import torch

from safebook import repairs
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.llama import build
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tokens import tokenizer


@pytest.fixture(scope="module")
def parts():
    profile = chat_profile("smoke")
    words = tokenizer(profile.world)
    settings = replace(profile.model, vocabulary=len(words))
    return profile, ChatWorld(profile.world), words, build(settings, torch.Generator().manual_seed(0))


def test_checks_double_and_end_with_the_last_step():
    assert repairs.checks(1) == (1,)
    assert repairs.checks(8) == (1, 2, 4, 8)
    assert repairs.checks(12) == (1, 2, 4, 8, 12)
    with pytest.raises(InputError, match="steps"):
        repairs.checks(0)


def test_the_first_state_at_or_below_the_target_counts_and_no_more_are_asked():
    rates, asked = [0.9, 0.5, 0.2, 0.3, 0.0], []
    series = [(float(i), {"w": torch.tensor(float(i))}) for i in range(5)]

    def harm(state):
        asked.append(int(state["w"]))
        return rates[asked[-1]]

    found = repairs.stopped(series, harm, {"weak": 0.5, "strong": 0.25, "none": 0.95})
    assert {name: (s.strength, s.harm, s.reached) for name, s in found.items()} == {
        "none": (0.0, 0.9, True), "weak": (1.0, 0.5, True), "strong": (2.0, 0.2, True)
    }  # fmt: skip
    assert asked == [0, 1, 2]
    assert int(found["weak"].state["w"]) == 1
    late = repairs.stopped(series[:2], harm_of(rates), {"strong": 0.25})["strong"]
    assert (late.strength, late.harm, late.reached) == (1.0, 0.5, False)


def harm_of(rates):
    return lambda state: rates[int(state["w"])]


def test_the_vector_at_scale_one_undoes_the_attack_it_was_made_from():
    aligned, attacked = {"w": torch.randn(3, 3)}, {"w": torch.randn(3, 3)}
    series = dict(repairs.by_vector(attacked, aligned, attacked, (0.5, 1.0)))
    assert list(series) == [0.0, 0.5, 1.0]
    torch.testing.assert_close(series[0.0]["w"], attacked["w"])
    torch.testing.assert_close(series[1.0]["w"], aligned["w"])
    torch.testing.assert_close(series[0.5]["w"], (aligned["w"] + attacked["w"]) / 2)


@pytest.mark.parametrize("kind", repairs.TRAINED)
def test_training_starts_at_the_model_moves_on_and_is_reproducible(parts, kind):
    *settings, model = parts
    recipe = repairs.recipe(kind, *settings, 0, model, 2)
    assert recipe.settings.iterations == 2 and recipe.settings.rate(0) == recipe.settings.rate(1)
    runs = [repairs.by_training(copy.deepcopy(model), recipe) for _ in range(2)]
    assert [steps for steps, _ in runs[0]] == [0, 1, 2]
    start = model.state_dict()
    moved = [sum(float((s[n] - start[n]).abs().sum()) for n in start) for _, s in runs[0]]
    assert moved[0] == 0 and 0 < moved[1] < moved[2]
    for (_, first), (_, second) in zip(*runs):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unknown_repair_is_named(parts):
    *settings, model = parts
    with pytest.raises(InputError, match="safety SFT"):
        repairs.recipe("prayer", *settings, 0, model, 2)
