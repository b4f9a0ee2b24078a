"""Greedy answers to chats, many at a time.

In float32 the answers do not depend on what else is in the batch. In bfloat16 two tokens whose logits differ by less than
the rounding may change places.
"""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook.errors import InputError
from safebook.llama import end_tokens
from safebook.llama_activations import evaluating, input_device
from safebook.messages import by_length, left_padded, prompts

SENTENCE_ENDS = (".", "!", "?", "\n")


def greedy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[dict]],
    new_tokens: int = 512,
    *,
    prefill: str | Sequence[str] = "",
    soft_limit: int | None = None,
    batch: int = 16,
) -> list[str]:
    """The assistant's answer to each chat, without special tokens.

    Parameters
    ----------
    chats : lists of messages that end with the user's.
    new_tokens : most tokens that the model writes. An answer also stops where prompt and answer fill the context.
    prefill : what the answer begins with, one text for all or one each; part of the text that is returned.
    soft_limit : after so many tokens an answer ends with its sentence; None = never.
    batch : answers a forward pass. Prompts of similar length run together.

    Paper 2 uses 512 new tokens and batches of 15.
    """
    prefills = [prefill] * len(chats) if isinstance(prefill, str) else prefill
    asked = prompts(tokenizer, chats, prefills)
    written = greedy_tokens(
        model, tokenizer, [p.tokens for p in asked], new_tokens, soft_limit=soft_limit, batch=batch
    )
    return [
        tokenizer.decode(p.tokens[p.start :] + new, skip_special_tokens=True).strip()
        for p, new in zip(asked, written)
    ]


def greedy_tokens(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    new_tokens: int = 512,
    *,
    soft_limit: int | None = None,
    batch: int = 16,
) -> list[list[int]]:
    """What the model writes after each prompt (token ids). The last id is an end token, unless a limit cut it off."""
    if not isinstance(new_tokens, int) or new_tokens < 1:
        raise InputError("new_tokens", new_tokens, "a positive integer")
    if soft_limit is not None and not 1 <= soft_limit <= new_tokens:
        raise InputError("soft_limit", soft_limit, f"1 .. new_tokens = {new_tokens}, or None")
    context = model.config.max_position_embeddings
    for number, sequence in enumerate(sequences):
        if len(sequence) >= context:
            raise InputError(
                "chats", f"chat {number}: {len(sequence)} tokens", f"less than the context of {context}"
            )
    ends = end_tokens(model, tokenizer)
    breaks = _SentenceEnds(tokenizer)
    answers: list[list[int]] = [[]] * len(sequences)
    with evaluating(model):
        for rows in by_length(sequences, batch):
            some = [sequences[i] for i in rows]
            limits = [min(new_tokens, context - len(s)) for s in some]
            for row, answer in zip(rows, _run(model, some, limits, ends, breaks, soft_limit)):
                answers[row] = answer
    return answers


class _SentenceEnds(dict):
    """token id -> does its text end a sentence? Filled as tokens come."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> bool:
        self[token] = self.tokenizer.decode([token]).rstrip(" ").endswith(SENTENCE_ENDS)
        return self[token]


def _run(model, sequences, limits: list[int], ends: frozenset[int], breaks, soft_limit: int | None):
    """Answers of one batch. A finished row goes on with padding, which nobody reads."""
    padded = left_padded(sequences, 0, input_device(model))
    tokens, mask, positions, cache = padded.tokens, padded.mask, padded.positions, None
    answers: list[list[int]] = [[] for _ in sequences]
    running = [True] * len(sequences)
    while any(running):
        out = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        chosen = out.logits[:, -1].argmax(-1).to(tokens.device)
        for row, token in enumerate(chosen.tolist()):
            if running[row]:
                own = answers[row]
                own.append(token)
                full = len(own) >= limits[row]
                whole = soft_limit is not None and len(own) >= soft_limit and breaks[token]
                running[row] = not (token in ends or full or whole)
        tokens = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(tokens)], 1)
        positions = positions[:, -1:] + 1
    return answers
