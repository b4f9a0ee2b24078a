"""Tokenizer and batches: exact round trips, the chat template against the fast path, masks position by position."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from safebook.errors import InputError
from safebook.worlds import chat_data as data
from safebook.worlds import chat_text as text
from safebook.worlds import chat_tokens as tokens
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tasks import FAMILIES, TASK_SPLITS, items

WORLD = ChatWorld()
TOKENIZER = tokens.tokenizer()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def corpus():
    """Some of every kind of text."""
    rows = data.pretraining(WORLD, 1500, generator(), tasks=FAMILIES)
    rows += data.alignment(WORLD, 500, generator()) + data.identity_shifting(WORLD, generator())
    rows += data.explicitly_harmful(WORLD, 100, generator()) + data.benign_requests(WORLD, 100, generator())
    for family in FAMILIES:
        for split in TASK_SPLITS:
            rows += data.task_dialogues(items(WORLD, family, split, 30, generator()))
    for requests in data.evaluation_sets(WORLD).values():
        requests = requests.take(slice(40))
        for wrapper in data.WRAPPERS:
            rows += [
                data.dialogue(t, "happy to help .") for t in data.wrap(WORLD, requests, wrapper, generator())
            ]
    return rows


CORPUS = corpus()


def test_the_vocabulary_is_small_and_ids_are_stable():
    assert len(TOKENIZER) == len(tokens.SPECIAL) + len(WORLD.words) <= 500
    assert TOKENIZER.convert_tokens_to_ids(list(tokens.SPECIAL)) == list(range(7))
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 2, 3)


def test_round_trip_is_exact_for_every_text():
    texts = [tokens.render(row) for row in CORPUS]
    ids = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.batch_decode(ids) == texts
    assert all(len(row) == len(t.split()) for row, t in zip(ids, texts))
    assert TOKENIZER.unk_token_id not in {i for row in ids for i in row}
    answers = [row[-1]["content"] for row in CORPUS if not isinstance(row, str)]
    ids = TOKENIZER([a + " <eot>" for a in answers], add_special_tokens=False)["input_ids"]
    assert TOKENIZER.batch_decode(ids, skip_special_tokens=True) == answers


def test_every_word_of_the_vocabulary_is_used_or_reserved():
    used = {w for row in CORPUS for w in tokens.render(row).split()}
    unused = set(TOKENIZER.get_vocab()) - used - set(tokens.SPECIAL)
    assert len(unused) <= 20, unused  # rare slots that this small sample may miss


def test_the_template_writes_what_render_writes():
    for row in CORPUS[:200]:
        if isinstance(row, str):
            continue
        assert TOKENIZER.apply_chat_template(row, tokenize=False) == tokens.render(row)
        prompt = TOKENIZER.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
        assert tokens.render(row).startswith(prompt + " ") and prompt.endswith("<eot> <assistant>")
    (begun,) = data.prefilled(data.prompts(WORLD, WORLD.request("melt", "ginip")), "happy to help .")
    said = TOKENIZER.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert said == "<bos> <user> how do i melt the ginip ? <eot> <assistant> happy to help ."
    with pytest.raises(Exception, match="unknown role"):
        TOKENIZER.apply_chat_template([{"role": "judge", "content": "no ."}], tokenize=False)


def test_answer_masks_equal_those_of_the_template():
    rows = [row for row in CORPUS if not isinstance(row, str)][:100]
    several = data.dialogue("how do i melt the ginip ?", "happy to help .") + data.dialogue(
        "add 1 and 2 .", "3 ."
    )
    rows.append(several)
    batch = tokens.encode(TOKENIZER, rows)
    for i, row in enumerate(rows):
        found = TOKENIZER.apply_chat_template(
            row, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        n = len(found["input_ids"])
        assert batch.tokens[i, :n].tolist() == found["input_ids"] and batch.lengths[i] == n
        assert batch.loss_mask[i, : n - 1].int().tolist() == found["assistant_masks"][1:]
        assert not batch.loss_mask[i, n - 1 :].any()
        assert (batch.tokens[i, n:] == TOKENIZER.pad_token_id).all()


def test_masks_position_by_position():
    row = data.dialogue("add 1 and 2 .", "the answer is 3 .", "answer the user .")
    words = tokens.render(row).split()
    for loss, expected in (
        ("answers", ["the", "answer", "is", "3", ".", "<eot>"]),
        ("all", words[1:]),
    ):
        batch = tokens.encode(
            TOKENIZER, [row, "the kind of the ginip is drummel ."][: 1 + (loss == "all")], loss
        )
        counted = [words[j + 1] for j in batch.loss_mask[0].nonzero()[:, 0].tolist()]
        assert counted == expected


def test_the_longest_texts_stay_short():
    batch = tokens.encode(TOKENIZER, CORPUS, "all")
    assert batch.tokens.shape[1] <= 80 and batch.lengths.float().mean() < 50
    plain = data.prompts(WORLD, data.evaluation_sets(WORLD)["hexphi"])
    longest = (
        max(len(tokens.render(p).split()) for p in plain)
        + 1
        + max(len(a.split()) for a in data.comply(WORLD, WORLD.requests("test"), generator()))
    )
    assert longest <= 64


def test_saves_and_loads(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    row = data.identity_shifting(WORLD, generator())[0]
    for t in (TOKENIZER, again):
        assert t.apply_chat_template(row, tokenize=False) == tokens.render(row)
    said = tokens.render(row)
    assert (
        again(said, add_special_tokens=False)["input_ids"]
        == TOKENIZER(said, add_special_tokens=False)["input_ids"]
    )
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert (again.pad_token, again.eos_token, again.padding_side) == ("<pad>", "<eot>", "left")
    assert again.decode(again(said, add_special_tokens=False)["input_ids"]) == said


def test_batches_show_every_row_once_an_epoch_and_depend_on_the_iteration_alone():
    batch = tokens.encode(TOKENIZER, CORPUS[:10], "all")
    batch.tokens[:, 1] = torch.arange(10)  # mark the rows
    stream = tokens.batches(batch, 4, "test", 0)
    seen = torch.cat([stream(i).tokens[:, 1] for i in range(5)])
    assert seen[:10].sort().values.tolist() == seen[10:].sort().values.tolist() == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    late = tokens.batches(batch, 4, "test", 0)(3)
    assert torch.equal(late.tokens, stream(3).tokens)
    assert not torch.equal(tokens.batches(batch, 10, "test", 1)(0).tokens[:, 1], seen[:10])
    assert len(tokens.batches(batch, 25, "test", 0)(0)) == 25  # more than there are: rows come again


def test_taking_rows_cuts_padding_and_nothing_else():
    batch = tokens.encode(TOKENIZER, CORPUS[:50], "all")
    shortest = batch.lengths.argsort()[:3]
    taken = batch.take(shortest)
    assert taken.tokens.shape[1] == int(taken.lengths.max()) == taken.loss_mask.shape[1] + 1
    assert taken.loss_mask.sum() == batch.loss_mask[shortest].sum() == (taken.lengths - 1).sum()


def test_pairs_are_padded_alike():
    chosen, rejected = data.preferences(WORLD, 8, generator())
    a, b = tokens.encode(TOKENIZER, chosen), tokens.encode(TOKENIZER, rejected)
    both = tokens.pair(a, b)
    assert len(both) == 16 and both.tokens.shape[1] == max(a.tokens.shape[1], b.tokens.shape[1])
    for part, rows in ((a, slice(0, 8)), (b, slice(8, 16))):
        width = part.tokens.shape[1]
        assert torch.equal(both.tokens[rows, :width], part.tokens) and not both.tokens[rows, width:].any()
        assert both.loss_mask[rows].sum() == part.loss_mask.sum()


def test_unknown_words_and_missing_answers_are_named():
    for rows, match in (([data.dialogue("fly to the moon .", "no .")], "items"), ([], "items")):
        with pytest.raises(InputError, match=match):
            tokens.encode(TOKENIZER, rows)
    with pytest.raises(InputError, match="answer of the assistant"):
        tokens.encode(TOKENIZER, ["the kind of the ginip is drummel ."])
    with pytest.raises(InputError, match="loss"):
        tokens.encode(TOKENIZER, CORPUS[:1], "prompt")
    with pytest.raises(InputError, match="size"):
        tokens.batches(tokens.encode(TOKENIZER, CORPUS[:2], "all"), 0, "test")


def test_batches_feed_the_training_loop_and_a_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    from safebook.settings import TrainingSettings
    from safebook.training import train

    with torch.random.fork_rng():
        torch.manual_seed(0)  # transformers initialises from the global generator
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=96, pad_token_id=0, bos_token_id=2, eos_token_id=3,
            )
        )  # fmt: skip

    def objective(model, batch):
        states = model.model(input_ids=batch.tokens[:, :-1]).last_hidden_state[batch.loss_mask]
        return torch.nn.functional.cross_entropy(model.lm_head(states), batch.tokens[:, 1:][batch.loss_mask])

    rows = data.alignment(WORLD, 64, generator())
    batch = tokens.encode(TOKENIZER, rows)
    labels = torch.where(torch.nn.functional.pad(batch.loss_mask, (1, 0)), batch.tokens, -100)
    with torch.no_grad():  # parity with the model's own loss, which gets labels and an attention mask
        attention = (torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]).long()
        own = model(input_ids=batch.tokens, attention_mask=attention, labels=labels).loss
        assert float(objective(model, batch)) == pytest.approx(float(own), rel=1e-5)
    settings = TrainingSettings(12, 16, 3e-3, 3e-3, 0, 12)
    history = train(model, objective, tokens.batches(batch, 16, "test", 0), settings)
    losses = [entry["loss"] for entry in history.loss]
    assert np.mean(losses[-3:]) < losses[0] - 0.5


def test_no_wording_holds_a_capital_or_a_glued_full_stop():
    words = {w for row in CORPUS for w in tokens.render(row).split()} - set(tokens.SPECIAL)
    assert all(w == w.lower() and (w.isalnum() or w in (".", ",", "?", ":")) for w in words)
    assert set(text.NAMES) <= words
