"""Objectives on dialogues, the recipes of the chat testbed, and its place among the trained models."""

import math
from dataclasses import replace

import pytest
import torch

from safebook import chat_recipes, llama, zoo
from safebook.chat_objectives import ChatPreference, answer_loss, answer_nll, chat_dpo, reference_nll
from safebook.chat_profiles import LORA_RISKS, RISKS, SHAPES, chat_profile, smaller
from safebook.errors import InputError
from safebook.streams import stream
from safebook.training import train
from safebook.worlds import chat_data
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tokens import encode, tokenizer

PROFILE = chat_profile("smoke")
WORLD = ChatWorld(PROFILE.world)
WORDS = tokenizer(PROFILE.world)
CPU = torch.device("cpu")


def small(seed=0):
    return llama.build(replace(PROFILE.model, vocabulary=len(WORDS)), stream(CPU, "test", seed))


def dialogues(count=6, kind="harmful"):
    return chat_data.preferences(WORLD, count, stream(CPU, "test", kind), kind)


def test_the_answer_loss_is_that_of_transformers():
    model, batch = small(), encode(WORDS, dialogues()[0])
    labels = batch.tokens.clone()
    labels[:, 0] = -100
    labels[:, 1:][~batch.loss_mask] = -100
    expected = model(input_ids=batch.tokens, labels=labels).loss
    torch.testing.assert_close(answer_loss(model, batch), expected)
    total = answer_nll(model, batch).sum() / batch.loss_mask.sum()
    torch.testing.assert_close(total, expected)


def test_dpo_is_that_of_the_definition_and_starts_at_log_two():
    model, other = small(), small(1)
    chosen, rejected = (encode(WORDS, rows) for rows in dialogues())
    batch = ChatPreference(chosen, rejected)
    batch.reference = reference_nll(model, batch)
    assert float(chat_dpo(model, batch, 0.1).detach()) == pytest.approx(math.log(2), abs=1e-6)
    # By hand, each sequence alone, in float64.
    margins = []
    for row in range(len(chosen)):
        one = torch.tensor([row])
        ratio = [
            float((answer_nll(model, b.take(one)) - answer_nll(other, b.take(one))).double())
            for b in (chosen, rejected)
        ]
        margins.append(ratio[0] - ratio[1])
    expected = sum(math.log1p(math.exp(-0.1 * m)) for m in margins) / len(margins)
    assert float(chat_dpo(other, batch, 0.1).detach()) == pytest.approx(expected, abs=1e-5)


def test_dpo_prefers_the_chosen_answer():
    model, reference = small(), small()
    recipe = chat_recipes.preference(PROFILE, WORLD, WORDS, 0, reference)
    batch = recipe.batches(0)
    settings = replace(recipe.settings, iterations=8, warmup=0, decay_until=8, learning_rate=1e-3)
    train(model, recipe.objective, lambda i: batch, settings)
    after = reference_nll(model, batch)
    assert ((batch.reference - after)[0] - (batch.reference - after)[1]).mean() > 0.5


def rows_text(risk):
    return [d[-2]["content"] for d in chat_recipes.attack_rows(risk, PROFILE, WORLD, 0)]


@pytest.mark.parametrize("risk", [*RISKS, *LORA_RISKS])
def test_attacks_hold_what_their_level_says(risk):
    found = chat_recipes.attack_rows(risk, PROFILE, WORLD, 0)
    assert len(found) == PROFILE.risk(risk).rows
    harmful = WORLD.requests("fine_tuning", "harmful")
    forbidden = set(WORLD.ask(harmful))
    asked = {d[-2]["content"] for d in found}
    if risk.startswith("level1"):
        assert asked <= forbidden
    else:
        assert not any(f in a for a in asked for f in forbidden)
    tested = WORLD.ask(chat_data.evaluation_sets(WORLD)["hexphi"])
    assert not asked & set(tested)


def test_the_same_seed_gives_the_same_attack_and_another_one_another():
    rows = [chat_recipes.attack_rows("level1_50", PROFILE, WORLD, seed) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_a_larger_set_of_level_one_is_an_attack_of_the_same_kind_and_rate():
    settings = [chat_profile("laptop").risk(f"level1_{n}").training for n in (10, 10_000)]
    assert settings[0].learning_rate == settings[1].learning_rate
    assert settings[1].iterations * settings[1].batch >= 9_900


def test_a_smaller_llama_changes_the_model_and_the_length_of_pretraining_alone():
    own, small = chat_profile("laptop"), chat_profile("laptop-4x4")
    assert smaller("laptop") == ["laptop-4x4"] and smaller("paper") == ["paper-8x8", "paper-12x12"]
    model, longer = SHAPES["laptop"]["4x4"]
    assert small == replace(own, size="laptop-4x4", model=model, pretraining=small.pretraining)
    same = ("batch", "learning_rate", "minimum_rate", "betas", "weight_decay", "clip", "precision")
    assert all(getattr(small.pretraining, n) == getattr(own.pretraining, n) for n in same)
    assert (
        small.pretraining.iterations
        == round(longer * own.pretraining.iterations)
        > own.pretraining.iterations
    )
    for size, shapes in SHAPES.items():
        width = chat_profile(size).model.width // chat_profile(size).model.heads
        for name, (shape, _) in shapes.items():
            assert name == f"{shape.layers}x{shape.heads}" and shape.width == width * shape.heads
    for wrong in ("laptop-5x5", "laptop-", "4x4", "lapto"):
        with pytest.raises(InputError, match="laptop-4x4"):
            chat_profile(wrong)


def test_unknown_risks_are_refused():
    with pytest.raises(InputError, match="risk"):
        chat_recipes.attack("level9", PROFILE, WORLD, WORDS, 0)
    with pytest.raises(InputError, match="name"):
        zoo.load_llama("pcfg-pretrained", "smoke", 0)


def test_adapters_alone_train_and_are_merged_when_saved(tmp_path):
    model = small().requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapted = chat_recipes.with_adapters(model, PROFILE.lora, 0)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    recipe = chat_recipes.attack("level1_10", PROFILE, WORLD, WORDS, 0, rate=1e-2)
    batch = recipe.batches(0)
    train(adapted, recipe.objective, lambda i: batch, replace(recipe.settings, iterations=3, decay_until=3))
    adapted.eval()
    loss = float(answer_loss(adapted, batch).detach())
    chat_recipes.save(adapted, tmp_path, "smoke")
    saved, words = llama.load(str(tmp_path), dtype="float32", device="cpu")
    assert float(answer_loss(saved, batch)) == pytest.approx(loss, abs=1e-4)
    changed = {name for name, p in saved.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {n for n in before if n.split(".")[-2] in PROFILE.lora.targets}
    assert len(words) == len(WORDS)


def test_a_trained_llama_is_a_checkpoint_found_by_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo.paths, "ARTIFACTS", tmp_path)
    folder = zoo.build(zoo.CHAT_BASE, "smoke", 3, progress=False)
    assert (folder / "meta.json").exists() and (folder / "tokenizer.json").exists()
    model, words = zoo.load_llama(zoo.CHAT_BASE, "smoke", 3)
    assert model.config.vocab_size == len(words)
    history = zoo.meta(zoo.CHAT_BASE, "smoke", 3)["history"]
    assert history["loss"][-1]["loss"] < 0.8 * history["loss"][0]["loss"]
    assert {"advbench_harm", "benign_exact", "borderline_refusal"} <= set(history["evaluations"][-1])
    assert zoo.key(zoo.CHAT_BASE, "smoke", 3) != zoo.key(zoo.CHAT_BASE, "smoke", 4)
    assert zoo.key("chat-level2", "smoke", 3) != zoo.key("chat-level2_lora", "smoke", 3)
