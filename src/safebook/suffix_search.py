"""A suffix that makes a model comply: greedy coordinate gradient (GCG) on the tokens after the user's request.

One suffix for several requests. It is searched on the model as it runs: within `lock_apply.locked`, against the lock.
Source: Zou et al. (2023), in small, and greedy in earnest: a suffix is kept only if its loss is lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from safebook.errors import InputError
from safebook.llama_activations import decoder, input_device
from safebook.messages import prompts, special_ids

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class SearchSettings:
    """How far a search goes. Zou et al. use 500 steps, 512 candidates, the best 256 tokens and 20 places."""

    steps: int = 20
    candidates: int = 32  # suffixes tried a step, each with one token exchanged
    best: int = 64  # tokens of each place that candidates are drawn from: those with the steepest descent
    batch: int = 256  # sequences a forward pass

    def __post_init__(self):
        for name in ("steps", "candidates", "best", "batch"):
            value = getattr(self, name)
            least = 0 if name == "steps" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(name, value, f"an integer >= {least}")


@dataclass(frozen=True)
class Slot:
    """One request with room for a suffix: `before`, suffix, `after`, whose last `answer` tokens are the opening."""

    before: list[int]
    after: list[int]
    answer: int


@dataclass(frozen=True)
class Suffix:
    """What a search found."""

    text: str
    losses: tuple[float, ...]  # mean NLL of an opening's token, nats: at the start, then after each step


def with_suffix(chats: Sequence[Chat], suffix: str) -> list[Chat]:
    """The chats, the suffix at the end of the user's last message."""
    return [[*c[:-1], c[-1] | {"content": f"{c[-1]['content']} {suffix}"}] for c in chats]


def slots(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], openings: Sequence[str], suffix: str
) -> tuple[list[Slot], list[int]]:
    """Where the suffix stands in each prompt with its opening, and the suffix's tokens.

    Raises InputError where a suffix's tokens merge with what surrounds them.
    """
    if not len(chats):
        raise InputError("chats", 0, "at least one chat")
    without = prompts(tokenizer, chats, openings)
    found, tokens = [], None
    for bare, full in zip(without, prompts(tokenizer, with_suffix(chats, suffix), openings)):
        count = len(full.tokens) - len(bare.tokens)
        pairs = zip(bare.tokens, full.tokens)
        start = next((i for i, (a, b) in enumerate(pairs) if a != b), len(bare.tokens))
        own = full.tokens[start : start + count]
        whole = full.tokens[start + count :] == bare.tokens[start:]
        if not own or not whole or tokens not in (None, own):
            raise InputError("suffix", suffix, "a text whose tokens are the same after every request")
        tokens = own
        answer = full.stop - full.start
        if not answer:
            raise InputError("openings", openings, "a text for each chat")
        found.append(Slot(full.tokens[:start], full.tokens[start + count :], answer))
    return found, tokens


def _nll(model: nn.Module, embedded: Tensor, targets: Tensor) -> Tensor:
    """(rows,) mean cross-entropy of the targets (rows, time); -100 counts as none, padding is on the right."""
    states = decoder(model)(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    wanted = targets[:, 1:]
    counted = wanted != -100
    logits = model.get_output_embeddings()(states[counted]).float()
    each = F.cross_entropy(logits, wanted[counted], reduction="none")
    rows = counted.nonzero()[:, 0]
    summed = torch.zeros(len(wanted), device=each.device).index_add(0, rows, each)
    return summed / counted.sum(1)


def _rows(found: Sequence[Slot], suffixes: Tensor) -> tuple[Tensor, Tensor]:
    """(suffixes * slots, time) tokens and targets, on the CPU; every suffix in every slot, slots running faster."""
    length = suffixes.shape[1]
    time = max(len(s.before) + length + len(s.after) for s in found)
    tokens = torch.zeros(len(found), time, dtype=torch.long)
    targets = torch.full_like(tokens, -100)
    places = torch.empty(len(found), length, dtype=torch.long)
    for row, slot in enumerate(found):
        start, stop = len(slot.before), len(slot.before) + length + len(slot.after)
        tokens[row, :start], tokens[row, start + length : stop] = (
            torch.tensor(slot.before),
            torch.tensor(slot.after),
        )
        targets[row, stop - slot.answer : stop] = tokens[row, stop - slot.answer : stop]
        places[row] = torch.arange(start, start + length)
    count = len(suffixes)
    tokens, targets, places = (x.repeat(count, 1) for x in (tokens, targets, places))
    return tokens.scatter(1, places, suffixes.repeat_interleave(len(found), 0)), targets


def losses(model: nn.Module, found: Sequence[Slot], suffixes: Tensor, batch: int = 256) -> Tensor:
    """(n,) float32 on the CPU: mean over slots of the mean NLL of an opening's token, for suffixes (n, length)."""
    device, parts = input_device(model), []
    table = decoder(model).embed_tokens
    with torch.no_grad():
        for tokens, targets in zip(*(x.split(batch) for x in _rows(found, suffixes.cpu()))):
            parts.append(_nll(model, table(tokens.to(device)), targets.to(device)).cpu())
    return torch.cat(parts).view(len(suffixes), len(found)).mean(1)


def gradient(model: nn.Module, found: Sequence[Slot], suffix: Tensor) -> Tensor:
    """(length, vocabulary) derivative of the loss by the one-hot vectors of the suffix (length,), float32."""
    device, table = input_device(model), decoder(model).embed_tokens.weight.detach()
    choice = F.one_hot(suffix.to(device), len(table)).float().requires_grad_(True)
    tokens, targets = (x.to(device) for x in _rows(found, suffix.cpu()[None]))
    with torch.enable_grad():
        words = (choice @ table.float()).to(table.dtype)
        embedded = table[tokens].clone()
        for row, slot in enumerate(found):
            embedded[row, len(slot.before) : len(slot.before) + len(suffix)] = words
        loss = _nll(model, embedded, targets).mean()
        return torch.autograd.grad(loss, choice)[0]


def find_suffix(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    openings: Sequence[str],
    start: str,
    settings: SearchSettings,
    generator: torch.Generator,
) -> Suffix:
    """The suffix under which the openings become most likely, one for all chats.

    Parameters
    ----------
    chats : end with the user's request.
    openings : what a compliant answer to each begins with.
    start : the first suffix; its tokens say how many places there are.
    generator : on the CPU, draws candidates.

    A hook that shifts all tokens alike (`locked(..., tokens="all")`) may be active; the model's weights must be frozen or
    will be left without gradients. Candidates whose text is read as other tokens are not tried.
    """
    found, first = slots(tokenizer, chats, openings, start)
    tokens, text = torch.tensor(first), start
    least = float(losses(model, found, tokens[None])[0])
    course = [least]
    rows = len(decoder(model).embed_tokens.weight)
    allowed = torch.zeros(rows, dtype=torch.bool)
    allowed[[i for i in tokenizer.get_vocab().values() if i < rows]] = True
    banned = [*special_ids(tokenizer), *([] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id])]
    allowed[[i for i in banned if i < rows]] = False
    for _ in range(settings.steps):
        descent = -gradient(model, found, tokens).cpu()
        descent[:, ~allowed] = -torch.inf
        best = descent.topk(min(settings.best, int(allowed.sum())), 1).indices
        tried = _candidates(tokens, best, settings.candidates, generator)
        texts = [tokenizer.decode(row).strip() for row in tried.tolist()]
        kept = [i for i, said in enumerate(texts) if _reads(tokenizer, chats[0], openings[0], said, tried[i])]
        if kept:
            values = losses(model, found, tried[kept], settings.batch)
            lowest = int(values.argmin())
            if float(values[lowest]) < least:
                least, tokens, text = float(values[lowest]), tried[kept][lowest], texts[kept[lowest]]
        course.append(least)
    return Suffix(text, tuple(course))


def _candidates(tokens: Tensor, best: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, length): one place, drawn at random, takes one of its best tokens."""
    places = torch.randint(len(tokens), (count,), generator=generator)
    picks = torch.randint(best.shape[1], (count,), generator=generator)
    return tokens.repeat(count, 1).scatter(1, places[:, None], best[places, picks][:, None])


def _reads(tokenizer, chat: Chat, opening: str, suffix: str, tokens: Tensor) -> bool:
    """Is the suffix, as text, read as these tokens?"""
    try:
        return slots(tokenizer, [chat], [opening], suffix)[1] == tokens.tolist()
    except InputError:
        return False
