"""The one training loop: an objective, a stream of batches, an optional gradient transform, checkpoints.

The stream is a function of the iteration, not an iterator, so that a run which goes on from a checkpoint sees the same
batches as one that was never interrupted, and ends with the same weights.
"""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from safebook.errors import InputError
from safebook.settings import TrainingSettings

Objective = Callable[[nn.Module, object], Tensor]  # (model, batch) -> scalar loss


@dataclass(frozen=True)
class Recipe:
    """Everything that `train` needs but the model."""

    objective: Objective
    batches: Callable[[int], object]
    settings: TrainingSettings
    evaluate: Callable[[nn.Module], dict]


@dataclass
class History:
    """What a training run reports."""

    loss: list[dict] = field(
        default_factory=list
    )  # {"iteration", "loss"}: means over the interval that ends there
    evaluations: list[dict] = field(default_factory=list)  # {"iteration", ...whatever `evaluate` returned}
    seconds: float = 0.0  # in the loop, over all calls
    tokens: int = 0  # input tokens that passed forward


def optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW that decays the weights of linear layers and nothing else."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    groups = [
        {
            "params": [p for p in model.parameters() if id(p) in decayed],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def train(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], object],
    settings: TrainingSettings,
    *,
    transform: Callable[[nn.Module], None] | None = None,
    evaluate: Callable[[nn.Module], dict] | None = None,
    evaluate_at: tuple[int, ...] = (),
    keep: Callable[[nn.Module, int], None] | None = None,
    keep_at: tuple[int, ...] = (),
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 120.0,
    stop_after_seconds: float | None = None,
    progress: str | None = None,
) -> History:
    """Train `model` in place.

    Parameters
    ----------
    batches : iteration -> batch. Must depend on the iteration alone.
    transform : changes the gradients between the backward pass and clipping.
    evaluate_at : iterations after which `evaluate` runs (0 = before training).
    keep, keep_at : `keep(model, iteration)` is called after these iterations, to store the model on its way.
    checkpoint : file to go on from and to save to; removed by nobody here.
    stop_after_seconds : leave early, with a checkpoint, after this long; `History.loss` then ends before the last
        iteration. For machines lent in short pieces.
    progress : text of the progress bar; None = no bar.

    Raises
    ------
    FloatingPointError when the loss is not finite; InputError when the checkpoint is of another model.
    """
    from tqdm.auto import tqdm

    device = next(model.parameters()).device
    optimise, history, first = optimizer(model, settings), History(), 0
    if checkpoint and checkpoint.exists():
        first = _restore(checkpoint, model, optimise, history)
    bf16 = settings.precision == "bfloat16"
    cast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
    report_every = max(1, settings.iterations // 100)
    started, saved, running, counted = time.monotonic(), time.monotonic(), torch.zeros((), device=device), 0
    bar = tqdm(
        total=settings.iterations,
        initial=first,
        desc=progress,
        unit="it",
        disable=progress is None,
        mininterval=2,
    )
    model.train()
    if first == 0 and evaluate and 0 in evaluate_at:
        history.evaluations.append({"iteration": 0, **_evaluated(model, evaluate)})
    for iteration in range(first, settings.iterations):
        for group in optimise.param_groups:
            group["lr"] = settings.rate(iteration)
        with cast():  # the batch too: a reference model must compute its part in the same precision
            batch = batches(iteration)
            loss = objective(model, batch)
        optimise.zero_grad(set_to_none=True)
        loss.backward()
        if transform:
            transform(model)
        if settings.clip:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimise.step()
        running, counted = running + loss.detach(), counted + 1
        done = iteration + 1
        bar.update()
        if done % report_every == 0 or done == settings.iterations:
            mean = float(running) / counted
            if not math.isfinite(mean):
                raise FloatingPointError(f"loss is {mean} around iteration {done} of {settings.iterations}")
            history.loss.append({"iteration": done, "loss": mean})
            running, counted = torch.zeros((), device=device), 0
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if evaluate and done in evaluate_at:
            history.evaluations.append({"iteration": done, **_evaluated(model, evaluate)})
        if keep and done in keep_at:
            keep(model, done)
        elapsed = time.monotonic() - started
        leave = stop_after_seconds is not None and elapsed > stop_after_seconds and done < settings.iterations
        # Checkpoints fall on reporting steps, so that no half-counted interval has to be stored.
        due = checkpoint and counted == 0 and time.monotonic() - saved > checkpoint_seconds
        if due or (leave and counted == 0):
            history.seconds, carried = history.seconds + elapsed, history.seconds
            if checkpoint:
                _save(checkpoint, model, optimise, history, done)
            if leave:
                break
            history.seconds, saved = carried, time.monotonic()
    else:
        history.seconds += time.monotonic() - started
    bar.close()
    model.eval()
    return history


def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module], dict]) -> dict:
    model.eval()
    with torch.no_grad():
        result = evaluate(model)
    model.train()
    return result


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, but a tensor of several names (a tied weight) under its first one alone."""
    first = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: value for name, value in model.state_dict().items() if name in first}


def _save(path: Path, model: nn.Module, optimise: torch.optim.Optimizer, history: History, done: int) -> None:
    """Weights, optimiser state and history in one safetensors file, written whole or not at all."""
    tensors = {f"model.{name}": value for name, value in _tensors(model).items()}
    for index, state in optimise.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    facts = json.dumps({"done": done, "history": vars(history)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"facts": facts})
    os.replace(temporary, path)


def _restore(path: Path, model: nn.Module, optimise: torch.optim.Optimizer, history: History) -> int:
    """Load what `_save` wrote; returns the number of iterations done."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    weights = {k[len("model.") :]: v for k, v in tensors.items() if k.startswith("model.")}
    expected = _tensors(model).keys()
    if weights.keys() != expected:
        raise InputError(
            "checkpoint", path.name, f"this model's tensors; {sorted(weights.keys() ^ expected)} differ"
        )
    model.load_state_dict(weights, strict=False)  # the other names of tied weights are not in the file
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimise.load_state_dict({"state": state, "param_groups": optimise.state_dict()["param_groups"]})
    vars(history).update(facts["history"])
    return facts["done"]
