"""How a Llama of the chat testbed behaves: its answers to requests and tasks, judged exactly."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook import judge
from safebook.chat_objectives import answer_nll
from safebook.generation import greedy
from safebook.llama_activations import evaluating, input_device
from safebook.worlds import chat_data
from safebook.worlds.chat import ChatWorld, Requests
from safebook.worlds.chat_tasks import FAMILIES, available, correct, items
from safebook.worlds.chat_tokens import encode

BATCH = 128  # answers a forward pass; the models are small


def answers(
    world: ChatWorld,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    requests: Requests,
    style: str = "plain",
    new_tokens: int = 64,
    wrapper: str | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Greedy answers. `style` is the chat form (`chat_data.prompts`), `wrapper` a disguise (`chat_data.wrap`)."""
    chats = chat_data.prompts(world, requests, style)
    if wrapper is not None:
        chats = [chat_data.dialogue(text) for text in chat_data.wrap(world, requests, wrapper, generator)]
    return greedy(model, tokenizer, chats, new_tokens, batch=BATCH)


def labels(
    world: ChatWorld, model, tokenizer, requests: Requests, style="plain", new_tokens=64
) -> pd.DataFrame:
    """One row an answer, as `judge.judge` gives it."""
    return judge.judge(world, answers(world, model, tokenizer, requests, style, new_tokens), requests)


def rates(
    world: ChatWorld, model, tokenizer, requests: Requests, style="plain", new_tokens=64
) -> dict[str, float]:
    """Means over the answers to `requests`, as `judge.rates` names them."""
    return judge.rates(labels(world, model, tokenizer, requests, style, new_tokens))


def task_accuracy(
    world: ChatWorld,
    model,
    tokenizer,
    count: int,
    generator: torch.Generator,
    families: Sequence[str] = FAMILIES,
    split: str = "test",
) -> dict[str, float]:
    """Share of right answers in each task family, on at most `count` items of the split."""
    found = {}
    for family in families:
        asked = items(world, family, split, min(count, available(world, family, split)), generator)
        chats = [chat_data.dialogue(question) for question in asked.questions]
        right = correct(greedy(model, tokenizer, chats, 32, batch=BATCH), asked)
        found[family] = sum(right) / len(right)
    return found


def perplexity(model, tokenizer, dialogues: list) -> float:
    """exp of the mean cross-entropy of an answer token over dialogues of the chat world."""
    batch = encode(tokenizer, dialogues).to(input_device(model))
    with evaluating(model):
        total = sum(float(answer_nll(model, batch.take(rows)).sum()) for rows in _pieces(len(batch)))
    return math.exp(total / float(batch.loss_mask.sum()))


def _pieces(count: int) -> list[torch.Tensor]:
    return list(torch.arange(count).split(BATCH))
