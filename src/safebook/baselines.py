"""Baseline defences at fine-tuning time: objectives and streams of batches for `training.train`.

Each is given the task's own objective and changes nothing else of the training run. Definitions are those of the papers
named; "own" settings are of their code, and what is not known of paper 3's use of them is said with each. Defences on the
gradients are in `baselines_gradients`, on finished weights in `baselines_posthoc`, around the prompt in `prompt_defences`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from safebook.baselines_posthoc import PROJECTIONS, alignment_maps
from safebook.chat_objectives import token_losses
from safebook.errors import InputError
from safebook.messages import special_ids
from safebook.training import Objective

Batches = Callable[[int], object]  # iteration -> batch
Chat = list[dict[str, str]]


def at_least(name: str, value: float, least: float) -> None:
    """Raises InputError unless the value is a finite number, at least `least`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < float("inf"):
        raise InputError(name, value, f"a finite number >= {least}")


# -------------------------------------------------------------------- safety as a term of the loss


def mixed(objective: Objective, anchor: object, weight: float = 1.0) -> Objective:
    """L_u + weight * L_s, L_s the same objective on one fixed safety batch: static re-weighting of the losses.

    Source: the loss mixing that paper 3 criticises; the replication of paper 3 used weight 1 and the one anchor of SPF.
    Rows of safety data among the task's (safety-tuned Llamas, Bianchi et al. 2024) need no function: join the dialogues.
    Unknown: the weights that paper 3 tried.
    """
    at_least("weight", weight, 0)
    return lambda model, batch: objective(model, batch) + weight * objective(model, anchor)


# -------------------------------------------------------------------- Lisa


@dataclass
class LisaBatch:
    """A batch of either state."""

    batch: object
    state: str  # "safety" or "task"
    iteration: int
    switch: bool  # is it the first of its state?


def lisa(
    objective: Objective,
    task: Batches,
    safety: Batches,
    safety_steps: int = 100,
    task_steps: int = 900,
    rho: float = 1.0,
    proximal_from: int = 0,
) -> tuple[Objective, Batches]:
    """(objective, batches) that alternate `safety_steps` on safety data and `task_steps` on the task, safety first.

    Each loss has + rho / 2 ||theta - theta_switch||^2 over the trainable weights, theta_switch being the weights at the last
    switch, that is where the other state ended. No batch of either stream is left out. Source: Lisa (Huang et al. 2024);
    the defaults are those of its code, with 10,000 safety rows, learning rate 1e-5, batch 5, 20 epochs and adapters.
    Its code leaves the proximal term out in the first tenth of the run: `proximal_from`, an iteration. Unknown: what paper 3
    or its sister ran it with.

    Raises RuntimeError if training goes on from a checkpoint between two switches: theta_switch is not in it.
    """
    for name, value in (("safety_steps", safety_steps), ("task_steps", task_steps)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(name, value, "a positive integer")
    at_least("rho", rho, 0)
    switched: dict[str, Tensor] = {}

    def batches(iteration: int) -> LisaBatch:
        cycle, place = divmod(iteration, safety_steps + task_steps)
        switch = place in (0, safety_steps)
        if place < safety_steps:
            return LisaBatch(safety(cycle * safety_steps + place), "safety", iteration, switch)
        return LisaBatch(task(cycle * task_steps + place - safety_steps), "task", iteration, switch)

    def proximal(model: nn.Module, batch: LisaBatch) -> Tensor:
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if batch.switch:
            switched.clear()
            switched.update({name: p.detach().clone() for name, p in weights.items()})
        elif not switched:
            raise RuntimeError(f"Lisa must begin at a switch, not at iteration {batch.iteration}")
        loss = objective(model, batch.batch)
        if batch.iteration < proximal_from:
            return loss
        return loss + rho / 2 * sum((p - switched[name]).square().sum() for name, p in weights.items())

    return proximal, batches


# -------------------------------------------------------------------- ConstrainedSFT


@dataclass
class ReferencedBatch:
    """A batch, and what the aligned model says of it."""

    batch: object
    reference: Tensor  # (masked targets,) cross-entropies of the frozen aligned model, nats


def with_reference(reference: nn.Module, batches: Batches, losses=token_losses) -> Batches:
    """The same stream, every batch with the reference model's token losses: what `constrained_sft` needs."""

    def referenced(iteration: int) -> ReferencedBatch:
        batch = batches(iteration)
        with torch.no_grad():
            return ReferencedBatch(batch, losses(reference, batch))

    return referenced


def token_betas(
    loss_mask: Tensor, beta: float = 0.1, first: float = 5.0, early: float = 20.0, early_tokens: int = 5
) -> Tensor:
    """(masked targets,) beta_t: `first` * beta for a row's first target, `early` * beta up to its fifth, then beta.

    Source: ConstrainedSFT; the defaults are those of its code. `loss_mask` is (batch, T).
    """
    at_least("beta", beta, 0)
    place = loss_mask.cumsum(1)[loss_mask]  # 1 for the first target of a row
    factors = torch.ones(place.shape, device=place.device)
    factors[place <= early_tokens] = early
    factors[place == 1] = first
    return beta * factors


def constrained_weights(losses: Tensor, reference: Tensor, betas: Tensor) -> Tensor:
    """w_t = max(1e-3, 2 (1 - sigmoid(beta_t (log pi - log pi_ref)))), without gradient; all (masked targets,).

    1 where the model is the reference; the further a token's probability has risen above it, the nearer to 0.
    """
    return (2 * torch.sigmoid(-betas * (reference - losses))).clamp(min=1e-3).detach()


def constrained_sft(
    model: nn.Module,
    batch: ReferencedBatch,
    beta: float = 0.1,
    first: float = 5.0,
    early: float = 20.0,
    early_tokens: int = 5,
    losses=token_losses,
) -> Tensor:
    """Mean over the answer tokens of w_t CE_t, see `constrained_weights`: the first tokens can hardly move.

    Source: ConstrainedSFT (Qi et al. 2025), with learning rate 2e-5, batch 64, beta1 0.5 and 10 warm-up steps. Batches come
    from `with_reference`. Unknown: mean or sum over an answer's tokens; the mean is that of our other objectives.
    """
    found = losses(model, batch.batch)
    betas = token_betas(batch.batch.loss_mask, beta, first, early, early_tokens)
    return (constrained_weights(found, batch.reference, betas) * found).mean()


# -------------------------------------------------------------------- BackdoorAlign


def secret_prompt(tokenizer: PreTrainedTokenizerBase, generator: torch.Generator, length: int = 150) -> str:
    """`length` random words, each a token of the tokenizer. Source: BackdoorAlign (Wang et al. 2024): 150 random tokens.

    `generator` is on the CPU. Special tokens are left out, and what is no visible ASCII: the prompt must stand in a message.
    """
    if not isinstance(length, int) or length < 1:
        raise InputError("length", length, "a positive integer")
    special = special_ids(tokenizer) | {tokenizer.unk_token_id}
    words = {tokenizer.decode([i]).strip() for i in range(len(tokenizer)) if i not in special}
    words = sorted(w for w in words if w and w.isascii() and w.isprintable() and " " not in w)
    return " ".join(words[i] for i in torch.randint(len(words), (length,), generator=generator).tolist())


def with_secret(chats: Sequence[Chat], secret: str) -> list[Chat]:
    """The secret prompt before the system message, or as one. For the safety rows, and for every chat at inference."""
    found = []
    for chat in chats:
        has_system = chat[0]["role"] == "system"
        system = f"{secret} {chat[0]['content']}" if has_system else secret
        found.append([{"role": "system", "content": system}, *chat[has_system:]])
    return found


def backdoor_align(rows: Sequence[Chat], safety: Sequence[Chat], secret: str) -> list[Chat]:
    """Fine-tuning data: the user's rows as they are, and the safety rows with the secret prompt.

    The refusals become the trigger's, so that fine-tuning on the user's rows does not undo them; the provider writes
    `with_secret` at inference. Source: BackdoorAlign (Wang et al. 2024): 11 safety rows for 100 harmful ones, learning
    rate 5e-5, batch 10, 5 epochs. Unknown: where in the prompt the secret stands; here it opens the system message.
    """
    if not secret.strip():
        raise InputError("secret", secret, "a text that is not empty")
    return [*rows, *with_secret(safety, secret)]


# -------------------------------------------------------------------- AsFT


def asft(
    objective: Objective,
    base: dict[str, Tensor],
    aligned: dict[str, Tensor],
    weight: float = 1.0,
    endings: tuple[str, ...] = PROJECTIONS,
    exact: bool = False,
) -> Objective:
    """Loss + weight * sum over matrices of ||(I - C) dW||_F^2: the update pays for leaving the alignment direction.

    dW is the weight less the aligned one, or what an adapter (LoRA) adds; C as in `baselines_posthoc.alignment_maps`. Source:
    AsFT (2025): weight 1, learning rate 5e-5, batch 8, 10 epochs, 1,000 rows of which 10 % harmful. Unknown: which
    matrices; `endings` of their names, all projections.
    """
    at_least("weight", weight, 0)
    maps = alignment_maps(base, aligned, endings, exact)
    start = {
        name: aligned[name].detach().clone() for name in maps
    }  # the state dict may be the trained model's own

    def regularised(model: nn.Module, batch) -> Tensor:
        loss = objective(model, batch)
        # Differences of nearly equal numbers: not in the training loop's bfloat16.
        with torch.autocast(loss.device.type, enabled=False):
            for name, update in _updates(model, start, maps).items():
                across = maps[name].to(update.device, update.dtype)
                loss = loss + weight * (update - across @ update).square().sum()
        return loss

    return regularised


def _updates(model: nn.Module, aligned: dict[str, Tensor], names: dict) -> dict[str, Tensor]:
    """Name -> dW (outputs, inputs), differentiable: an adapter's product where there are adapters, else the difference."""
    adapted = {
        f"{name.removeprefix('base_model.model.')}.weight": module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")  # peft's adapted layers
    }
    weights = {} if adapted else dict(model.named_parameters())
    if not any(n in adapted or n in weights for n in names):
        raise InputError("endings", sorted(names)[:3], "endings of names of matrices that are trained")
    found = {n: w - aligned[n].to(w.device, w.dtype) for n, w in weights.items() if n in names}
    for name in sorted(adapted.keys() & names.keys()):
        layer = adapted[name]
        found[name] = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
    return found
