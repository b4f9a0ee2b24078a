"""How a model behaves with a lock and without one: prompt sets, tasks and held-out dialogues, many prompts a pass.

Everything is answered greedily, with the lock on all tokens, as in paper 2's released code.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook import judge
from safebook.chat_behaviour import BATCH, perplexity
from safebook.errors import InputError
from safebook.generation import greedy
from safebook.lock_apply import locked
from safebook.locks import Lock
from safebook.subjects import Chat, PromptSet, Subject
from safebook.worlds import chat_data
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tasks import FAMILIES, Items, available, correct, items

TASK_TOKENS = 32  # most tokens of an answer to a task


def limited(asked: Subject, harmful: int, harmless: int) -> Subject:
    """The subject with at most so many prompts of each harmful and of each harmless set, evenly through it.

    Of a checkpoint's benign prompts only the second half is left: `lock_arms.contrast` reads locks from the first.

    Raises InputError when no benign prompt is left.
    """
    for name, count in (("harmful", harmful), ("harmless", harmless)):
        if not isinstance(count, int) or count < 1:
            raise InputError(name, count, ">= 1")
    sets = {}
    for name, found in asked.sets.items():
        first = 0 if asked.is_testbed or found.harmful else max(1, len(found) // 2)
        if first >= len(found):
            raise InputError(
                "benign_prompts", f"{len(found)} prompts", "two or more: locks are read from a half"
            )
        most = min(harmful if found.harmful else harmless, len(found) - first)
        sets[name] = _taken(found, np.linspace(first, len(found) - 1, most).round().astype(int))
    return replace(asked, sets=sets)


def _taken(found: PromptSet, rows: np.ndarray) -> PromptSet:
    parts = {name: [getattr(found, name)[i] for i in rows] for name in ("chats", "categories", "answers")}
    requests = None if found.requests is None else found.requests.take(rows)
    return replace(found, requests=requests, **parts)


def under(model: LlamaForCausalLM, lock: Lock | None, alpha: float | None = None) -> AbstractContextManager:
    """Within the block the model is locked; None = it is left as it is."""
    return nullcontext() if lock is None else locked(model, lock, alpha)


def answers(
    asked: Subject,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    style: str = "plain",
) -> dict[str, list[str]]:
    """Greedy answers to several prompt sets, in one go: some times faster than set after set, with the same texts.

    `style`: chat form on the testbed (`chat_recipes.STYLE`).
    """
    chats = [asked.chats(name, style) for name in names]
    batch = BATCH if asked.is_testbed else 15  # of the paper, for real checkpoints
    together = [chat for part in chats for chat in part]
    written = greedy(model, tokenizer, together, asked.new_tokens, batch=batch)
    ends = np.cumsum([len(part) for part in chats])
    return {name: written[end - len(part) : end] for name, part, end in zip(names, chats, ends)}


def task_items(world: ChatWorld, split: str, count: int, generator: torch.Generator) -> dict[str, Items]:
    """Family -> at most `count` questions of the split."""
    return {
        family: items(world, family, split, min(count, available(world, family, split)), generator)
        for family in FAMILIES
    }


def task_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Items]
) -> dict[str, float]:
    """Family -> share of right answers. As `chat_behaviour.task_accuracy`, but all families in one go."""
    chats = [chat_data.dialogue(question) for part in asked.values() for question in part.questions]
    written, found, first = greedy(model, tokenizer, chats, TASK_TOKENS, batch=BATCH), {}, 0
    for family, part in asked.items():
        right = correct(written[first : first + len(part)], part)
        found[family], first = sum(right) / len(right), first + len(part)
    return found


def dialogues(asked: Subject, name: str, style: str = "plain") -> list[Chat]:
    """The set's prompts with the right answers: held-out dialogues, whose perplexity can be taken."""
    said = asked.sets[name].answers
    return [
        [*chat, {"role": "assistant", "content": text}] for chat, text in zip(asked.chats(name, style), said)
    ]


def utility(
    asked: Subject,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    style: str = "plain",
    tasks: dict[str, Items] | None = None,
) -> dict[str, float]:
    """Safety and ability of a model as it is, or as it is within `under`. All are shares but the last two.

    Every model: `attack_success` (harmful requests), `benign_refusal`, `dist1` of the answers to benign requests (0 where
    no answer has a word). On the testbed also `harm`, `harmful_broken`, `exact`, `benign_broken`, `borderline_refusal`,
    `borderline_exact`, `perplexity` of held-out benign dialogues, and with `tasks` `accuracy_<family>` and their mean,
    `accuracy`. The sets are "hexphi" or, of a checkpoint, "harmful"; "benign"; "borderline".
    """
    forbidden = "hexphi" if asked.is_testbed else "harmful"
    names = [name for name in (forbidden, "benign", "borderline") if name in asked.sets]
    texts = answers(asked, model, tokenizer, names, style)
    harmful, benign = (asked.rates(name, texts[name]) for name in (forbidden, "benign"))
    found = {"attack_success": harmful["attack_success"], "benign_refusal": benign["refusal"]}
    if asked.is_testbed:
        borderline = asked.rates("borderline", texts["borderline"])
        found |= {"harm": harmful["harm"], "harmful_broken": harmful["broken"]}
        found |= {"exact": benign["exact"], "benign_broken": benign["broken"]}
        found |= {"borderline_refusal": borderline["refusal"], "borderline_exact": borderline["exact"]}
        if tasks:
            shares = task_accuracy(model, tokenizer, tasks)
            found |= {f"accuracy_{family}": share for family, share in shares.items()}
            found["accuracy"] = sum(shares.values()) / len(shares)
        found["perplexity"] = perplexity(model, tokenizer, dialogues(asked, "benign", style))
    return found | {"dist1": float(np.nan_to_num(judge.dist1(texts["benign"])))}
