"""Part 4's comparison: one attack by fine-tuning, many defences, and the attackers who know them.

What is attacked is a model as it is deployed: its weights, a lock that may be on, a change that may be made to its prompts.
Fine-tuning attacks are those of `chat_recipes`, row by row and step by step, under the defence of whoever trains.
"""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook.baselines import mixed
from safebook.errors import InputError
from safebook.generation import greedy
from safebook.lock_tests import under
from safebook.locks import Lock
from safebook.messages import prompts
from safebook.prompt_attacks import Attacked, fits
from safebook.spf import SPF, SPFSettings
from safebook.subjects import Chat
from safebook.suffix_search import SearchSettings, Suffix, find_suffix
from safebook.training import Recipe, train

Change = Callable[[Sequence[Chat]], list[Chat]]
#: What is done while a model is fine-tuned: nothing, SPF, its control of equal rank, the anchor's loss added.
GUARDS = ("none", "spf", "random subspace", "mixing")
#: Defence -> its name here and on the figures; the order of all tables. The first two are no defences but the ends of the scale.
DEFENCES = (
    "aligned",
    "none",
    "lock, response",
    "lock, prompt",
    "random lock",
    "self-reminder",
    "spf",
    "random subspace",
    "mixing",
    "spf and lock",
    "spf and random lock",
    "repair",
)
#: Those that are meant to help: neither an end of the scale nor a control.
MEANT = ("lock, response", "lock, prompt", "self-reminder", "spf", "mixing", "spf and lock", "repair")
AGAIN, ON, ADAPTIVE = "tuned again", "tuned with the lock on", "adaptive suffix"
KNOWING = (ADAPTIVE, AGAIN, ON)  # attackers who know the defence


@dataclass(frozen=True)
class Deployed:
    """A model as it is asked."""

    model: LlamaForCausalLM
    lock: Lock | None = None  # on all tokens
    change: Change | None = None  # of every chat, before the model reads it


def answered(
    deployed: Deployed,
    words: PreTrainedTokenizerBase,
    cases: Mapping[Hashable, Attacked],
    new_tokens: int,
    batch: int,
) -> dict[Hashable, list[str]]:
    """Case -> greedy answers, all in one go; a case that does not fit the model's context is left out."""
    if deployed.change is not None:
        cases = {key: Attacked(deployed.change(case.chats), case.prefills) for key, case in cases.items()}
    room = deployed.model.config.max_position_embeddings
    cases = {key: case for key, case in cases.items() if fits(words, case, room)}
    chats = [chat for case in cases.values() for chat in case.chats]
    if not chats:
        return {}
    prefills = [text for case in cases.values() for text in case.prefills]
    with under(deployed.model, deployed.lock):
        texts = iter(greedy(deployed.model, words, chats, new_tokens, prefill=prefills, batch=batch))
    return {key: [next(texts) for _ in case.chats] for key, case in cases.items()}


def fine_tuned(
    start: LlamaForCausalLM,
    recipe: Recipe,
    guard: str = "none",
    *,
    steps: int | None = None,
    anchor: object = None,
    setting: float | int | None = None,
    lock: Lock | None = None,
    generator: torch.Generator | None = None,
) -> tuple[LlamaForCausalLM, list[dict]]:
    """A copy of `start` after an attack's training, and SPF's records, one a step; [] for guards without any.

    Parameters
    ----------
    steps : instead of the recipe's own number. The attacks have a constant rate, so that fewer steps are their beginning.
    anchor, setting : of the guards but "none": one encoded safety row; SPF's rank (`SPFSettings`), or mixing's weight.
    lock : is on in every pass of the training, and so the attacker fits the other weights to it.
    generator : on the CPU, for the directions of "random subspace".
    """
    if guard not in GUARDS:
        raise InputError("guard", guard, " | ".join(GUARDS))
    if guard != "none" and (anchor is None or setting is None):
        raise InputError("anchor", anchor, f"a safety row, and a setting, for {guard!r}")
    settings, objective, transform = recipe.settings, recipe.objective, None
    if steps is not None:
        settings = replace(settings, iterations=steps, decay_until=steps)
    if guard == "mixing":
        objective = mixed(recipe.objective, anchor, setting)
    elif guard != "none":
        subspace = "safety" if guard == "spf" else "random"
        transform = SPF(
            recipe.objective, anchor, SPFSettings(rank=setting, subspace=subspace), generator=generator
        )
    model = copy.deepcopy(start).requires_grad_(True)
    with under(model, lock):
        train(model, objective, recipe.batches, settings, transform=transform)
    return model.eval().requires_grad_(False), getattr(transform, "records", [])


def suffix_against(
    deployed: Deployed,
    words: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    opening: str,
    first: str,
    settings: SearchSettings,
    generator: torch.Generator,
) -> Suffix:
    """The suffix that a search finds on the model as it is deployed: with its lock, and behind its change of the prompts.

    The search puts the suffix at the end of what the model reads. A change that writes behind the request stands before it
    there, and after it when the suffix is used.
    """
    asked = list(chats) if deployed.change is None else deployed.change(chats)
    with under(deployed.model, deployed.lock):
        return find_suffix(deployed.model, words, asked, [opening] * len(asked), first, settings, generator)


def added_tokens(words: PreTrainedTokenizerBase, chats: Sequence[Chat], change: Change) -> float:
    """Tokens that a change adds to a prompt, mean over chats."""
    before, after = (prompts(words, part) for part in (chats, change(chats)))
    return sum(len(b.tokens) - len(a.tokens) for a, b in zip(before, after)) / len(chats)


# -------------------------------------------------------------------- numbers behind the claims


def best_of(harm: Mapping[str, float], names: Sequence[str]) -> float:
    """The lowest harmful rate among these defences."""
    return min(harm[name] for name in names)


def gain_of_both(harm: Mapping[str, float], first: str, second: str, both: str) -> float:
    """By how much two defences together leave less harm than the better of the two alone; below 0 = more."""
    return best_of(harm, (first, second)) - harm[both]
