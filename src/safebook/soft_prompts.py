"""The white-box attack "Adv": free embeddings between the operand and `>`, and what a model does with them.

A prompt with k soft tokens reads `BEGIN t1..t4 START x s_1..s_k > y STOP`; positions count on through the soft tokens.
Source: Sec. 5 of paper 1; the released script mixes up k with the number of steps, so this is the clean version.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safebook.activations import captured
from safebook.errors import InputError
from safebook.worlds.pcfg import Batch

CHUNK = 50  # samples a pass: few enough for the activations to stay in the cache
START = 0.01  # standard deviation of the soft tokens before the first step


def insert(embeddings: Tensor, decision: Tensor, delta: Tensor) -> Tensor:
    """(n, time + k, width): soft tokens `delta` (n, k, width) put before the token at index `decision`, (n,)."""
    (_, time, width), k = embeddings.shape, delta.shape[1]
    place = torch.arange(time + k, device=embeddings.device)
    at = decision[:, None]
    later = torch.where(place < at + k, time + place - at, place - k)
    source = torch.where(place < at, place, later)
    return torch.cat([embeddings, delta], 1).gather(1, source[..., None].expand(-1, -1, width))


def _answer(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Input indices that predict the first output and its STOP (n, longest + 1), which of them count, and the targets."""
    offsets = torch.arange(int(batch.lengths.max()) + 1, device=batch.tokens.device)
    places = batch.decision[:, None] + offsets
    return places, offsets <= batch.lengths[:, None], batch.tokens.gather(1, places + 1)


def _embedded(model: nn.Module, batch: Batch, k: int) -> Tensor:
    """(n, time, width) embeddings of the prompt and its first output; nothing later is read. Refuses what cannot fit."""
    time = int((batch.decision + batch.lengths).max()) + 1
    if time + k > model.settings.context:
        raise InputError("k", k, f"at most {model.settings.context - time} (context minus prompt and answer)")
    return model.wte(batch.tokens[:, :time])


def _check(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(name, value, "an integer >= 1")


def radius(model: nn.Module, batch: Batch) -> Tensor:
    """(n,) mean norm of the embeddings of each prompt's tokens, `>` among them: the largest norm of a soft token.

    The paper takes the mean over its batch, which holds one sample in its analyses.
    """
    with torch.no_grad():
        norms = model.wte(batch.tokens[:, : int(batch.decision.max()) + 1]).norm(dim=-1)
    prompt = torch.arange(norms.shape[1], device=norms.device) <= batch.decision[:, None]
    return (norms * prompt).sum(1) / prompt.sum(1)


def step(delta: Tensor, gradient: Tensor, size: Tensor, largest: Tensor) -> Tensor:
    """One step of every soft token (n, k, width): against its own unit gradient, then back to norm <= `largest`, (n,)."""
    tiny = torch.finfo(delta.dtype).tiny  # no gradient, no step
    moved = delta - size[:, None, None] * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(tiny)
    return moved * (largest[:, None, None] / moved.norm(dim=-1, keepdim=True).clamp_min(tiny)).clamp_max(1.0)


def target_loss(model: nn.Module, batch: Batch, delta: Tensor) -> Tensor:
    """(n,) mean cross entropy, in nats a token, of the complying first output and STOP, given soft tokens (n, k, width)."""
    k = delta.shape[1]
    places, counts, targets = _answer(batch)
    rows = torch.arange(len(batch), device=delta.device)[:, None]
    x = insert(_embedded(model, batch, k), batch.decision, delta)
    logits = model.head(model.states(x)[rows, places + k])
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (each * counts).sum(1) / counts.sum(1)


def attack(
    model: nn.Module, batch: Batch, k: int, steps: int, generator: torch.Generator, chunk: int = CHUNK
) -> Tensor:
    """(n, k, width) soft tokens, for each sample its own, that lower the loss of its true first output.

    Each of `steps` steps is 2 N / steps long, N being `radius`; the paper takes 10 steps and k = 3, 6, 9.
    Raises InputError when prompt, soft tokens and answer do not fit the model's context.
    """
    _check(k=k, steps=steps, chunk=chunk)
    _embedded(model, batch, k)
    shape = (len(batch), k, model.settings.width)
    start = START * torch.randn(shape, generator=generator, device=batch.tokens.device)
    rows = torch.arange(len(batch), device=start.device).split(chunk)
    return torch.cat([_descend(model, batch.take(r), start[r], steps) for r in rows])


def random_tokens(model: nn.Module, batch: Batch, k: int, generator: torch.Generator) -> Tensor:
    """(n, k, width) soft tokens of uniformly random direction and the greatest length allowed: the control of the attack."""
    _check(k=k)
    shape = (len(batch), k, model.settings.width)
    drawn = F.normalize(torch.randn(shape, generator=generator, device=batch.tokens.device), dim=-1)
    return drawn * radius(model, batch)[:, None, None]


@torch.enable_grad()
def _descend(model: nn.Module, batch: Batch, delta: Tensor, steps: int) -> Tensor:
    largest = radius(model, batch)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        # No sample reads another one: the gradient of the sum is every sample's own.
        (gradient,) = torch.autograd.grad(target_loss(model, batch, delta).sum(), delta)
        delta = step(delta.detach(), gradient, 2 * largest / steps, largest)
    if not delta.isfinite().all():
        raise FloatingPointError("soft tokens are not finite")
    return delta


@dataclass
class Observed:
    """What a model does with prompts, and the activations of its last layer."""

    success: Tensor  # (n,) bool: left alone, it writes exactly the true first output
    refusing: Tensor  # (n,) bool: the first symbol that it writes is null, and should not be
    hidden: Tensor  # (n, hidden) MLP units after the GELU, mean over `window` positions from `>` on
    decision: Tensor  # (n, hidden) the same units at `>` alone, before any output is shown
    read: Tensor  # (n, width) what the MLP reads at `>`


@torch.no_grad()
def observe(
    model: nn.Module, batch: Batch, window: int, null: int, delta: Tensor | None = None, chunk: int = CHUNK
) -> Observed:
    """Judge and read the model on prompts, with soft tokens (n, k, width) or as they are. `null`: id of the null token.

    Like `behaviour.answers`: greedy decoding writes exactly y if and only if the argmax given y is right at every
    position. Activations are those given the complying answer, the window shifted by k.
    """
    _check(window=window, chunk=chunk)
    if delta is None:
        delta = torch.zeros(len(batch), 0, model.settings.width, device=batch.tokens.device)
    k, last = delta.shape[1], model.blocks[-1].mlp
    parts = []
    for rows in torch.arange(len(batch), device=delta.device).split(chunk):
        piece, index = batch.take(rows), torch.arange(len(rows), device=delta.device)[:, None]
        places, counts, targets = _answer(piece)
        if window > int(piece.lengths.min()) + 1:
            raise InputError("window", window, "at most the first output and its STOP")
        x = insert(_embedded(model, piece, k), piece.decision, delta[rows])
        with captured([last.act]) as hidden, captured([last.c_fc], inputs=True) as read:
            states = model.states(x)
        wrote = model.head(states[index, places + k]).argmax(-1)
        parts.append(
            Observed(
                ((wrote == targets) | ~counts).all(1),
                (wrote[:, 0] == null) & (targets[:, 0] != null),
                hidden[0][index, (places + k)[:, :window]].mean(1),
                hidden[0][index[:, 0], piece.decision + k],
                read[0][index[:, 0], piece.decision + k],
            )
        )
    names = Observed.__dataclass_fields__
    found = Observed(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
    if not (found.hidden.isfinite().all() and found.read.isfinite().all()):
        raise FloatingPointError("activations are not finite")
    return found


def soft_embeddings(model: nn.Module, batch: Batch, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of the prompts with their soft tokens up to `>`, (n, time, width), and the index of `>` there, (n,)."""
    decision = batch.decision + delta.shape[1]
    with torch.no_grad():
        x = insert(_embedded(model, batch, delta.shape[1]), batch.decision, delta)
    return x[:, : int(decision.max()) + 1], decision
