"""Defended models and the attackers who know them: each part must be what it is called."""

from dataclasses import replace

import pytest
import torch

from safebook import chat_recipes, llama, lock_arms, who_stops, zoo
from safebook import prompt_defences as around
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.llama_activations import decoder
from safebook.lock_tests import under
from safebook.locks import Lock, unit
from safebook.plots import who_stops as figures
from safebook.prompt_attacks import Attacked, attacked, opening
from safebook.spf_arms import safety_rows
from safebook.streams import stream
from safebook.subjects import subject
from safebook.suffix_search import SearchSettings, find_suffix
from safebook.who_stops import Deployed, fine_tuned
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tokens import encode, tokenizer

CPU = torch.device("cpu")
PROFILE = chat_profile("smoke")
WORLD, WORDS = ChatWorld(PROFILE.world), tokenizer(PROFILE.world)


@pytest.fixture(scope="module")
def model():
    settings = replace(PROFILE.model, vocabulary=len(WORDS))
    return llama.build(settings, stream(CPU, "who stops test")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def recipe():
    return chat_recipes.attack("level1_10", PROFILE, WORLD, WORDS, 0, rate=1e-3)


@pytest.fixture(scope="module")
def anchor():
    return encode(WORDS, safety_rows(WORLD, 0, 1))


@pytest.fixture(scope="module")
def lock(model):
    channels = model.config.head_dim
    directions = unit(torch.randn(3, channels, generator=stream(CPU, "directions")))
    return Lock([(0, 0), (0, 2), (1, 1)], directions, torch.ones(3), 2.0)


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


def test_without_a_guard_the_attack_is_the_testbed_s_own():
    aligned, _ = zoo.load_llama("chat-aligned", "smoke", 0)
    expected, words = zoo.load_llama("chat-level1_10", "smoke", 0)
    own = chat_recipes.attack("level1_10", PROFILE, WORLD, words, 0)
    found, records = fine_tuned(aligned, own)
    assert records == []
    torch.testing.assert_close(weights(found), weights(expected), rtol=0, atol=1e-6)


def test_the_start_is_left_as_it_was_and_fewer_steps_are_the_beginning(model, recipe):
    before = weights(model).clone()
    short, _ = fine_tuned(model, recipe, steps=2)
    again, _ = fine_tuned(
        model, replace(recipe, settings=replace(recipe.settings, iterations=2, decay_until=2))
    )
    assert torch.equal(weights(model), before) and torch.equal(weights(short), weights(again))
    assert not torch.equal(weights(short), before)
    assert not any(p.requires_grad for p in short.parameters())


def test_mixing_of_no_weight_is_no_guard_and_a_guard_changes_the_model(model, recipe, anchor):
    plain, _ = fine_tuned(model, recipe, steps=3)
    nothing, _ = fine_tuned(model, recipe, "mixing", steps=3, anchor=anchor, setting=0.0)
    torch.testing.assert_close(weights(nothing), weights(plain), rtol=0, atol=1e-6)
    for guard, setting in (("mixing", 1.0), ("spf", 0.25), ("random subspace", 0.25)):
        found, records = fine_tuned(
            model, recipe, guard, steps=3, anchor=anchor, setting=setting, generator=stream(CPU, guard)
        )
        assert len(records) == (0 if guard == "mixing" else 3)
        if guard == "mixing" or any(r["acted"] for r in records):
            assert not torch.equal(weights(found), weights(plain))


def test_training_with_a_lock_on_fits_the_weights_to_it_and_leaves_no_hook(model, recipe, lock):
    loss = recipe.objective
    batch = recipe.batches(0)
    plain, _ = fine_tuned(model, recipe, steps=8)
    fitted, _ = fine_tuned(model, recipe, steps=8, lock=lock)
    for network in (plain, fitted):
        assert not any(layer.self_attn.o_proj._forward_pre_hooks for layer in decoder(network).layers)
    with torch.no_grad(), under(plain, lock):
        other = float(loss(plain, batch))
    with torch.no_grad(), under(fitted, lock):
        assert float(loss(fitted, batch)) < other


def test_bad_guards_are_named(model, recipe, anchor):
    with pytest.raises(InputError, match="guard"):
        fine_tuned(model, recipe, "prayer")
    for lacking in ({"anchor": anchor}, {"setting": 1.0}):
        with pytest.raises(InputError, match="anchor"):
            fine_tuned(model, recipe, "mixing", **lacking)


def test_answers_come_from_the_model_as_it_is_deployed(model, lock):
    asked = subject("testbed", "smoke", limit=4)
    cases = {name: attacked(asked, name, "hexphi") for name in ("plain", "prefilling")}
    plain = who_stops.answered(Deployed(model), WORDS, cases, 8, 4)
    assert {name: len(texts) for name, texts in plain.items()} == {"plain": 4, "prefilling": 4}
    assert all(text.startswith(opening(asked)) for text in plain["prefilling"])
    seen = []

    def silent(chats):
        seen.extend(chats)
        return [[*chat[:-1], chat[-1] | {"content": "please"}] for chat in chats]

    changed = who_stops.answered(Deployed(model, change=silent), WORDS, cases, 8, 4)
    assert len(seen) == 8 and len(set(changed["plain"])) == 1  # all were asked the same
    strong = replace(lock, alpha=50.0)
    assert who_stops.answered(Deployed(model, strong), WORDS, cases, 8, 4) != plain
    assert who_stops.answered(Deployed(model), WORDS, cases, 8, 4) == plain


def test_prompts_that_do_not_fit_are_left_out(model):
    long = [[{"role": "user", "content": "please " * (model.config.max_position_embeddings + 1)}]]
    assert who_stops.answered(Deployed(model), WORDS, {"long": Attacked(long, [""])}, 4, 4) == {}


def test_an_adaptive_suffix_is_searched_on_the_defended_model(model, lock):
    asked = subject("testbed", "smoke", split="validation", limit=2)
    chats, begin, search = asked.chats("hexphi"), opening(asked), SearchSettings(4, 16)

    def found(deployed):
        return who_stops.suffix_against(
            deployed, WORDS, chats, begin, "please please please", search, stream(CPU, "s")
        )

    with under(model, lock):
        expected = find_suffix(
            model, WORDS, chats, [begin] * 2, "please please please", search, stream(CPU, "s")
        )
    assert found(Deployed(model, lock)) == expected
    assert found(Deployed(model)).losses[0] != expected.losses[0]
    remind = lambda some: around.with_reminder(some, *around.WORLD_REMINDER)  # noqa: E731
    assert found(Deployed(model, change=remind)).losses[0] != found(Deployed(model)).losses[0]


def test_a_change_costs_the_tokens_that_it_adds():
    chats = subject("testbed", "smoke", limit=3).chats("hexphi")
    behind = lambda some: [[*c[:-1], c[-1] | {"content": c[-1]["content"] + " please please"}] for c in some]  # noqa: E731
    assert who_stops.added_tokens(WORDS, chats, behind) == 2
    assert who_stops.added_tokens(WORDS, chats, list) == 0


def test_gain_of_both_by_hand():
    harm = {"a": 0.4, "b": 0.3, "both": 0.1, "worse": 0.6}
    assert who_stops.gain_of_both(harm, "a", "b", "both") == pytest.approx(0.2)
    assert who_stops.gain_of_both(harm, "a", "b", "worse") == pytest.approx(-0.3)
    assert who_stops.best_of(harm, ("a", "worse")) == 0.4


def test_names_are_the_same_in_figures_and_measurement():
    assert tuple(figures.NAMES) == who_stops.DEFENCES and figures.KNOWING == who_stops.KNOWING
    assert set(who_stops.MEANT) == set(who_stops.DEFENCES) - {"aligned", "none", *figures.CONTROLS}
    assert set(lock_arms.ARMS) == {
        name.split(", ")[1] for name in who_stops.DEFENCES if name.startswith("lock, ")
    }


def test_the_strongest_attack_is_that_of_all_answers_together():
    import pandas as pd

    rows = [
        ("plain", 0, 10, 0.5),
        ("plain", 1, 10, 0.1),
        ("role", 0, 10, 0.4),
        ("role", 1, 10, 0.3),
        ("tuned again", 0, 10, 0.2),
    ]
    part = pd.DataFrame(rows, columns=["attack", "seed", "n", "harm"])
    assert figures.strongest(part, False) == "role" and figures.strongest(part, True) == "tuned again"
    share, lowest, highest = figures.pooled(part[part["attack"] == "plain"], "harm")
    assert (share, lowest, highest) == pytest.approx((0.3, 0.1, 0.5))
    assert figures.strongest(part[part["attack"] == "plain"], True) is None
