"""Chats of any tokenizer as a `ChatBatch`: what the testbed's losses and gradients read, also on a real checkpoint."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from safebook.errors import InputError
from safebook.messages import TokenizedChat, dialogues, prompts
from safebook.worlds.chat_tokens import ChatBatch

Chat = list[dict[str, str]]


def batch_of(rows: Sequence[TokenizedChat]) -> ChatBatch:
    """Targets are the tokens start .. stop - 1 of each row. Padding on the right has id 0 and is never a target.

    Raises InputError where a row has no target.
    """
    if not len(rows) or any(not 0 < row.start < row.stop <= len(row.tokens) for row in rows):
        raise InputError("rows", len(rows), "at least one chat, each with a prompt and an answer")
    lengths = torch.tensor([len(row.tokens) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    mask = torch.zeros(len(rows), tokens.shape[1] - 1, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[number, row.start - 1 : row.stop - 1] = True
    return ChatBatch(tokens, mask, lengths)


def answered(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> ChatBatch:
    """Dialogues: the last answer's tokens count, and the one that ends the turn, as in `chat_tokens.encode`."""
    return batch_of(
        [
            TokenizedChat(row.tokens, row.start, min(row.stop + 1, len(row.tokens)))
            for row in dialogues(tokenizer, chats)
        ]
    )


def opened(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], openings: Sequence[str]) -> ChatBatch:
    """Prompts, each with the beginning of an answer, whose tokens alone count."""
    return batch_of(prompts(tokenizer, chats, openings))
