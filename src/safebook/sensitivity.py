"""Local sensitivity: how fast the largest logit at `>` moves with the token embeddings before it.

Source: M5 of paper 1 ("Lipschitz constant"): f(x) = largest logit at the first output position, before the softmax, and
Lip(x) = Frobenius norm of df/dE over the token embeddings E, before positions are added, of all positions before `>`.
"""

import torch
from torch import Tensor, nn

from safebook.errors import InputError
from safebook.worlds.pcfg import Batch

CHUNK = 50  # samples a backward pass: few enough for the activations to stay in the cache


def sensitivity(
    model: nn.Module, batch: Batch, chunk: int = CHUNK, centred: bool = False
) -> tuple[Tensor, Tensor]:
    """Lip(x), (n,), in logits per unit of embedding, and the standard deviation of the logits at `>`, (n,).

    Only the prompt is read: the outputs are cut off. `centred`: of the largest logit minus the mean logit, which does not
    change when a number is added to all logits, as the softmax does not.
    """
    last = int(batch.decision.max())
    with torch.no_grad():
        embeddings = model.wte(batch.tokens[:, : last + 1])
    return slopes(model, embeddings, batch.decision, chunk, centred=centred)


def slopes(
    model: nn.Module,
    embeddings: Tensor,
    decision: Tensor,
    chunk: int = CHUNK,
    soft: int = 0,
    centred: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same from token embeddings (n, time, width); `>` is at index `decision`, (n,), after `soft` soft tokens.

    The gradient with respect to soft tokens is left out, so that the number of positions is that of the prompt alone.
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise InputError("chunk", chunk, "an integer >= 1")
    if int(decision.min()) < 1 or int(decision.max()) >= embeddings.shape[1]:
        raise InputError("decision", decision.tolist()[:5], f"1 .. {embeddings.shape[1] - 1}")
    if not 0 <= soft < int(decision.min()):
        raise InputError("soft", soft, f"0 .. {int(decision.min()) - 1}")
    pieces = zip(embeddings.split(chunk), decision.split(chunk))
    pairs = [_slopes(model, e, d, soft, centred) for e, d in pieces]
    lip, spread = (torch.cat(parts) for parts in zip(*pairs))
    if not (lip.isfinite().all() and spread.isfinite().all()):
        raise FloatingPointError("sensitivities are not finite")
    return lip, spread


@torch.enable_grad()
def _slopes(
    model: nn.Module, embeddings: Tensor, decision: Tensor, soft: int, centred: bool
) -> tuple[Tensor, Tensor]:
    # No sample reads another one, so one backward pass of the sum gives every sample's own gradient.
    embeddings = embeddings.detach().requires_grad_()
    rows = torch.arange(len(decision), device=decision.device)
    logits = model.head(model.states(embeddings)[rows, decision])
    value = logits.max(-1).values - (logits.mean(-1) if centred else 0)
    (gradient,) = torch.autograd.grad(value.sum(), embeddings)
    before = torch.arange(embeddings.shape[1], device=decision.device) < decision[:, None] - soft
    lip = (gradient * before[..., None]).double().flatten(1).norm(dim=1)
    return lip, logits.detach().double().std(-1, correction=0)
