"""Hidden states of a model, read by hooks that are always removed again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
def mlp_hidden(model: nn.Module, batch: Batch, window: int) -> Tensor:
    """(layers, batch, hidden) MLP units after the GELU, mean over `window` positions from `>` on.

    Teacher-forced on the batch's own outputs. Source: a_L(x) of paper 1, Eq. 2 (10 positions at paper size).
    """
    offsets = torch.arange(window, device=batch.tokens.device)
    parts = []
    with captured([block.mlp.act for block in model.blocks]) as layers:
        for start in range(0, len(batch), CHUNK):
            piece = batch.take(
                torch.arange(start, min(start + CHUNK, len(batch)), device=batch.tokens.device)
            )
            model(piece.tokens[:, :-1])
            rows = torch.arange(len(piece), device=offsets.device)[:, None]
            at = piece.decision[:, None] + offsets
            parts.append(torch.stack([layer[rows, at].float().mean(1) for layer in layers]))
    hidden = torch.cat(parts, 1)
    if not hidden.isfinite().all():
        raise FloatingPointError("activations are not finite")
    return hidden


@torch.no_grad()
def _at_decision(model: nn.Module, batch: Batch, modules: list[nn.Module], inputs: bool) -> Tensor:
    """(layers, batch, width) what enters or leaves the modules at `>`, of the prompts alone."""
    tokens = batch.tokens[:, : int(batch.decision.max()) + 1]
    parts = []
    with captured(modules, inputs) as layers:
        for piece, at in zip(tokens.split(CHUNK), batch.decision.split(CHUNK)):
            model(piece)
            rows = torch.arange(len(piece), device=piece.device)
            parts.append(torch.stack([layer[rows, at].float() for layer in layers]))
    return torch.cat(parts, 1)


def mlp_input(model: nn.Module, batch: Batch) -> Tensor:
    """(layers, batch, width) what the MLP reads at `>`, the position that predicts the first output. Source: M3, M4."""
    return _at_decision(model, batch, [block.mlp.c_fc for block in model.blocks], inputs=True)


def attention_output(model: nn.Module, batch: Batch) -> Tensor:
    """(layers, batch, width) attention output at `>`, before it joins the stream: what the released M3 reads instead."""
    return _at_decision(model, batch, [block.attn for block in model.blocks], inputs=False)
