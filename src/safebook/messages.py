"""From chat messages to token ids: the template, where the answer starts, batches padded on the left.

A chat is a list of messages `{"role": "system" | "user" | "assistant", "content": text}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safebook.errors import InputError

ROLES = ("system", "user", "assistant")
#: Templates of Llama 3.1 and later write a date into the prompt, some of them today's. This is the one of 3.1.
DATE = "26 Jul 2024"


@dataclass
class Padded:
    """Sequences of one batch, padded on the left, so that the last column is everyone's last token."""

    tokens: Tensor  # (batch, time) ids
    mask: Tensor  # (batch, time) 1 = token, 0 = padding
    positions: Tensor  # (batch, time) 0, 1, ... from the first token on; 0 in the padding


@dataclass(frozen=True)
class TokenizedChat:
    """A chat with its answer, in tokens."""

    tokens: list[int]
    start: int  # index of the answer's first token
    stop: int  # one past the answer's last token; what follows ends the turn


def _check(chats: Sequence[Sequence[dict]], last: str) -> None:
    for number, chat in enumerate(chats):
        where = f"chat {number}"
        if isinstance(chat, (str, dict)) or not chat:
            raise InputError("chats", where, "a list of messages")
        for message in chat:
            fine = isinstance(message, dict) and message.get("role") in ROLES
            if not fine or not isinstance(message.get("content"), str):
                raise InputError("chats", where, f"messages with a role of {ROLES} and a text as content")
        if chat[-1]["role"] != last:
            raise InputError("chats", where, f"a last message of role {last!r}, not {chat[-1]['role']!r}")


def _text(tokenizer: PreTrainedTokenizerBase, chat: Sequence[dict], prompt: bool) -> str:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            list(chat), tokenize=False, add_generation_prompt=prompt, date_string=DATE
        )
    except jinja2.TemplateError as error:  # some templates refuse a system message, or two turns of one role
        roles = [message["role"] for message in chat]
        raise InputError("chats", roles, f"what the model's chat template takes: {error}") from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written them


def prompts(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[dict]], prefills: Sequence[str] | None = None
) -> list[TokenizedChat]:
    """Chats that end with the user, up to the point where the assistant answers, and what it is made to begin with."""
    _check(chats, "user")
    prefills = [""] * len(chats) if prefills is None else prefills
    if isinstance(prefills, str) or len(prefills) != len(chats):
        raise InputError("prefills", len(prefills), f"one text for each of {len(chats)} chats")
    found = []
    for chat, prefill in zip(chats, prefills):
        before, said = _text(tokenizer, chat, True), prefill.strip()
        after = ""
        if said:  # the template knows what stands between the prompt and the answer
            whole = _answered(tokenizer, [*chat, {"role": "assistant", "content": said}], before)
            after = whole[len(before) : whole.index(said, len(before)) + len(said)]
        tokens, start = _split(tokenizer, before, after)
        found.append(TokenizedChat(tokens, start, len(tokens)))
    return found


def dialogues(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[dict]]) -> list[TokenizedChat]:
    """Chats that end with the assistant's answer, and where that answer is: for training and for reading activations."""
    _check(chats, "assistant")
    found, special = [], special_ids(tokenizer)
    for chat in chats:
        before = _text(tokenizer, chat[:-1], True)
        whole = _answered(tokenizer, chat, before)
        tokens, start = _split(tokenizer, before, whole[len(before) :])
        stop = next((i for i in range(start, len(tokens)) if tokens[i] in special), len(tokens))
        found.append(TokenizedChat(tokens, start, stop))
    return found


def _answered(tokenizer: PreTrainedTokenizerBase, chat: Sequence[dict], before: str) -> str:
    """The text of a chat with its answer, which must go on from `before` and hold the answer's words."""
    whole, answer = _text(tokenizer, chat, False), chat[-1]["content"].strip()
    if not whole.startswith(before) or answer not in whole[len(before) :]:
        raise InputError("tokenizer", tokenizer.name_or_path, "a template whose answer follows its prompt")
    return whole


def _split(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> tuple[list[int], int]:
    """Ids of the joined text, and how many of them are the first part's.

    The two are tokenised together, as the model saw them in training: a tokenizer may mark the start of a text.
    """
    first, tokens = _ids(tokenizer, before), _ids(tokenizer, before + after)
    if tokens[: len(first)] != first:
        shown = after[:20]
        raise InputError(
            "chats", shown, "an answer that starts a new token; this one merges with the prompt's last one"
        )
    return tokens, len(first)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the template's own tokens. An unknown word is text."""
    added = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return frozenset([*added, *tokenizer.all_special_ids]) - {tokenizer.unk_token_id}


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes after an answer; None if it writes none."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    dialogue = dialogues(tokenizer, [chat])[0]
    return dialogue.tokens[dialogue.stop] if dialogue.stop < len(dialogue.tokens) else None


def left_padded(sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> Padded:
    """One batch of token sequences of any lengths."""
    longest = max(map(len, sequences))
    tokens = torch.tensor([[pad] * (longest - len(s)) + list(s) for s in sequences], device=device)
    lengths = torch.tensor([len(s) for s in sequences], device=device)
    columns = torch.arange(longest, device=device) - (longest - lengths)[:, None]
    return Padded(tokens, (columns >= 0).long(), columns.clamp(min=0))


def by_length(sequences: Sequence[Sequence[int]], batch: int) -> list[list[int]]:
    """Indices of the sequences in batches of similar length, the longest first: memory runs out at once or never."""
    if not isinstance(batch, int) or batch < 1:
        raise InputError("batch", batch, "a positive integer")
    for number, sequence in enumerate(sequences):
        if not len(sequence):
            raise InputError("sequences", f"sequence {number}", "at least one token")
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    return [order[i : i + batch] for i in range(0, len(order), batch)]
