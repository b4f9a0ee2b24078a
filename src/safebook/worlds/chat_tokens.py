"""The chat world's tokenizer, and batches of tokens for the training loop.

One word is one token, so a text and its tokens say the same. A dialogue reads
`<bos> <system> ... <eot> <user> ... <eot> <assistant> ... <eot>`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from safebook.errors import InputError
from safebook.streams import stream
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_data import Dialogue
from safebook.worlds.chat_settings import ChatSettings

PAD, UNKNOWN, BOS, EOT = "<pad>", "<unk>", "<bos>", "<eot>"
ROLES = {"system": "<system>", "user": "<user>", "assistant": "<assistant>"}
SPECIAL = (PAD, UNKNOWN, BOS, EOT, *ROLES.values())
# `generation` marks the answers, so that transformers' own masks find them, too.
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('unknown role ' + message['role']) }}
{%- endif %}
{{- ' <' + message['role'] + '> ' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + ' ' + eos_token }}{%- endgeneration %}
{%- else %}
{{- message['content'] + ' ' + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' <assistant>' }}{%- endif %}
"""


def tokenizer(settings: ChatSettings | None = None) -> PreTrainedTokenizerFast:
    """One token a word. End of turn is the end of the sequence; padding is on the left, as generation needs it."""
    words = [*SPECIAL, *ChatWorld(settings).words]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES.values()),
        chat_template=TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def render(item: Dialogue | str) -> str:
    """The text that the chat template writes, without its engine, which takes most of the time for many texts."""
    if isinstance(item, str):
        return f"{BOS} {item} {EOT}"
    return " ".join([BOS, *(f"{ROLES[m['role']]} {m['content']} {EOT}" for m in item)])


@dataclass
class ChatBatch:
    """Tokens padded on the right. `tokens[:, :-1]` is the input, `tokens[:, 1:]` the target.

    Attention is causal, so that padding on the right needs no attention mask.
    """

    tokens: Tensor  # (n, length) int64
    loss_mask: Tensor  # (n, length - 1) bool: targets that count in the loss
    lengths: Tensor  # (n,) tokens that are no padding

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor) -> "ChatBatch":
        """The given rows, cut to the longest of them."""
        longest = int(self.lengths[rows].max())
        return ChatBatch(self.tokens[rows, :longest], self.loss_mask[rows, : longest - 1], self.lengths[rows])

    def to(self, device: torch.device | str) -> "ChatBatch":
        return ChatBatch(*(t.to(device) for t in (self.tokens, self.loss_mask, self.lengths)))


def answer_targets(tokens: np.ndarray, ids: dict[str, int]) -> np.ndarray:
    """(n, length - 1) bool: targets inside an answer of the assistant, its end-of-turn token included.

    `ids`: id of each special token.
    """
    marks = np.isin(tokens, [ids[t] for t in (*ROLES.values(), EOT, BOS)])
    # Index of the last mark up to each position; a target belongs to the turn that its predecessor is in.
    last = np.maximum.accumulate(np.where(marks, np.arange(tokens.shape[1]), 0), 1)
    turn = np.take_along_axis(tokens, last, 1)
    return (turn == ids[ROLES["assistant"]])[:, :-1]


def encode(tokens: PreTrainedTokenizerFast, items: list[Dialogue | str], loss: str = "answers") -> ChatBatch:
    """Token ids of texts, all at once.

    `loss`: "answers" counts the assistant's tokens and their end of turn, "all" every token but the first.
    Raises InputError for a word that the world does not have, or when no target is left.
    """
    if loss not in ("answers", "all"):
        raise InputError("loss", loss, ["answers", "all"])
    if not items:
        raise InputError("items", 0, "at least one text")
    rows = tokens([render(i) for i in items], add_special_tokens=False, padding=False)["input_ids"]
    lengths = np.array([len(row) for row in rows])
    ids = dict(zip(SPECIAL, tokens.convert_tokens_to_ids(list(SPECIAL))))
    table = np.full((len(rows), lengths.max()), ids[PAD], np.int64)
    real = np.arange(table.shape[1]) < lengths[:, None]
    table[real] = np.concatenate(rows)
    unknown = (table == ids[UNKNOWN]).any(1)
    if unknown.any():
        raise InputError("items", items[int(unknown.argmax())], "words of the chat world")
    mask = real[:, 1:] if loss == "all" else answer_targets(table, ids) & real[:, 1:]
    if not mask.any(1).all():
        raise InputError(
            "items", items[int((~mask.any(1)).argmax())], "texts with an answer of the assistant"
        )
    return ChatBatch(*(torch.from_numpy(a) for a in (table, mask.copy(), lengths)))


def batches(data: ChatBatch, size: int, *names: object) -> Callable[[int], ChatBatch]:
    """A stream of batches for `training.train`: a function of the iteration alone.

    Every row comes once an epoch, in an order that `names` (purpose, seed) and the epoch decide; a batch may reach into
    the next epoch. An epoch is `len(data) / size` iterations.
    """
    if not isinstance(size, int) or size < 1:
        raise InputError("size", size, ">= 1")

    @lru_cache(maxsize=4)
    def order(epoch: int) -> Tensor:
        generator = stream(torch.device("cpu"), *names, "epoch", epoch)
        return torch.randperm(len(data), generator=generator)

    def batch(iteration: int) -> ChatBatch:
        places = range(iteration * size, (iteration + 1) * size)
        rows = torch.stack([order(place // len(data))[place % len(data)] for place in places])
        return data.take(rows.to(data.tokens.device))

    return batch


def pair(chosen: ChatBatch, rejected: ChatBatch) -> ChatBatch:
    """Both batches on top of each other, padded alike: chosen rows first. For preference objectives in one pass."""
    longest = max(chosen.tokens.shape[1], rejected.tokens.shape[1])
    parts = [_widened(b, longest) for b in (chosen, rejected)]
    return ChatBatch(*(torch.cat([getattr(p, n) for p in parts]) for n in ("tokens", "loss_mask", "lengths")))


def _widened(batch: ChatBatch, length: int) -> ChatBatch:
    more = length - batch.tokens.shape[1]
    pad = torch.nn.functional.pad
    # The padding token has id 0, the first of `SPECIAL`.
    return replace(batch, tokens=pad(batch.tokens, (0, more)), loss_mask=pad(batch.loss_mask, (0, more)))
