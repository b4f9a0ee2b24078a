"""Part 3's arms: the aligned testbed model, fine-tuned on one data set, plainly or under a defence.

Every arm sees the same rows in the same order, from the same weights, for the same number of steps. What a defence needs
beyond that, one safety row (the anchor) or a few, comes from the alignment split. Source: paper 3, Sec. 5; the defences
are those of `baselines` and its neighbours, where each has its own source.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from transformers import LlamaForCausalLM

from safebook import baselines, baselines_posthoc, zoo
from safebook.baselines_gradients import pcgrad, surgery
from safebook.chat_objectives import answer_loss
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.settings import TrainingSettings
from safebook.spf import SPF, SPFSettings, projecting_updates
from safebook.streams import stream
from safebook.training import History, train
from safebook.worlds import chat_data
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_data import Dialogue
from safebook.worlds.chat_tasks import items
from safebook.worlds.chat_tokens import ChatBatch, batches, encode, tokenizer

CPU = torch.device("cpu")
GRADIENTS = ("spf", "random subspace", "utility subspace", "surgery", "pcgrad")
LOSSES = ("mixing", "lisa", "constrained", "backdoor", "asft")
AFTERWARDS = ("safelora", "antidote", "repair")
ARMS = ("sft", *GRADIENTS, *LOSSES, *AFTERWARDS)
TASKS = ("sums", "lookup", "sorting", "rewriting")
CHAT = "chat"
SETS = (
    f"harm, {', '.join(TASKS)}, or a task with a percentage of harmful rows or with chat: sums+10, sums+chat"
)
BETAS = {"adamw 0.5": (0.5, 0.999), "adamw 0.9": (0.9, 0.999)}
#: 20 of 4096 outputs, the paper's rank for an 8B model, as a share: one direction of the testbed's 128.
SHARE = 20 / 4096
SAFETY_ROWS = 11  # BackdoorAlign's; Lisa reads as many as it needs
SECRET_WORDS = 20  # BackdoorAlign has 150 random tokens, more than the testbed's texts


@dataclass(frozen=True)
class Fit:
    """How an arm is trained; the same for all arms that are compared."""

    steps: int
    batch: int
    rate: float
    optimiser: str = "adamw 0.5"  # the paper's first moment

    def settings(self) -> TrainingSettings:
        if self.optimiser not in BETAS:
            raise InputError("optimiser", self.optimiser, " | ".join(BETAS))
        return TrainingSettings(
            self.steps,
            self.batch,
            self.rate,
            self.rate,
            warmup=0,
            decay_until=self.steps,
            betas=BETAS[self.optimiser],
            weight_decay=0.0,
            clip=1.0,
        )


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model and how it came about."""

    model: LlamaForCausalLM
    history: History
    records: list[dict] = field(default_factory=list)  # one a step, of the SPF arms
    secret: str = ""  # BackdoorAlign: what its prompts begin with at inference


def is_set(data: str) -> bool:
    """Is this the name of a fine-tuning set: "harm", a task, "<task>+<percent>" or "<task>+chat"?"""
    task, plus, more = data.partition("+")
    mixed = more == CHAT or (more.isdecimal() and 0 < int(more) < 100)
    return data == "harm" or (task in TASKS and (mixed or not plus))


def rows(data: str, world: ChatWorld, seed: int, count: int) -> list[Dialogue]:
    """The rows of a fine-tuning set: "harm", a task, or a mixture.

    "<task>+<percent>" has that share of forbidden requests, answered; "<task>+chat" is half requests about ordinary objects,
    answered. All requests come from the fine-tuning split, rows of a task from its training items. Raises InputError for
    another name.
    """
    if not is_set(data):
        raise InputError("data", data, SETS)
    task, _, more = data.partition("+")
    generator = stream(CPU, "fine-tuning set", data, seed)
    if data == "harm":
        return chat_data.explicitly_harmful(world, count, generator)
    requests = chat_data.benign_requests if more == CHAT else chat_data.explicitly_harmful
    others = count // 2 if more == CHAT else round(count * int(more or 0) / 100)
    found = chat_data.task_dialogues(items(world, task, "training", count - others, generator))
    return found + (requests(world, others, generator) if others else [])


def safety_rows(world: ChatWorld, seed: int, count: int, category: int | None = None) -> list[Dialogue]:
    """`count` forbidden requests of the alignment split, each with a refusal; of one category if one is given."""
    pool = world.requests("alignment", "harmful")
    if category is not None:
        pool = pool.take(np.flatnonzero(world.category[pool.object] == category))
    if not len(pool):
        raise InputError("category", category, f"0 .. {world.settings.categories - 1}")
    generator = stream(CPU, "safety rows", category, seed)
    asked = pool.take(torch.randint(len(pool), (count,), generator=generator).numpy())
    refusals = chat_data.refuse(world, asked, generator)
    return [chat_data.dialogue(q, a) for q, a in zip(world.ask(asked), refusals)]


def fine_tune(
    arm: str,
    data: str,
    size: str,
    seed: int,
    fit: Fit,
    *,
    count: int,
    spf: SPFSettings | None = None,
    weight: float = 1.0,
    anchor: ChatBatch | None = None,
    evaluate: Callable | None = None,
    evaluate_at: tuple[int, ...] = (),
) -> Tuned:
    """The aligned model of this size and seed after `fit.steps` on `count` rows of `data`, under the defence `arm`.

    Parameters
    ----------
    spf : settings of the SPF arms; by default the paper's rank as a share of the outputs.
    weight : the defence's one strength: lambda of mixing and of AsFT, rho of Lisa; of ConstrainedSFT's beta of 0.1, of
        Antidote's share of 0.05 and of the repair's ten steps a multiple; the share of matrices that SafeLoRA replaces.
    anchor : one encoded safety row; by default `safety_rows` of the seed.

    Raises InputError for an unknown arm, data set or optimiser, before any training.
    """
    if arm not in ARMS:
        raise InputError("arm", arm, ", ".join(ARMS))
    settings = fit.settings()
    world, words = ChatWorld(chat_profile(size).world), tokenizer(chat_profile(size).world)
    taught = rows(data, world, seed, count)
    anchor = encode(words, safety_rows(world, seed, 1)) if anchor is None else anchor
    model, _ = zoo.load_llama("chat-aligned", size, seed, "cpu")
    model.requires_grad_(True)
    objective, transform, secret = answer_loss, None, ""

    if arm == "backdoor":
        secret = baselines.secret_prompt(words, stream(CPU, "secret", seed), SECRET_WORDS)
        taught = baselines.backdoor_align(taught, safety_rows(world, seed, SAFETY_ROWS), secret)
    task = batches(encode(words, taught), fit.batch, "fine-tuning", data, seed)
    if arm in ("spf", "random subspace", "utility subspace"):
        kind = "safety" if arm == "spf" else arm.split()[0]
        chosen = replace(spf or SPFSettings(rank=SHARE), subspace=kind)
        control = encode(words, rows(data, world, seed, count)[:1]) if kind == "utility" else None
        transform = SPF(answer_loss, anchor, chosen, stream(CPU, "spf directions", seed), control)
    elif arm in ("surgery", "pcgrad"):
        transform = {"surgery": surgery, "pcgrad": pcgrad}[arm](answer_loss, anchor)
    elif arm == "mixing":
        objective = baselines.mixed(answer_loss, anchor, weight)
    elif arm == "lisa":
        safe = encode(words, safety_rows(world, seed, 4 * fit.batch))
        period = max(
            2, fit.steps // 2
        )  # two rounds a run, a tenth of each on safety, as in its own 100 of 1,000
        part = max(1, period // 10)
        objective, task = baselines.lisa(
            answer_loss, task, batches(safe, fit.batch, "lisa", seed), part, period - part, rho=weight
        )
    elif arm == "constrained":
        reference, _ = zoo.load_llama("chat-aligned", size, seed, "cpu")
        task = baselines.with_reference(reference, task)
        objective = partial(baselines.constrained_sft, beta=0.1 * weight)
    elif arm == "asft":
        states = [
            zoo.load_llama(name, size, seed, "cpu")[0].state_dict()
            for name in ("chat-pretrained", "chat-aligned")
        ]
        objective = baselines.asft(answer_loss, *states, weight=weight)
    projects = isinstance(transform, SPF) and transform.settings.project == "update"
    with projecting_updates(transform, model) if projects else nullcontext():
        history = train(
            model, objective, task, settings, transform=transform, evaluate=evaluate, evaluate_at=evaluate_at
        )
    if arm in AFTERWARDS:
        treat(arm, model, size, seed, weight, anchor)
    return Tuned(model.eval().requires_grad_(False), history, getattr(transform, "records", []), secret)


def treat(
    arm: str,
    model: LlamaForCausalLM,
    size: str,
    seed: int,
    weight: float = 1.0,
    anchor: ChatBatch | None = None,
) -> None:
    """What a defence of `AFTERWARDS` does to the weights of a fine-tuned model, in place; arguments as of `fine_tune`.

    Raises InputError for an arm that is none of them.
    """
    if arm not in AFTERWARDS:
        raise InputError("arm", arm, ", ".join(AFTERWARDS))
    world, words = ChatWorld(chat_profile(size).world), tokenizer(chat_profile(size).world)
    anchor = encode(words, safety_rows(world, seed, 1)) if anchor is None else anchor
    if arm == "safelora":
        base, aligned = (
            zoo.load_llama(name, size, seed, "cpu")[0].state_dict()
            for name in ("chat-pretrained", "chat-aligned")
        )
        matrices = len(baselines_posthoc.alignment_maps(base, aligned))
        layers = max(1, min(matrices, round(weight * matrices)))
        new = baselines_posthoc.safe_lora(base, aligned, model.state_dict(), threshold=None, layers=layers)
    elif arm == "antidote":
        harmful = chat_data.explicitly_harmful(world, 100, stream(CPU, "antidote", seed))
        batch = encode(words, harmful)
        sequences = [ids[:n].tolist() for ids, n in zip(batch.tokens, batch.lengths.tolist())]
        new = baselines_posthoc.antidote(model, sequences, ratio=0.05 * weight)
    else:
        steps = max(1, round(10 * weight))
        once = replace(baselines_posthoc.ONE_SHOT, iterations=steps, decay_until=steps)
        new = baselines_posthoc.one_shot_repair(model, answer_loss, anchor, once)
    model.load_state_dict(new)
