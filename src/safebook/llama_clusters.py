"""Paper 1's check on Llamas: how near a prompt's activations are to those of safe and of unsafe prompts, layer by layer.

The activation is what a layer's MLP reads. As in the paper it is taken at every token that the model itself wrote and read
again ("answer"), and besides at the last token of the prompt ("decision"), where no answer can be seen yet. Means and
evaluation never share a prompt. Source: Figure 3, bottom, and the released Llama scripts of paper 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook import prompts_io
from safebook.errors import InputError
from safebook.generation import greedy_tokens
from safebook.geometry import cluster_distance
from safebook.llama_activations import mlp_inputs
from safebook.messages import by_length, prompts
from safebook.streams import stream
from safebook.subjects import TESTBED, PromptSet, Subject, subject
from safebook.worlds import chat_data
from safebook.worlds.chat import concatenate

POSITIONS = ("answer", "decision")
METRICS = ("euclidean", "cosine")
LEAST = 6  # prompts of a kind: two for the mean, four to evaluate
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ prompts


def cluster_prompts(
    model: str,
    size: str,
    samples: int,
    harmful_prompts: str = "",
    benign_prompts: str = "",
    jailbreak_prompts: str = "",
) -> Subject:
    """Sets "safe" and "unsafe"; on the testbed also "borderline" (allowed requests about restricted objects), on a
    checkpoint "jailbreak" if there is a file of them.

    Parameters
    ----------
    samples : most prompts of each set.
    harmful_prompts, benign_prompts : files, needed for a checkpoint and only there. `jailbreak_prompts` may be left out.

    Raises
    ------
    InputError, naming the parameter, before anything is computed.
    """
    files = {"harmful_prompts": harmful_prompts, "benign_prompts": benign_prompts}
    if model == TESTBED:
        if jailbreak_prompts:
            raise InputError("jailbreak_prompts", jailbreak_prompts, 'empty with model="testbed"')
        world = subject(model, size, **files, limit=samples)
        names = {"safe": "benign", "unsafe": "hexphi", "borderline": "borderline"}
        return replace(world, sets={kind: replace(world.sets[n], name=kind) for kind, n in names.items()})
    for name, value in files.items():
        if not value:
            allowed = "a CSV, JSON or JSON Lines file with a column `prompt`, since model is not the testbed"
            raise InputError(name, value, allowed)
    kinds = {"safe": ("benign_prompts", benign_prompts), "unsafe": ("harmful_prompts", harmful_prompts)}
    if jailbreak_prompts:
        kinds["jailbreak"] = ("jailbreak_prompts", jailbreak_prompts)
    sets = {kind: _read(kind, parameter, path, samples) for kind, (parameter, path) in kinds.items()}
    return Subject(model, size, None, sets, ([], []), 0)


def _read(kind: str, parameter: str, path: str, samples: int) -> PromptSet:
    rows = prompts_io.read_prompts(path, parameter)[:samples]
    if len(rows) < LEAST:
        raise InputError(parameter, f"{path}: {len(rows)} prompts", f"at least {LEAST}")
    chats = [row.chat() for row in rows]
    return PromptSet(kind, chats, kind != "safe", [r.category for r in rows], [r.answer for r in rows])


def parted(count: int, *names: object) -> tuple[list[int], list[int]]:
    """Indices of the random third of `count` prompts for the mean and of the rest to evaluate, by the names of a stream.

    A mean needs fewer prompts than the distribution of distances to it.
    """
    order = torch.randperm(count, generator=stream(CPU, "cluster parts", *names)).tolist()
    return order[: count // 3], order[count // 3 :]


def with_jailbreaks(asked: Subject, rows: Sequence[int], seed: int) -> Subject:
    """The testbed's subject with the set "jailbreak": these unsafe requests in every disguise, which is the category."""
    unsafe, world = asked.sets["unsafe"], asked.world
    plain = unsafe.requests.take(np.array(rows))
    chats, disguises = [], []
    for wrapper in chat_data.WRAPPERS:
        names = stream(CPU, "cluster jailbreaks", wrapper, seed)
        chats += [chat_data.dialogue(text) for text in chat_data.wrap(world, plain, wrapper, names)]
        disguises += [wrapper] * len(plain)
    requests = concatenate([plain] * len(chat_data.WRAPPERS))
    made = PromptSet("jailbreak", chats, True, disguises, [""] * len(chats), requests)
    return replace(asked, sets=asked.sets | {"jailbreak": made})


def succeeded(asked: Subject, name: str, texts: Sequence[str]) -> np.ndarray:
    """(n,) bool: on the testbed the whole forbidden procedure is said; on a checkpoint no phrase of refusal is."""
    labels = asked.judge(name, texts)
    return (labels["harmfulness"] == 5 if asked.is_testbed else ~labels["refused"]).to_numpy()


# ------------------------------------------------------------------------------------------------ what the model wrote


@dataclass(frozen=True)
class Answered:
    """A prompt with what the model wrote after it."""

    tokens: list[int]  # prompt and answer, up to the last token that is read again
    start: int  # index of the answer's first token
    text: str  # the answer

    def at(self, position: str, steps: int) -> range:
        """Indices of the tokens of a position: at most `steps` of the answer, or the one that decides the first."""
        if position == "decision":
            return range(self.start - 1, self.start)
        if position == "answer":
            return range(self.start, min(self.start + steps, len(self.tokens)))
        raise InputError("position", position, list(POSITIONS))


def answered(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[list[dict]],
    new_tokens: int,
    batch: int,
) -> list[Answered]:
    """Greedy answers, of at most `new_tokens` tokens. An answer's last token is written and never read, as in the paper;
    an empty answer keeps the token that ended it, so that each has one."""
    asked = [prompt.tokens for prompt in prompts(tokenizer, chats)]
    written = greedy_tokens(model, tokenizer, asked, new_tokens, batch=batch)
    return [
        Answered(p + (w[:-1] or w), len(p), tokenizer.decode(w, skip_special_tokens=True).strip())
        for p, w in zip(asked, written)
    ]


# ------------------------------------------------------------------------------------------------ distances


def _chunks(
    model: LlamaForCausalLM, rows: Sequence[Answered], position: str, steps: int, batch: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """A few prompts at a time: their indices, (layers, prompts, steps, width) activations, (prompts, steps) is it one?"""
    sequences, at = [r.tokens for r in rows], [r.at(position, steps) for r in rows]
    for chosen in by_length(sequences, batch):
        longest = max(len(at[i]) for i in chosen)
        index = torch.tensor([[*at[i], *[at[i][-1]] * (longest - len(at[i]))] for i in chosen])
        real = torch.arange(longest) < torch.tensor([[len(at[i])] for i in chosen])
        yield chosen, mlp_inputs(model, [sequences[i] for i in chosen], index, batch), real


def token_mean(
    model: LlamaForCausalLM, rows: Sequence[Answered], position: str, steps: int = 35, batch: int = 16
) -> Tensor:
    """(layers, width) float64: mean over all tokens of the position of all prompts, so a long answer weighs more."""
    total, count = 0.0, 0
    for _, points, real in _chunks(model, rows, position, steps, batch):
        total = total + torch.stack([layer[real].double().sum(0) for layer in points])
        count += int(real.sum())
    return total / count


def distances(
    model: LlamaForCausalLM,
    rows: Sequence[Answered],
    position: str,
    contrasts: dict[str, tuple[Tensor, Tensor]],
    steps: int = 35,
    batch: int = 16,
) -> dict[tuple[str, str], Tensor]:
    """(contrast, metric) -> (layers, prompts) tau: that of every token of the position, then the mean over them.

    `contrasts`: name -> (layers, width) means of safe and of unsafe prompts, as `token_mean` gives. The cosine metric has the
    sign of the Euclidean one: positive is the safe side. Source: Eq. 2 and the released Llama scripts of paper 1.
    """
    keys = [(name, metric) for name in contrasts for metric in METRICS]
    layers = len(next(iter(contrasts.values()))[0])
    found = {key: torch.empty(layers, len(rows), dtype=torch.float64) for key in keys}
    for chosen, points, real in _chunks(model, rows, position, steps, batch):
        weights = real.double() / real.sum(1, keepdim=True)
        for layer, here in enumerate(points):
            for name, metric in keys:
                safe, unsafe = (mean[layer] for mean in contrasts[name])
                tau = cluster_distance(here, safe, unsafe, metric)
                found[name, metric][layer, chosen] = (tau * weights).sum(1)
    return found
