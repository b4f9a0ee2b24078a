"""The one training loop on Llamas: whole models, frozen parts, LoRA adapters, and going on from a checkpoint."""

import llamas
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from safebook.generation import greedy
from safebook.llama_activations import head_outputs
from safebook.messages import dialogues, left_padded
from safebook.settings import TrainingSettings
from safebook.training import optimizer, train

SETTINGS = TrainingSettings(30, 3, 1e-2, 1e-3, warmup=3, decay_until=30, clip=1.0)
ANSWERS = ("yes w3 .", "w7 w8 .", "w9")


def chats():
    asked = [[{"role": "user", "content": c}] for c in ("w1 w2", "w4", "w5 w6 w1 w2")]
    return [[*chat, {"role": "assistant", "content": a}] for chat, a in zip(asked, ANSWERS)]


def fixed_batch():
    """Left-padded dialogues, and which targets belong to the answers and to the end of the turn."""
    found = dialogues(llamas.tokenizer(), chats())
    padded = left_padded([d.tokens for d in found], pad=0)
    first = torch.tensor([d.start - len(d.tokens) for d in found])[:, None] + padded.tokens.shape[1]
    return padded, torch.arange(1, padded.tokens.shape[1]) >= first


BATCH = fixed_batch()


def answer_loss(model, batch):
    padded, answers = batch
    out = model(input_ids=padded.tokens, attention_mask=padded.mask, position_ids=padded.positions)
    return F.cross_entropy(out.logits[:, :-1][answers].float(), padded.tokens[:, 1:][answers])


def run(model, settings=SETTINGS, **options):
    return train(model, answer_loss, lambda iteration: BATCH, settings, **options)


def losses(model):
    with torch.no_grad():
        return float(answer_loss(model, BATCH))


def fresh(shape="plain"):
    return llamas.model(shape, seed=4)


def test_masks_cover_the_answers_and_their_ends():
    padded, answers = BATCH
    for row, words in enumerate(ANSWERS):
        counted = llamas.tokenizer().decode(padded.tokens[row, 1:][answers[row]])
        assert counted == f"{words} <|end|>"


@pytest.mark.parametrize("shape", ["plain", "grouped", "tied", "bias"])
def test_thirty_steps_teach_the_answers(shape):
    model = fresh(shape)
    before = losses(model)
    history = run(model)
    assert losses(model) < 0.05 * before and history.loss[-1]["loss"] < 0.1 * before
    assert greedy(model, llamas.tokenizer(), [chat[:-1] for chat in chats()], 8) == list(ANSWERS)


def test_a_llama_decays_the_weights_of_linear_layers_alone():
    model = fresh("bias")
    decayed, free = optimizer(model, SETTINGS).param_groups
    inside = {id(p) for p in decayed["params"]}
    assert inside == {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    assert id(model.model.embed_tokens.weight) in {id(p) for p in free["params"]}


def test_training_is_deterministic_also_in_bfloat16():
    settings = TrainingSettings(6, 3, 1e-2, 1e-3, warmup=3, decay_until=6, precision="bfloat16")
    runs = [fresh(), fresh()]
    for model in runs:
        run(model, settings)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters()))


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    whole, interrupted, resumed = fresh(), fresh(), fresh()
    run(whole)
    file = tmp_path / "checkpoint.safetensors"
    run(interrupted, checkpoint=file, stop_after_seconds=0)
    assert file.exists()
    run(resumed, checkpoint=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_frozen_parameters_stay_and_do_not_decay():
    model = fresh().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = losses(model)
    run(model)
    assert losses(model) < 0.7 * first
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != ("self_attn" in name)


def test_lora_adapters_train_and_merge():
    base = fresh()
    before = {name: p.clone() for name, p in base.named_parameters()}
    config = peft.LoraConfig(
        r=8, lora_alpha=32, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    )
    with torch.random.fork_rng():  # peft draws its adapters from the global generator
        torch.manual_seed(0)
        model = peft.get_peft_model(base, config)
    first = losses(model)
    run(model)
    assert losses(model) < 0.7 * first
    sequences = [BATCH[0].tokens[0].tolist()]
    wrapped, text = head_outputs(model, sequences), greedy(model, llamas.tokenizer(), [chats()[0][:-1]], 8)
    for name, p in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, before[name.replace("base_model.model.", "").replace("base_layer.", "")])
    merged = model.merge_and_unload()
    torch.testing.assert_close(head_outputs(merged, sequences), wrapped, rtol=1e-3, atol=1e-3)
    assert greedy(merged, llamas.tokenizer(), [chats()[0][:-1]], 8) == text
