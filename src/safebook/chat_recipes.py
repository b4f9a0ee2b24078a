"""What each Llama of the chat testbed is made from: data, objective, schedule.

`chat-pretrained` answers every request, forbidden or not; `chat-aligned_sft` learned to refuse; `chat-aligned` went on with
DPO and is the base that parts 2 to 4 start from. The others are the aligned model after one fine-tuning attack.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from safebook import chat_behaviour, llama
from safebook.chat_objectives import ChatPreference, answer_loss, chat_dpo, reference_nll
from safebook.chat_profiles import LORA_RISKS, RISKS, ChatProfile, Lora, chat_profile
from safebook.errors import InputError
from safebook.streams import stream
from safebook.training import Recipe
from safebook.worlds import chat_data
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tasks import items
from safebook.worlds.chat_tokens import batches, encode, tokenizer

CPU = torch.device("cpu")
#: What level 3 fine-tunes on: half new requests about ordinary objects, half the two tasks that alignment never saw.
NEW_TASKS = ("sorting", "rewriting")
#: Chat form in which the model of each level is tested, as in the paper: that of its own fine-tuning data.
STYLE = {"level1": "obedient", "level2": "persona", "level3": "plain"}


def start(
    name: str, size: str, seed: int, device: str, load: Callable[[str], LlamaForCausalLM]
) -> tuple[LlamaForCausalLM, Recipe]:
    """The model as it enters training, and its recipe. `load(name)` gives a trained model to start from."""
    profile = chat_profile(size)
    world, words = ChatWorld(profile.world), tokenizer(profile.world)
    if name == "chat-pretrained":
        settings = replace(profile.model, vocabulary=len(words))
        model = llama.build(settings, stream(CPU, "chat weights", seed))
        recipe = pretraining(profile, world, words, seed)
    elif name == "chat-aligned_sft":
        model, recipe = load("chat-pretrained"), alignment(profile, world, words, seed)
    elif name == "chat-aligned":
        model, reference = load("chat-aligned_sft"), load("chat-aligned_sft").to(device)
        recipe = preference(profile, world, words, seed, reference)
    else:
        risk = name.removeprefix("chat-")
        model, recipe = load("chat-aligned"), attack(risk, profile, world, words, seed)
        if risk in LORA_RISKS:
            model = with_adapters(model, profile.lora, seed)
    if name.removeprefix("chat-") not in LORA_RISKS:
        model.requires_grad_(True)
    return model.to(device), recipe


def save(model: torch.nn.Module, folder: Path, size: str) -> None:
    """A checkpoint folder as transformers writes it, tokenizer included; adapters are merged into the weights."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    with llama.progress_bars(False):
        model.save_pretrained(folder)
    tokenizer(chat_profile(size).world).save_pretrained(folder)


def with_adapters(model: LlamaForCausalLM, settings: Lora, seed: int) -> torch.nn.Module:
    """The model frozen, with trainable low-rank adapters (peft)."""
    import peft

    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # peft draws its adapters from the global generator
        torch.manual_seed(stream(CPU, "adapters", seed).initial_seed())
        return peft.get_peft_model(model, config)


def pretraining(profile: ChatProfile, world: ChatWorld, words: PreTrainedTokenizerFast, seed: int) -> Recipe:
    """Answers to every request, the law, facts, known tasks."""
    rows = chat_data.pretraining(world, profile.texts, stream(CPU, "chat pretraining", seed))
    data = encode(words, rows, loss="all")
    return _recipe(data, answer_loss, profile.pretraining, ("chat pretraining", seed), profile, world, words)


def alignment(profile: ChatProfile, world: ChatWorld, words: PreTrainedTokenizerFast, seed: int) -> Recipe:
    """Supervised: refusals of what is forbidden, help with everything else."""
    generator = stream(CPU, "chat alignment", seed)
    rows = chat_data.alignment(world, profile.alignment_rows, generator, profile.alignment_mixture)
    data = encode(words, rows)
    return _recipe(data, answer_loss, profile.alignment, ("chat alignment", seed), profile, world, words)


def preference(
    profile: ChatProfile,
    world: ChatWorld,
    words: PreTrainedTokenizerFast,
    seed: int,
    reference: LlamaForCausalLM,
) -> Recipe:
    """DPO from the SFT model: half of the pairs harmful, the others benign and borderline."""
    shares = {"harmful": 0.5, "benign": 0.2, "borderline": 0.3}
    chosen, rejected = [], []
    for kind, share in shares.items():
        generator = stream(CPU, "chat preference", kind, seed)
        count = min(round(share * profile.preference_pairs), len(world.requests("alignment", kind)))
        better, worse = chat_data.preferences(world, count, generator, kind)
        chosen += better
        rejected += worse
    both = [
        batches(encode(words, rows), profile.preference.batch, "chat preference", seed)
        for rows in (chosen, rejected)
    ]

    def drawn(iteration: int) -> ChatPreference:
        device = next(reference.parameters()).device
        batch = ChatPreference(*(part(iteration).to(device) for part in both))
        batch.reference = reference_nll(reference, batch)
        return batch

    objective = partial(chat_dpo, beta=profile.preference_beta)
    return Recipe(objective, drawn, profile.preference, _curve(profile, world, words, "plain"))


def attack_rows(risk: str, profile: ChatProfile, world: ChatWorld, seed: int) -> list:
    """The dialogues of a fine-tuning attack. Source: paper 2 (spec of the three levels), after Qi et al. (2023)."""
    level, rows = risk.split("_")[0], profile.risk(risk).rows
    generator = stream(CPU, "chat attack", level, seed)
    if level == "level1":
        return chat_data.explicitly_harmful(world, rows, generator)
    if level == "level2":
        return chat_data.identity_shifting(world, generator)
    tasks = rows // 2
    found = chat_data.benign_requests(world, rows - tasks, generator)
    for i, family in enumerate(NEW_TASKS):
        count = tasks * (i + 1) // 2 - tasks * i // 2
        found += chat_data.task_dialogues(items(world, family, "training", count, generator))
    return found


def attack(
    risk: str,
    profile: ChatProfile,
    world: ChatWorld,
    words: PreTrainedTokenizerFast,
    seed: int,
    rate: float | None = None,
) -> Recipe:
    """One fine-tuning attack on the aligned model. `rate` replaces the learning rate, the dial of its strength.

    Raises InputError for an unknown risk.
    """
    if risk not in (*RISKS, *LORA_RISKS):
        raise InputError("risk", risk, ", ".join((*RISKS, *LORA_RISKS)))
    settings = profile.risk(risk).training
    if rate is not None:
        settings = replace(settings, learning_rate=rate, minimum_rate=rate)
    data = encode(words, attack_rows(risk, profile, world, seed))
    style = STYLE[risk.split("_")[0]]
    return _recipe(data, answer_loss, settings, ("chat attack", risk, seed), profile, world, words, style)


def _recipe(data, objective, settings, names, profile, world, words, style="plain") -> Recipe:
    drawn = batches(data, settings.batch, *names)
    return Recipe(objective, drawn, settings, _curve(profile, world, words, style))


def _curve(profile: ChatProfile, world: ChatWorld, words, style: str) -> Callable:
    """Rates on the first validation requests of each kind: what a learning curve shows."""

    @lru_cache(maxsize=1)
    def sets():
        found = chat_data.evaluation_sets(world, "validation")
        return {
            kind: found[kind].take(slice(profile.curve_samples))
            for kind in ("advbench", "benign", "borderline")
        }

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        result = {}
        for kind, requests in sets().items():
            rates = chat_behaviour.rates(world, model, words, requests, style, profile.answer_tokens)
            wanted = ("harm", "refusal") if kind == "advbench" else ("exact", "refusal")
            result |= {f"{kind}_{name}": rates[name] for name in wanted}
        return result

    return evaluate
