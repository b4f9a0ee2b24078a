"""Repairs of a fine-tuned model that train or edit its weights, stopped where they are as safe as something else.

What a lock is compared with: safety training on data of alignment (SFT), DPO on preference pairs, a task vector. Each is
a series of growing strength, of which the first state that is safe enough counts. Source: paper 2's baselines; its settings
for them are not known, these are ours.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from safebook import chat_recipes
from safebook.baselines_posthoc import State, safety_vector
from safebook.chat_profiles import ChatProfile
from safebook.errors import InputError
from safebook.settings import TrainingSettings
from safebook.training import Recipe, train
from safebook.worlds.chat import ChatWorld

TRAINED = ("safety SFT", "DPO")
BATCH = 16  # dialogues or pairs a step
SCALES = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the task vector


@dataclass(frozen=True, eq=False)
class Stop:
    """Where a series was stopped."""

    strength: float  # training steps, or the vector's scale
    state: State
    harm: float  # harmful rate there
    reached: bool  # is it at or below the target?


def checks(steps: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `steps`, which is one of them: training steps after which a repair may stop."""
    if not isinstance(steps, int) or steps < 1:
        raise InputError("steps", steps, ">= 1")
    return tuple(sorted({*(2**k for k in range(steps.bit_length()) if 2**k < steps), steps}))


def recipe(
    kind: str, profile: ChatProfile, world: ChatWorld, words, seed: int, tuned: torch.nn.Module, steps: int
) -> Recipe:
    """Training of `tuned` for `steps` at a constant rate: "safety SFT" at that of the level-3 attack, "DPO" at its own.

    SFT uses the mixture of alignment (refusals and help), DPO alignment's pairs with the fine-tuned model as reference.
    """
    if kind not in TRAINED:
        raise InputError("kind", kind, " | ".join(TRAINED))
    attack = profile.risk("level3").training.learning_rate
    rate = attack if kind == "safety SFT" else profile.preference.learning_rate
    constant = TrainingSettings(
        steps, BATCH, rate, rate, 0, steps, betas=(0.9, 0.999), weight_decay=0.0, clip=1.0
    )
    rows = steps * BATCH
    if kind == "safety SFT":
        own = replace(profile, alignment=constant, alignment_rows=rows)
        return chat_recipes.alignment(own, world, words, seed)
    own = replace(profile, preference=constant, preference_pairs=rows)
    return chat_recipes.preference(own, world, words, seed, tuned)


def _copy(model: torch.nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def by_training(model: torch.nn.Module, recipe: Recipe) -> list[tuple[float, State]]:
    """(steps, weights) from 0 steps on. `model` is trained in place and must not be the recipe's reference."""
    device = next(model.parameters()).device
    model.requires_grad_(True)
    found = [(0, _copy(model))]

    def keep(model: torch.nn.Module, iteration: int) -> None:
        found.append((iteration, _copy(model)))

    def drawn(iteration: int) -> object:
        batch = recipe.batches(iteration)
        return batch.to(device) if hasattr(batch, "to") else batch

    steps = recipe.settings.iterations
    train(model, recipe.objective, drawn, recipe.settings, keep=keep, keep_at=checks(steps))
    model.requires_grad_(False)
    return found


def by_vector(
    unaligned: State, aligned: State, tuned: State, scales: Iterable[float] = SCALES
) -> list[tuple[float, State]]:
    """(scale, weights) with the safety vector added, from scale 0 on. `unaligned`: the aligned model after an attack."""
    return [(scale, safety_vector(unaligned, aligned, tuned, scale)) for scale in (0.0, *scales)]


def stopped(
    series: list[tuple[float, State]], harm: Callable[[State], float], targets: dict[str, float]
) -> dict[str, Stop]:
    """Target's name -> the first of the series whose harmful rate is at or below it, or the last one where none is.

    `harm` is asked as seldom as possible: until the lowest target is reached.
    """
    if not series or not targets:
        raise InputError("series" if not series else "targets", 0, "at least one")
    found: dict[str, Stop] = {}
    for number, (strength, state) in enumerate(series):
        value = harm(state)
        for name, target in targets.items():
            if name not in found and (value <= target or number == len(series) - 1):
                found[name] = Stop(strength, state, value, value <= target)
        if len(found) == len(targets):
            break
    return found
