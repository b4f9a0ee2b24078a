"""Hidden states of a model, read by hooks that are always removed again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from safebook.errors import InputError
from safebook.worlds.pcfg import Batch

CHUNK = 50  # samples a forward pass: few enough for the activations to stay in the cache


@contextmanager
def captured(modules: list[nn.Module], inputs: bool = False) -> Iterator[list[Tensor]]:
    """Outputs (or first inputs) of the modules at the last forward pass, in a list that fills up as the model runs."""
    store: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(index: int):
        def hook(_module, arguments, output):
            store[index] = (arguments[0] if inputs else output).detach()

        return hook

    handles = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield store
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _read(
    model: nn.Module,
    tokens: Tensor,
    at: Tensor,
    modules: list[nn.Module],
    inputs: bool = False,
    mean: bool = False,
) -> Tensor:
    """(modules, batch, positions, width) what enters or leaves the modules at `at`, (batch, positions).

    With `mean`, (modules, batch, width): the mean over the positions, so that no more than that is kept.
    """
    parts = []
    with captured(modules, inputs) as layers:
        for piece, columns in zip(tokens.split(CHUNK), at.split(CHUNK)):
            model(piece)
            rows = torch.arange(len(piece), device=piece.device)[:, None]
            found = [layer[rows, columns].float() for layer in layers]
            parts.append(torch.stack([x.mean(1) for x in found] if mean else found))
    return torch.cat(parts, 1)


def _positions(batch: Batch, window: int) -> Tensor:
    """(batch, window) the positions from `>` on."""
    if window < 1:
        raise InputError("window", window, ">= 1")
    return batch.decision[:, None] + torch.arange(window, device=batch.tokens.device)


def mlp_hidden(model: nn.Module, batch: Batch, window: int) -> Tensor:
    """(layers, batch, hidden) MLP units after the GELU, mean over `window` positions from `>` on.

    Teacher-forced on the batch's own outputs. Source: a_L(x) of paper 1, Eq. 2 (10 positions at paper size).
    """
    modules = [block.mlp.act for block in model.blocks]
    hidden = _read(model, batch.tokens[:, :-1], _positions(batch, window), modules, mean=True)
    if not hidden.isfinite().all():
        raise FloatingPointError("activations are not finite")
    return hidden


def last_hidden_by_position(model: nn.Module, batch: Batch, window: int) -> Tensor:
    """(batch, window, hidden) units of the last MLP after the GELU, at each of `window` positions from `>` on."""
    at = _positions(batch, window)
    return _read(model, batch.tokens[:, : int(at.max()) + 1], at, [model.blocks[-1].mlp.act])[0]


def _at_decision(model: nn.Module, batch: Batch, modules: list[nn.Module], inputs: bool) -> Tensor:
    """(layers, batch, width) what enters or leaves the modules at `>`, of the prompts alone."""
    at = _positions(batch, 1)
    return _read(model, batch.tokens[:, : int(at.max()) + 1], at, modules, inputs)[:, :, 0]


def mlp_input(model: nn.Module, batch: Batch) -> Tensor:
    """(layers, batch, width) what the MLP reads at `>`, the position that predicts the first output. Source: M3, M4."""
    return _at_decision(model, batch, [block.mlp.c_fc for block in model.blocks], inputs=True)


def attention_output(model: nn.Module, batch: Batch) -> Tensor:
    """(layers, batch, width) attention output at `>`, before it joins the stream: what the released M3 reads instead."""
    return _at_decision(model, batch, [block.attn for block in model.blocks], inputs=False)
