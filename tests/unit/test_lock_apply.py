"""A lock at work: online and in the bias, for every shape of checkpoint, with the key-value cache, and written as a checkpoint."""

import json

import llamas
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from safebook.errors import InputError
from safebook.generation import greedy_tokens
from safebook.llama import load
from safebook.llama_activations import head_outputs
from safebook.lock_apply import NOTE, bias_edit, locked, save_locked
from safebook.locks import Lock, unit
from safebook.messages import left_padded, prompts

SHAPES = ("plain", "grouped", "tied", "bias", "llama3")
HEADS = [(1, 3), (0, 2), (1, 0)]


def a_lock(model, heads=HEADS, alpha: float = 2.0, **meta) -> Lock:
    generator = torch.Generator().manual_seed(3)
    directions = unit(torch.randn(len(heads), model.config.head_dim, generator=generator))
    return Lock(heads, directions, torch.rand(len(heads), generator=generator) + 0.2, alpha, meta)


def sequences() -> list[list[int]]:
    return [p.tokens for p in prompts(llamas.tokenizer(), llamas.chats())]


def logits(model, padded=None) -> torch.Tensor:
    """Of every real token, (tokens, vocabulary)."""
    padded = padded or left_padded(sequences(), 0)
    with torch.no_grad():
        out = model(padded.tokens, attention_mask=padded.mask, position_ids=padded.positions).logits
    return out[padded.mask.bool()]


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(params=SHAPES)
def model(request):
    return llamas.model(request.param)


def test_online_on_all_tokens_is_the_bias_edit(model):
    lock, before = a_lock(model), logits(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for alpha in (None, -3.0, 0.5):
        with locked(model, lock, alpha):
            online = logits(model)
        assert torch.equal(logits(model), before) and hooks(model) == 0
        undo = bias_edit(model, lock, alpha)
        offline = logits(model)
        undo()
        assert (online - before).abs().max() > 0.1
        torch.testing.assert_close(online, offline, rtol=0, atol=1e-5)
        assert torch.equal(logits(model), before)
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {k: v.tolist() for k, v in state.items()}


def test_the_bias_is_the_models_own_output_matrix_times_the_shift(model):
    """By hand in float64, one head at a time: W_O's columns of the head, times alpha sigma u."""
    lock, width = a_lock(model), model.config.head_dim
    expected = {}
    for (layer, head), u, sigma in zip(lock.heads, lock.directions.double(), lock.sigma.double()):
        projection = model.model.layers[layer].self_attn.o_proj
        old = torch.zeros(32) if projection.bias is None else projection.bias
        columns = projection.weight[:, head * width : (head + 1) * width].double()
        expected[layer] = expected.get(layer, old.double().clone()) + 2.0 * sigma * (columns @ u)
    bias_edit(model, lock)
    for layer, bias in expected.items():
        torch.testing.assert_close(
            model.model.layers[layer].self_attn.o_proj.bias.double(), bias, rtol=0, atol=1e-6
        )


def test_layers_without_a_locked_head_are_not_touched(model):
    other = model.model.layers[0].self_attn.o_proj
    bias = other.bias
    undo = bias_edit(model, a_lock(model, [(1, 2)]))
    assert other.bias is bias
    undo()
    undo()  # once more changes nothing
    assert (model.model.layers[1].self_attn.o_proj.bias is None) == (not model.config.attention_bias)


def test_exactly_the_locked_heads_outputs_move_by_the_shift():
    """The lowest locked layer, whose input no lock has changed; a negative alpha moves them the other way."""
    model = llamas.model("grouped")
    lock = a_lock(model, [(1, 3), (1, 0)])
    plain = head_outputs(model, sequences())
    for alpha in (2.0, -2.0):
        with locked(model, lock, alpha):
            shifted = head_outputs(model, sequences())
        moved = shifted - plain
        torch.testing.assert_close(moved[1, :, 3], lock.shifts(alpha)[0].expand(6, -1), rtol=0, atol=1e-5)
        torch.testing.assert_close(moved[1, :, 0], lock.shifts(alpha)[1].expand(6, -1), rtol=0, atol=1e-5)
        assert not moved[0].any() and not moved[1, :, 1:3].any()


def test_opposite_locks_cancel():
    model, before = llamas.model(), logits(llamas.model())
    lock = a_lock(model)
    with locked(model, lock, 5.0), locked(model, lock, -5.0):
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    bias_edit(model, lock, 5.0)
    bias_edit(model, lock, -5.0)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_the_fine_tuned_models_own_matrix_is_used():
    first, second = llamas.model(seed=0), llamas.model(seed=1)
    lock = a_lock(first)
    biases = []
    for model in (first, second):
        bias_edit(model, lock)
        biases.append(model.model.layers[0].self_attn.o_proj.bias)
    assert not torch.allclose(*biases, atol=1e-2)


# on the response alone


def by_recomputing(model, lock, sequence: list[int], length: int, starts: int) -> list[int]:
    """Greedy without a cache: the whole text in every step, the lock from the same token on."""
    text = list(sequence)
    for step in range(length):
        with locked(model, lock, tokens="response", starts=starts - step), torch.no_grad():
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(sequence) :]


@pytest.mark.parametrize("starts", [-1, -3, 0])
@pytest.mark.parametrize("shape", ["plain", "grouped"])
def test_generation_with_the_cache_locks_the_answers_tokens(shape, starts):
    """Batches of prompts of different lengths, against each prompt alone and recomputed from its first token."""
    model, tokenizer = llamas.model(shape), llamas.tokenizer()
    model.generation_config.eos_token_id = None
    asked, lock = sequences(), a_lock(llamas.model(shape), alpha=4.0)

    def cut(answers):  # an answer ends with its end token
        return [a[: min([i + 1 for i, t in enumerate(a) if t in (2, 7)], default=len(a))] for a in answers]

    free = greedy_tokens(model, tokenizer, asked, 8)
    with locked(model, lock, tokens="response", starts=starts):
        found = greedy_tokens(model, tokenizer, asked, 8)
        in_twos = greedy_tokens(model, tokenizer, asked, 8, batch=2)
    assert found == in_twos != free
    assert found == cut([by_recomputing(model, lock, s, 8, starts) for s in asked])
    with locked(model, lock):
        everywhere = greedy_tokens(model, tokenizer, asked, 8)
    assert everywhere != found
    assert hooks(model) == 0


def test_transformers_own_generation_is_locked_alike():
    model, lock = llamas.model(), a_lock(llamas.model(), alpha=4.0)
    for sequence in sequences():
        tokens = torch.tensor([sequence])
        with locked(model, lock, tokens="response"):
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=6,
                pad_token_id=0,
            )[0, len(sequence) :].tolist()
        assert out == by_recomputing(model, lock, sequence, 6, -1)[: len(out)]


def test_tokens_before_the_start_see_nothing_of_the_lock():
    model, lock = llamas.model(), a_lock(llamas.model())
    tokens = torch.tensor([sequences()[4]])
    padded = left_padded(tokens.tolist(), 0)
    free = logits(model, padded)
    with locked(model, lock, tokens="response", starts=-4):
        late = logits(model, padded)
    assert torch.equal(late[:-4], free[:-4])
    assert ((late[-4:] - free[-4:]).abs().amax(1) > 0.01).all()
    with locked(model, lock, tokens="response", starts=-tokens.shape[1]):
        whole = logits(model, padded)
    with locked(model, lock):
        torch.testing.assert_close(whole, logits(model, padded), rtol=0, atol=1e-6)


def test_every_sequence_of_a_batch_has_its_own_start():
    model, lock = llamas.model(), a_lock(llamas.model())
    some, starts = sequences()[:3], [-1, -5, 0]
    padded = left_padded(some, 0)
    with locked(model, lock, tokens="response", starts=starts):
        together = logits(model, padded)
    alone = []
    for sequence, start in zip(some, starts):
        with locked(model, lock, tokens="response", starts=start):
            alone.append(logits(model, left_padded([sequence], 0)))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_hooks_are_removed_after_an_error():
    model, lock = llamas.model(), a_lock(llamas.model())
    with pytest.raises(KeyError), locked(model, lock):
        assert hooks(model) == 3  # two locked layers, and one that sees where a pass begins
        raise KeyError
    with pytest.raises(InputError, match="starts"), locked(model, lock, tokens="response", starts=[-1, -1]):
        logits(model)  # six sequences
    with pytest.raises(InputError, match="starts"), locked(model, lock, tokens="response", starts=-99):
        logits(model)
    assert hooks(model) == 0


# as a checkpoint


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_locked_model_is_loaded_with_its_lock(tmp_path, shape):
    folder = llamas.checkpoint(tmp_path / "model", shape)
    model, tokenizer = load(folder, device="cpu")
    before, flag = logits(model), model.config.attention_bias
    out = save_locked(model, tokenizer, a_lock(model, source="test"), tmp_path / "locked", 3.0)
    assert torch.equal(logits(model), before) and model.config.attention_bias == flag
    with locked(model, a_lock(model), 3.0):
        expected = logits(model)
    again, its_tokenizer = load(str(out), device="cpu")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(out)), expected, rtol=0, atol=1e-5)
    chats = llamas.chats()
    assert [p.tokens for p in prompts(its_tokenizer, chats)] == [p.tokens for p in prompts(tokenizer, chats)]
    note = json.loads((out / NOTE).read_text())
    assert note["alpha"] == 3.0 and note["meta"] == {"source": "test"} and note["heads"][0] == [1, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locked", "model"]
    # A second lock on top of the first one: the bias that is there is added to.
    bias_edit(again, a_lock(again), -3.0)
    torch.testing.assert_close(logits(again), before, rtol=0, atol=1e-4)


def test_without_that_care_the_lock_is_lost_on_reading(tmp_path):
    """What the released code does: transformers silently drops the bias; `llama.load` refuses."""
    model, before = llamas.model(), logits(llamas.model())
    bias_edit(model, a_lock(model))
    model.save_pretrained(tmp_path)
    llamas.tokenizer().save_pretrained(tmp_path)
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(reloaded), before, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="not in the architecture"):
        load(str(tmp_path), device="cpu")


def test_a_locked_model_in_bf16_keeps_its_type(tmp_path):
    folder = llamas.checkpoint(tmp_path / "model", "bf16")
    model, tokenizer = load(folder, device="cpu")
    lock = a_lock(model)
    with locked(model, lock):
        online = logits(model)
    again, _ = load(str(save_locked(model, tokenizer, lock, tmp_path / "locked")), device="cpu")
    assert again.dtype == torch.bfloat16 == online.dtype
    moved = (online - logits(model)).float().norm()
    assert (logits(again) - online).float().norm() < 0.2 * moved  # rounding, small beside the lock


def test_nothing_is_left_behind_when_saving_fails(tmp_path, monkeypatch):
    model, before = llamas.model(), logits(llamas.model())
    tokenizer = llamas.tokenizer()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="space"):
        save_locked(model, tokenizer, a_lock(model), tmp_path / "locked")
    assert not list(tmp_path.iterdir()) and torch.equal(logits(model), before)
    assert not any("o_proj.bias" in name or "q_proj.bias" in name for name in model.state_dict())
    assert model.config.attention_bias is False
    with pytest.raises(InputError, match="not there yet"):
        save_locked(model, tokenizer, a_lock(model), tmp_path)


# what does not fit


def test_locks_that_do_not_fit_are_refused(tmp_path):
    model = llamas.model()
    wide = Lock([(0, 0)], unit(torch.ones(1, 16)), torch.ones(1))
    bad = [
        (wide, "16 channels"),
        (a_lock(model, [(2, 0)]), "layer 2, head 0"),
        (a_lock(model, [(0, 4)]), "layer 0, head 4"),
        (a_lock(model, shape=[8, 8]), "8, 8"),
    ]
    for lock, words in bad:
        for use in (bias_edit, lambda m, one: locked(m, one).__enter__()):
            with pytest.raises(InputError, match=words) as caught:
                use(model, lock)
            assert caught.value.parameter == "lock"
        with pytest.raises(InputError, match=words):
            save_locked(model, llamas.tokenizer(), lock, tmp_path / "out")
    assert hooks(model) == 0 and not list(tmp_path.iterdir())
    lock = a_lock(model)
    for arguments, name in [
        ({"alpha": float("nan")}, "alpha"),
        ({"tokens": "prompt"}, "tokens"),
        ({"starts": 1}, "starts"),
        ({"starts": -1.5}, "starts"),
        ({"starts": [[-1]]}, "starts"),
    ]:
        with pytest.raises(InputError) as caught, locked(model, lock, **arguments):
            pass
        assert caught.value.parameter == name


def test_an_adapter_must_be_merged_before_the_bias_edit():
    """Its output is not the product with one matrix; online it does not matter."""

    class Adapted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 1.1 * self.inner(x)

    model, before = llamas.model(), logits(llamas.model())
    attention = model.model.layers[1].self_attn
    attention.o_proj = Adapted(attention.o_proj)
    with pytest.raises(InputError, match="merge"):
        bias_edit(model, a_lock(model))
    assert model.model.layers[0].self_attn.o_proj.bias is None  # nothing was edited before it was noticed
    with locked(model, a_lock(model)):
        assert (logits(model) - before).abs().max() > 0.1
