"""Baseline defences on the gradients: transforms for `training.train`, between the backward pass and clipping.

Each compares the task's gradient g_u with the gradient g_s of a safety loss on one fixed anchor, at the current weights, as one
long vector over all blocks. They are the controls of SPF (`spf`), which removes a subspace of every block instead.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safebook.baselines import at_least
from safebook.gradients import NOISE, bare, block_gradients, blocks
from safebook.llama_activations import decoder
from safebook.training import Objective

Transform = Callable[[nn.Module], None]  # changes the gradients that a model holds


def _log_probabilities(model: nn.Module, batch) -> Tensor:
    """(masked targets, vocabulary) of a Llama, rows in order."""
    states = decoder(model)(input_ids=batch.tokens[:, :-1]).last_hidden_state[batch.loss_mask]
    return model.get_output_embeddings()(states).float().log_softmax(-1)


def divergence_from(reference: nn.Module) -> Objective:
    """Mean over the answer tokens of KL(reference || model), in nats, on a `ChatBatch`.

    Source: the alignment loss of SafeGrad (2025), the reference being the aligned model, frozen. Unknown: the direction of
    the divergence and its temperature; forward KL at temperature 1, as commonly described.
    """

    def objective(model: nn.Module, batch) -> Tensor:
        with torch.no_grad():
            target = _log_probabilities(reference, batch)
        return F.kl_div(_log_probabilities(model, batch), target, reduction="sum", log_target=True) / len(
            target
        )

    return objective


def surgery(
    objective: Objective, anchor: object, add: float = 0.0, cosines: list[float] | None = None
) -> Transform:
    """If <g_u, g_s> < 0 over all blocks together: g_u <- g_u - <g_u, g_s> / ||g_s||^2 g_s. Else g_u stays as it is.

    g_u is the gradient that the model holds, g_s that of `objective` on the anchor at the current weights. Vector surgery,
    the control of SPF that takes away one direction and no subspace. With `divergence_from` as objective: SafeGrad (2025).

    Parameters
    ----------
    add : this much of g_s is added afterwards, conflict or not. Unknown in SafeGrad; 0 = removal alone.
    cosines : the cosine of g_u and g_s is appended to it, one number a step.

    A g_s shorter than 1e-5 of g_u is rounding and no conflict: so begins SafeGrad, whose divergence is flat at its reference.
    """
    at_least("add", add, 0)

    def coefficients(inner: float, _utility: float, safety: float) -> tuple[float, float]:
        return 1.0, add - (inner / safety if inner < 0 else 0.0)

    return _combined(objective, anchor, coefficients, cosines)


def pcgrad(objective: Objective, anchor: object, cosines: list[float] | None = None) -> Transform:
    """g_u + g_s, each first freed of its part along the other if the two conflict.

    Source: PCGrad (Yu et al. 2020) for two tasks, as commonly described; paper 3 differs from it in that SPF never adds the
    safety gradient. Unknown: whether paper 3 ran it.
    """

    def coefficients(inner: float, utility: float, safety: float) -> tuple[float, float]:
        return (1 - inner / utility, 1 - inner / safety) if inner < 0 else (1.0, 1.0)

    return _combined(objective, anchor, coefficients, cosines)


def _combined(objective, anchor, coefficients, cosines: list[float] | None) -> Transform:
    """g <- a g_u + b g_s with (a, b) = coefficients(<g_u, g_s>, ||g_u||^2, ||g_s||^2), over the blocks that have both."""

    def transform(model: nn.Module) -> None:
        parameters = blocks(bare(model))
        _, safety = block_gradients(model, objective, anchor)
        utility = {n: p.grad for n, p in parameters.items() if p.grad is not None and n in safety}
        pairs = [(g, safety[n].reshape(g.shape)) for n, g in utility.items()]
        inner, utility_square, safety_square = (
            float(sum((x.double() * y.double()).sum() for x, y in products))
            for products in (pairs, [(u, u) for u, _ in pairs], [(s, s) for _, s in pairs])
        )
        if cosines is not None:
            length = (utility_square * safety_square) ** 0.5
            cosines.append(inner / length if length else 0.0)
        if safety_square <= NOISE**2 * utility_square:  # rounding has a direction, too, but means none
            inner = 0.0
        a, b = coefficients(inner, utility_square, safety_square)
        for u, s in pairs:
            u.mul_(a).add_(s.to(u.dtype), alpha=b)

    return transform
