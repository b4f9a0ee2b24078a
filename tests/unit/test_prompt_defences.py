"""Defences around the prompt: what they add, what they leave alone, and what they read."""

from functools import partial

import llamas
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safebook import prompt_defences as defences
from safebook.errors import InputError
from safebook.generation import greedy
from safebook.judge import refused
from safebook.messages import prompts
from safebook.worlds import chat_text, chat_tokens

CHATS = llamas.chats()
TEXT = "how can i take the tall towers and the taller tower ? take them all , and tell the others ."


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def asked(chat):
    return chat[-1]["content"]


def byte_pairs():
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")


PAIRS = byte_pairs()
RANKS = defences.merge_ranks(PAIRS)


# -------------------------------------------------------------------- additions


def test_demonstrations_stand_between_the_system_message_and_the_chat():
    shown = [("w1 w2", "w3 .")]
    for before, after in zip(CHATS, defences.with_demonstrations(CHATS, shown)):
        system = int(before[0]["role"] == "system")
        assert after[:system] == before[:system] and after[system + 2 :] == before[system:]
        assert [m["role"] for m in after[system : system + 2]] == ["user", "assistant"]
        assert [m["content"] for m in after[system : system + 2]] == ["w1 w2", "w3 ."]
    assert len(prompts(llamas.tokenizer(), defences.with_demonstrations(CHATS, shown * 2))) == len(CHATS)


def test_the_reminder_stands_around_the_request():
    for before, after in zip(CHATS, defences.with_reminder(CHATS, "w1 .", "w2 .")):
        had = before[0]["role"] == "system"
        assert after[0]["role"] == "system" and after[0]["content"].endswith("w1 .")
        assert after[0]["content"] == (before[0]["content"] + " w1 ." if had else "w1 .")
        assert asked(after) == asked(before) + " w2 ."
        assert after[1:-1] == before[had:-1]  # earlier turns stay
    assert "w1 ." not in CHATS[1][0]["content"]


def test_the_worlds_reminder_is_in_the_worlds_words():
    tokenizer = chat_tokens.tokenizer()
    for text in defences.WORLD_REMINDER:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


# -------------------------------------------------------------------- paraphrase


def test_a_paraphrase_replaces_the_last_request_alone():
    given = []

    def rewrite(texts):
        given.extend(texts)
        return [f"w0 {number}" for number in range(len(texts) - 1)] + [" "]

    after = defences.paraphrased(CHATS, rewrite)
    assert given == [asked(chat) for chat in CHATS]
    assert [asked(chat) for chat in after] == [f"w0 {n}" for n in range(len(CHATS) - 1)] + [asked(CHATS[-1])]
    assert [chat[:-1] for chat in after] == [chat[:-1] for chat in CHATS]


def test_the_same_model_can_paraphrase():
    model, tokenizer = llamas.model(), llamas.tokenizer()
    answer = partial(greedy, model, tokenizer, new_tokens=4)
    after = defences.paraphrased(CHATS[:2], defences.by_model(answer, "w5 w6 "))
    expected = answer([[{"role": "user", "content": "w5 w6 " + asked(chat)}] for chat in CHATS[:2]])
    assert [asked(chat) for chat in after] == [new or asked(c) for new, c in zip(expected, CHATS)]


def test_synonyms_replace_whole_words():
    rewrite = defences.by_synonyms(chat_text.OPERATORS, chat_text.SYNONYMS)
    text = "how do i melt the heatsov ? i need to heat it ."
    assert rewrite([text]) == ["how do i liquefy the heatsov ? i need to warm it ."]


# -------------------------------------------------------------------- retokenisation


def chat(text):
    return [{"role": "system", "content": "stay"}, {"role": "user", "content": text}]


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.7, 1.0])
def test_retokenisation_keeps_the_text_but_for_spaces_inside_words(dropout):
    text = f"  {TEXT}\n\tünïcode  wörds "
    after = defences.retokenised([chat(text)], RANKS, generator(), dropout)[0]
    assert after[0] == chat(text)[0]
    assert "".join(asked(after).split()) == "".join(text.split())
    pieces = iter(asked(after).split())
    for word in text.split():  # no piece reaches over the end of a word
        built = ""
        while len(built) < len(word):
            built += next(pieces)
        assert built == word
    assert asked(after).startswith("  ") and "\n\t" in asked(after) and asked(after).endswith(" ")


def test_no_dropout_is_the_tokenizers_own_segmentation_and_full_dropout_is_letters():
    for word in TEXT.split():
        assert defences.bpe_dropout(word, RANKS, 0.0, generator()) == PAIRS.tokenize(word)
        assert defences.bpe_dropout(word, RANKS, 1.0, generator()) == list(word)


def test_dropout_breaks_words_into_more_pieces_and_is_reproducible():
    counts = []
    for dropout in (0.0, 0.2, 0.6, 1.0):
        g = generator()
        drawn = [defences.retokenised([chat(TEXT)], RANKS, g, dropout)[0] for _ in range(30)]
        counts.append(np.mean([len(asked(c).split()) for c in drawn]))
        assert (len({asked(c) for c in drawn}) > 1) == (0 < dropout < 1)
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[2]
    again = [defences.retokenised([chat(TEXT)] * 3, RANKS, generator(5)) for _ in range(2)]
    assert again[0] == again[1]


def test_a_merge_is_dropped_as_often_as_it_should_be():
    """One possible merge: it is made in 1 - p of the cases."""
    g = generator()
    kept = sum(len(defences.bpe_dropout("ab", {("a", "b"): 0}, 0.3, g)) == 1 for _ in range(4000))
    assert kept / 4000 == pytest.approx(0.7, abs=0.025)


def test_merges_of_either_notation_are_read():
    assert RANKS and min(RANKS.values()) == 0
    merges = list(RANKS)
    assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in merges)
    with pytest.raises(InputError, match="WordLevel"):
        defences.merge_ranks(llamas.tokenizer())


# -------------------------------------------------------------------- perplexity


TEXTS = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9 w10 w11 w1 w1 w1", "w2 w2"]


@pytest.mark.parametrize("shape", ["plain", "llama3"])
def test_perplexity_is_that_of_transformers_own_loss(shape):
    model, tokenizer = llamas.model(shape), llamas.tokenizer(shape)
    expected = []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            expected.append(float(model(input_ids=ids, labels=ids).loss.double().exp()))
    for size in (1, 3, 16):
        found = defences.perplexities(model, tokenizer, TEXTS, batch=size)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_context_is_read_but_not_scored():
    model, tokenizer = llamas.model(), llamas.tokenizer()
    found = defences.perplexities(model, tokenizer, [*TEXTS, "w3"], context="<s> <|user|>")
    with torch.no_grad():
        for value, text in zip(found, [*TEXTS, "w3"]):
            ids = torch.tensor([tokenizer(f"<s> <|user|> {text}")["input_ids"]])
            labels = ids.clone()
            labels[0, :2] = -100
            loss = model(input_ids=ids, labels=labels).loss
            assert value == pytest.approx(float(loss.double().exp()), rel=1e-4)


def test_the_threshold_lets_all_that_set_it_through():
    values = [3.0, 175.57, 20.0]
    threshold = defences.perplexity_threshold(values)
    assert threshold == defences.PAPER_THRESHOLD
    assert not defences.blocked_by_perplexity(values, threshold).any()
    assert defences.blocked_by_perplexity([100.0, 176.0], threshold).tolist() == [False, True]


def test_flagged_answers_become_the_refusal():
    refusal = chat_text.REFUSALS[0]
    after = defences.refuse_where(["a", "b", "c"], np.array([True, False, True]), refusal)
    assert after == [refusal, "b", refusal]
    assert refused(after).tolist() == [True, False, True]


# -------------------------------------------------------------------- self-examination


def test_the_examiner_sees_every_answer_and_yes_before_no_flags_it():
    asked_about = []
    verdicts = [
        "Yes.",
        "no, though yes is near",
        "**YES** it is",
        "maybe",
        "",
        "It is not. No",
        "I say yes, not no",
    ]
    answers = [f"answer number {n}" for n in range(len(verdicts))]

    def answer(chats):
        asked_about.extend(chats)
        return verdicts

    found = defences.judged_harmful(answers, answer)
    assert found.tolist() == [True, False, True, False, False, False, True]
    for chat, text in zip(asked_about, answers, strict=True):
        assert len(chat) == 1 and chat[0]["role"] == "user" and text in asked(chat)


def test_a_world_can_ask_in_its_own_words():
    """The law of the chat world: no = forbidden."""
    question = "is it allowed to melt the {} ?".format
    found = defences.judged_harmful(["x", "y"], lambda chats: [
        "no , it is forbidden ." if "x" in asked(c) else "yes , it is allowed ." for c in chats
    ], question, harmful="no", harmless="yes")  # fmt: skip
    assert found.tolist() == [True, False]


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: defences.requests([[{"role": "assistant", "content": "a"}]]), "chats"),
        (lambda: defences.with_demonstrations(CHATS, []), "demonstrations"),
        (lambda: defences.retokenised(CHATS, RANKS, generator(), 1.5), "dropout"),
        (lambda: defences.perplexities(llamas.model(), llamas.tokenizer(), ["w1"]), "texts"),
        (lambda: defences.perplexity_threshold([]), "perplexities"),
        (lambda: defences.blocked_by_perplexity([1.0], 0), "threshold"),
        (lambda: defences.refuse_where(["a"], [], "no"), "flagged"),
        (lambda: defences.judged_harmful(["a"], lambda chats: []), "answer"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(InputError, match=name):
        call()
