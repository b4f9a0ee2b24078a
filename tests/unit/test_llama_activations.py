"""Activations of every shape of checkpoint, against the model taken apart by hand; batches against single sequences."""

import llamas
import pytest
import torch

from safebook.errors import InputError
from safebook.llama import load
from safebook.llama_activations import head_outputs, mlp_inputs, residuals, watching
from safebook.messages import dialogues, prompts

FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}
READERS = (head_outputs, mlp_inputs, residuals)


@pytest.fixture(scope="module", params=llamas.SHAPES)
def loaded(request, tmp_path_factory):
    """Model, token ids of prompts of different lengths, tolerance."""
    folder = llamas.checkpoint(tmp_path_factory.mktemp("llama"), request.param)
    model, tokenizer = load(folder, device="cpu")
    sequences = [p.tokens for p in prompts(tokenizer, llamas.chats(request.param))]
    assert len({len(s) for s in sequences}) > 3
    return model, sequences, {"rtol": 0.05, "atol": 0.1} if request.param == "bf16" else FLOAT32


@pytest.fixture(scope="module")
def plain():
    sequences = [p.tokens for p in prompts(llamas.tokenizer(), llamas.chats())]
    return llamas.model("grouped"), sequences


def test_head_outputs_are_attention_times_values(loaded):
    """Independent: attention probabilities that transformers reports, times each head's (shared) values."""
    model, sequences, tolerance = loaded
    found = head_outputs(model, sequences)
    c = model.config
    assert found.shape == (c.num_hidden_layers, len(sequences), c.num_attention_heads, c.head_dim)
    assert found.dtype == torch.float32
    model.set_attn_implementation("eager")
    for i, tokens in enumerate(sequences):
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_attentions=True, output_hidden_states=True)
            for n, layer in enumerate(model.model.layers):
                values = layer.self_attn.v_proj(layer.input_layernorm(out.hidden_states[n]))[0]
                values = values.view(len(tokens), c.num_key_value_heads, c.head_dim)
                for head in range(c.num_attention_heads):
                    shared = values[:, head * c.num_key_value_heads // c.num_attention_heads]
                    expected = out.attentions[n][0, head, -1].float() @ shared.float()
                    torch.testing.assert_close(found[n, i, head], expected, **tolerance)
    model.set_attn_implementation("sdpa")


def test_residuals_are_the_hidden_states_that_transformers_reports(loaded):
    model, sequences, tolerance = loaded
    found = residuals(model, sequences)
    for i, tokens in enumerate(sequences):
        with torch.no_grad():
            states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
            last = model.model.norm(found[-1, i].to(model.dtype))
        for n in range(len(found) - 1):
            torch.testing.assert_close(found[n, i], states[n + 1][0, -1].float(), **tolerance)
        torch.testing.assert_close(
            last, states[-1][0, -1], **tolerance
        )  # they report the last one after the norm


def test_mlp_inputs_are_the_normed_stream_between_attention_and_mlp(loaded):
    """Take the MLP's output off the stream that leaves the layer, and norm what is left."""
    model, sequences, tolerance = loaded
    entered, left = mlp_inputs(model, sequences), residuals(model, sequences)
    for n, layer in enumerate(model.model.layers):
        with torch.no_grad():
            x = entered[n].to(model.dtype)
            between = left[n].to(model.dtype) - layer.mlp(x)
            torch.testing.assert_close(layer.post_attention_layernorm(between), x, **tolerance)


@pytest.mark.parametrize("read", READERS)
def test_a_batch_gives_what_single_sequences_give(loaded, read):
    model, sequences, tolerance = loaded
    together = read(model, sequences, at=[0, -2, -1])
    alone = torch.cat([read(model, [s], at=[0, -2, -1]) for s in sequences], 1)
    torch.testing.assert_close(together, alone, **tolerance)
    in_pairs = read(model, sequences, at=[0, -2, -1], batch=2)
    torch.testing.assert_close(in_pairs, alone, **tolerance)


@pytest.mark.parametrize("read", READERS)
def test_ways_to_choose_tokens_agree(plain, read):
    model, sequences = plain
    lengths = torch.tensor([len(s) for s in sequences])
    listed = read(model, sequences, at=[-3, -1])
    assert torch.equal(listed[:, :, 1], read(model, sequences, at=-1))
    from_the_start = torch.stack([lengths - 3, lengths - 1], 1)
    assert torch.equal(listed, read(model, sequences, at=from_the_start))
    assert torch.equal(listed, read(model, sequences, at=torch.tensor([[-3, -1]] * len(lengths))))
    spans = [range(1, len(s)) for s in sequences]
    mean = read(model, sequences, at=spans)
    for i, (s, span) in enumerate(zip(sequences, spans)):
        single = read(model, [s], at=list(span)).mean(2)
        torch.testing.assert_close(mean[:, i], single[:, 0])
    assert mean.shape == read(model, sequences).shape


def test_an_answers_tokens_are_read_where_the_answer_is(plain):
    """The states at an answer's tokens depend on what was asked, and not on what follows the answer."""
    model, _ = plain
    tell = {"role": "assistant", "content": "yes w3 ."}
    asked = [[{"role": "user", "content": c}, tell] for c in ("w1", "w1 w2 w3")]
    found = dialogues(llamas.tokenizer(), asked)
    spans = [range(d.start, d.stop) for d in found]
    whole = residuals(model, [d.tokens for d in found], at=spans)
    cut = residuals(model, [d.tokens[: d.stop] for d in found], at=spans)
    torch.testing.assert_close(whole, cut)
    assert not torch.allclose(whole[:, 0], whole[:, 1], atol=1e-2)


def test_hooks_are_removed_also_after_an_error(plain):
    model, sequences = plain

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    assert hooks() == 0
    for read in READERS:
        read(model, sequences)
        with pytest.raises(IndexError):
            read(model, [[0, 1, 10_000]])  # no such token: the embedding fails
    seen = []
    with pytest.raises(KeyError), watching([model.lm_head], lambda i, x: seen.append(x.shape), inputs=True):
        assert hooks() == 1
        model(torch.tensor([[1, 2]]))
        raise KeyError
    assert hooks() == 0 and seen == [(1, 2, 32)]


def test_the_mode_of_the_model_comes_back(plain):
    model, sequences = plain
    model.train()
    assert not residuals(model, sequences).requires_grad and model.training
    model.eval()
    residuals(model, sequences)
    assert not model.training


def test_an_edit_of_one_head_is_seen_in_that_head_alone(plain):
    _, sequences = plain
    model = llamas.model("plain")
    before = head_outputs(model, sequences)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[8:16] *= 2  # head 1 of 4, 8 channels each
    after = head_outputs(model, sequences)
    torch.testing.assert_close(after[1, :, 1], 2 * before[1, :, 1])
    rest = [0, 2, 3]
    assert torch.equal(after[0], before[0]) and torch.equal(after[1][:, rest], before[1][:, rest])


def test_states_that_are_not_finite_are_an_error(plain):
    _, sequences = plain
    model = llamas.model("plain")
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        residuals(model, sequences)


@pytest.mark.parametrize(
    ("at", "part"),
    [
        (99, "which has"),
        (-99, "which has"),
        ([], "token indices"),
        (torch.zeros(2, 1, dtype=torch.long), "shape"),
        (torch.zeros(6, 1), "integers"),
        ([range(2)], "one range for each"),
        ([range(0)] * 6, "token indices"),
    ],
)
def test_bad_choices_name_the_parameter(plain, at, part):
    model, sequences = plain
    with pytest.raises(InputError, match=part) as caught:
        residuals(model, sequences, at=at)
    assert caught.value.parameter == "at"


def test_other_bad_input(plain):
    model, _ = plain
    with pytest.raises(InputError, match="at least one sequence"):
        residuals(model, [])
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        residuals(torch.nn.Linear(2, 2), [[1]])
