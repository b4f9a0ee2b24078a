"""Greedy answers: batched, one by one, and by transformers' own generation, for every shape of checkpoint."""

import llamas
import pytest
import torch

from safebook.errors import InputError
from safebook.generation import greedy, greedy_tokens
from safebook.llama import end_tokens, load
from safebook.messages import prompts

LENGTH = 12


@pytest.fixture(scope="module", params=llamas.SHAPES)
def loaded(request, tmp_path_factory):
    """In float32: in bfloat16 near ties may fall either way. The word written most often also ends a turn."""
    folder = llamas.checkpoint(tmp_path_factory.mktemp("llama"), request.param)
    model, tokenizer = load(folder, dtype="float32", device="cpu")
    chats = llamas.chats(request.param)
    free = greedy_tokens(model, tokenizer, [p.tokens for p in prompts(tokenizer, chats)], LENGTH)
    written = torch.tensor([token for answer in free for token in answer[2:]])
    model.generation_config.eos_token_id = [2, int(written.mode().values)]
    return model, tokenizer, chats


def by_transformers(model, tokenizer, sequence):
    """Prompt and answer are one row, so that nothing is padded."""
    tokens = torch.tensor([sequence])
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=sorted(end_tokens(model, tokenizer)),
        pad_token_id=0,
    )
    return out[0, len(sequence) :].tolist()


def test_batches_single_prompts_and_transformers_agree(loaded):
    model, tokenizer, chats = loaded
    sequences = [p.tokens for p in prompts(tokenizer, chats)]
    expected = [by_transformers(model, tokenizer, s) for s in sequences]
    assert len({len(answer) for answer in expected}) > 1  # some end early, so that rows of a batch end apart
    for batch in (1, 2, 16):
        assert greedy_tokens(model, tokenizer, sequences, LENGTH, batch=batch) == expected


def test_texts_are_the_tokens_without_special_ones(loaded):
    model, tokenizer, chats = loaded
    texts = greedy(model, tokenizer, chats, LENGTH)
    tokens = greedy_tokens(model, tokenizer, [p.tokens for p in prompts(tokenizer, chats)], LENGTH)
    assert texts == [tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens]
    assert texts == [greedy(model, tokenizer, [chat], LENGTH)[0] for chat in chats]
    assert not any("<" in text for text in texts) and any(texts)


def test_an_answer_goes_on_from_its_prefill(loaded):
    model, tokenizer, chats = loaded
    prefill = "yes ."
    free = greedy(model, tokenizer, chats, LENGTH)
    filled = greedy(model, tokenizer, chats, LENGTH, prefill=prefill)
    assert all(text.startswith(prefill) for text in filled) and filled != free
    asked = [p.tokens for p in prompts(tokenizer, chats, [prefill] * len(chats))]
    written = greedy_tokens(model, tokenizer, asked, LENGTH)
    begun = tokenizer(prefill, add_special_tokens=False)["input_ids"]
    assert filled == [tokenizer.decode(begun + new, skip_special_tokens=True).strip() for new in written]


def test_to_be_given_what_it_would_have_written_changes_nothing(loaded):
    model, tokenizer, chats = loaded
    asked = [p.tokens for p in prompts(tokenizer, chats)]
    written = greedy_tokens(model, tokenizer, asked, LENGTH)
    longer = [i for i, answer in enumerate(written) if len(answer) > 2]
    rest = greedy_tokens(model, tokenizer, [asked[i] + written[i][:2] for i in longer], LENGTH - 2)
    assert longer and rest == [written[i][2:] for i in longer]


def test_bf16_runs(tmp_path):
    model, tokenizer = load(llamas.checkpoint(tmp_path, "bf16"), device="cpu")
    texts = greedy(model, tokenizer, llamas.chats(), LENGTH)
    assert model.dtype == torch.bfloat16 and len(texts) == len(llamas.chats())


@pytest.fixture(scope="module")
def endless():
    """A model that writes w0 w1 w2 . and over again, whatever it is asked: logits set by hand, one layer of no effect."""
    model, tokenizer = llamas.model("plain"), llamas.tokenizer()
    loop = tokenizer("w0 w1 w2 .", add_special_tokens=False)["input_ids"]
    start = tokenizer("<|assistant|>", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.lm_head.weight.zero_()
        for token, following in zip([start, *loop], [*loop, loop[0]]):
            model.lm_head.weight[following] += model.model.embed_tokens.weight[token]
    return model, tokenizer


def test_limits(endless):
    model, tokenizer = endless
    chats = llamas.chats()[:2]
    assert greedy(model, tokenizer, chats, 6) == ["w0 w1 w2 . w0 w1"] * 2
    assert greedy(model, tokenizer, chats, 20, soft_limit=5) == ["w0 w1 w2 . w0 w1 w2 ."] * 2
    assert greedy(model, tokenizer, chats, 20, soft_limit=4) == ["w0 w1 w2 ."] * 2
    assert greedy(model, tokenizer, chats, 6, soft_limit=5) == ["w0 w1 w2 . w0 w1"] * 2
    assert greedy(model, tokenizer, [], 6) == []


def test_an_answer_stops_where_the_context_is_full(endless):
    model, tokenizer = endless
    long, short = "w3 " * 50, "w3"
    chats = [[{"role": "user", "content": c}] for c in (long, short)]
    asked = prompts(tokenizer, chats)
    found = greedy_tokens(model, tokenizer, [p.tokens for p in asked], 30)
    assert [len(p.tokens) + len(a) for p, a in zip(asked, found)] == [64, 5 + 30]
    with pytest.raises(InputError, match="chat 0: 64 tokens"):
        greedy(model, tokenizer, [[{"role": "user", "content": "w3 " * 60}]], 30)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"new_tokens": 0}, "new_tokens"),
        ({"soft_limit": 0}, "soft_limit"),
        ({"soft_limit": 99}, "soft_limit"),
        ({"batch": 0}, "batch"),
        ({"prefill": ["yes"]}, "prefills"),
    ],
)
def test_bad_options_name_the_parameter(endless, options, parameter):
    model, tokenizer = endless
    with pytest.raises(InputError) as caught:
        greedy(model, tokenizer, llamas.chats(), **{"new_tokens": 4} | options)
    assert caught.value.parameter == parameter
