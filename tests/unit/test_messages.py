"""From messages to ids: the template's text, the answer's place, padding."""

import llamas
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safebook.errors import InputError
from safebook.messages import by_length, dialogues, end_of_turn, left_padded, prompts

TOKENIZER = llamas.tokenizer()
ASK = [{"role": "user", "content": "w1 w2"}]
TOLD = [*ASK, {"role": "assistant", "content": "yes w3 ."}]


def text(ids):
    return " ".join(TOKENIZER.convert_ids_to_tokens(ids))


def test_a_prompt_ends_where_the_assistant_begins():
    plain, filled = prompts(TOKENIZER, [ASK, ASK], ["", "yes w3"])
    assert text(plain.tokens) == "<s> <|user|> w1 w2 <|end|> <|assistant|>"
    assert plain.start == plain.stop == len(plain.tokens)
    assert text(filled.tokens) == text(plain.tokens) + " yes w3"
    assert filled.start == len(plain.tokens) and text(filled.tokens[filled.start :]) == "yes w3"


def test_a_dialogue_continues_its_prompt_and_knows_its_answer():
    dialogue, prompt = dialogues(TOKENIZER, [TOLD])[0], prompts(TOKENIZER, [ASK])[0]
    assert dialogue.tokens[: dialogue.start] == prompt.tokens
    assert text(dialogue.tokens[dialogue.start : dialogue.stop]) == "yes w3 ."
    assert text(dialogue.tokens[dialogue.stop :]) == "<|end|>"


#: Templates in the manner of Llama 2 (words mark the roles) and of Llama 3 (special tokens do, and blank lines).
TWO = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' </s>' }}{% endif %}{% endfor %}"
)
THREE = (
    "{{ '<s>' }}{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)


def subword_tokenizer(generation):
    """Byte pairs, learned from a line, with the text treatment of either generation of Llama."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    if generation == 2:  # spaces become a letter, and one is put in front of the text
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no piece holds two words
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    else:
        pieces = pre_tokenizers.Split(Regex(r" ?\p{L}+|\s*[\r\n]+|[^\s\p{L}]+|\s+"), "isolated")
        spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([pieces, spelt])
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<|head|>", "<|/head|>", "<|eot|>"]
    lines = ["[INST] polish the lamp [/INST] first rub the lamp. then wait.\n\n"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>" if generation == 2 else "<s>",
        unk_token="<unk>",
        chat_template=TWO if generation == 2 else THREE,
    )


@pytest.mark.parametrize(("generation", "end"), [(2, "</s>"), (3, "<|eot|>")])
def test_answers_are_found_in_the_templates_of_real_models(generation, end):
    tokenizer = subword_tokenizer(generation)
    answer = "first rub the lamp.\n\nthen wait."
    chat = [{"role": "user", "content": "polish the lamp"}, {"role": "assistant", "content": answer}]
    dialogue, prompt = dialogues(tokenizer, [chat])[0], prompts(tokenizer, [chat[:1]])[0]
    begun = prompts(tokenizer, [chat[:1]], ["first rub "])[0]
    assert dialogue.tokens[: dialogue.start] == prompt.tokens
    assert dialogue.tokens[: len(begun.tokens)] == begun.tokens and begun.start == dialogue.start
    assert len(begun.tokens) > len(prompt.tokens)
    assert tokenizer.decode(dialogue.tokens[dialogue.start : dialogue.stop]).strip() == answer
    assert tokenizer.convert_ids_to_tokens(dialogue.tokens[dialogue.stop :]) == [end]
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == end
    assert tokenizer.convert_ids_to_tokens(prompt.tokens).count("<s>") == 1


def test_earlier_turns_and_the_system_message_are_in_the_prompt():
    chat = [{"role": "system", "content": "w9"}, *TOLD, *ASK]
    assert text(prompts(TOKENIZER, [chat])[0].tokens) == (
        "<s> <|system|> w9 <|end|> <|user|> w1 w2 <|end|> <|assistant|> yes w3 . <|end|> <|user|> w1 w2 <|end|> "
        "<|assistant|>"
    )


def test_an_unknown_word_does_not_end_an_answer():
    chat = [*ASK, {"role": "assistant", "content": "yes unheard-of ."}]
    dialogue = dialogues(TOKENIZER, [chat])[0]
    assert text(dialogue.tokens[dialogue.start : dialogue.stop]) == "yes <unk> ."


def test_end_of_turn_is_read_from_the_template():
    assert TOKENIZER.convert_ids_to_tokens(end_of_turn(TOKENIZER)) == "<|end|>"
    without = llamas.tokenizer(template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert end_of_turn(without) is None


def test_a_template_that_writes_a_date_writes_the_same_every_day():
    dated = llamas.tokenizer(template="{% if date_string == '26 Jul 2024' %}w7{% endif %} " + llamas.TEMPLATE)
    assert text(prompts(dated, [ASK])[0].tokens).startswith("w7 <s>")


@pytest.mark.parametrize(
    ("chats", "part"),
    [
        ([[]], "a list of messages"),
        (["hello"], "a list of messages"),
        ([ASK, TOLD], "chat 1"),
        ([[{"role": "judge", "content": "x"}]], "a role of"),
        ([[{"role": "user", "content": 3}]], "a text as content"),
    ],
)
def test_bad_chats_are_named(chats, part):
    with pytest.raises(InputError, match=part) as caught:
        prompts(TOKENIZER, chats)
    assert caught.value.parameter == "chats"


def test_what_a_template_or_tokenizer_cannot_do():
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(InputError, match="no system"):
        prompts(llamas.tokenizer(template=picky), [[{"role": "system", "content": "w1"}, *ASK]])
    glued = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="merges"):
        prompts(llamas.tokenizer(template=glued), [ASK], ["w3"])
    backwards = "{% for m in messages | reverse %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(InputError, match="a template whose answer follows its prompt"):
        dialogues(llamas.tokenizer(template=backwards), [TOLD])
    with pytest.raises(InputError) as caught:
        prompts(TOKENIZER, [ASK, ASK], "yes")
    assert caught.value.parameter == "prefills"


def test_padding_goes_to_the_left_and_positions_start_at_the_first_token():
    padded = left_padded([[5, 6, 7], [8]], pad=9)
    assert padded.tokens.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert padded.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert padded.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_batches_hold_everything_once_and_waste_little():
    sequences = [[0] * n for n in (3, 9, 1, 9, 4, 2, 8)]
    batches = by_length(sequences, 3)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert [[len(sequences[i]) for i in batch] for batch in batches] == [[9, 9, 8], [4, 3, 2], [1]]
    with pytest.raises(InputError):
        by_length(sequences, 0)
    with pytest.raises(InputError, match="sequence 1"):
        by_length([[1], []], 2)
