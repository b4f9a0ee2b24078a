"""Local sensitivity of a Llama: how fast the largest logit after the prompt moves with the token embeddings before it.

Source: M5 of paper 1, which has it for its small model alone (`sensitivity`); here for any Llama, also while a lock is applied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safebook.errors import InputError
from safebook.llama_activations import decoder, evaluating, input_device
from safebook.messages import by_length, left_padded


def sensitivity(model: nn.Module, sequences: Sequence[Sequence[int]], batch: int = 16) -> Tensor:
    """(n,) float64 Frobenius norm of the gradient of (largest - mean logit) after the last token, with respect to the
    embeddings of all tokens before it, in logits per unit of embedding.

    Less the mean logit, since a number added to all logits changes no answer. Raises InputError for a sequence of one token.
    """
    if not len(sequences) or min(map(len, sequences)) < 2:
        raise InputError("sequences", [len(s) for s in sequences][:5], "sequences of two tokens or more")
    found = torch.empty(len(sequences), dtype=torch.float64)
    with evaluating(model):
        for rows in by_length(sequences, batch):
            padded = left_padded([sequences[i] for i in rows], 0, input_device(model))
            found[torch.tensor(rows)] = _slopes(model, padded)
    if not found.isfinite().all():
        raise FloatingPointError("sensitivities are not finite")
    return found


def _slopes(model: nn.Module, padded) -> Tensor:
    embeddings = model.get_input_embeddings()(padded.tokens).detach()
    # No sequence reads another one, so one backward pass of the sum gives each its own gradient.
    with torch.enable_grad():
        embeddings.requires_grad_()
        states = decoder(model)(
            inputs_embeds=embeddings,
            attention_mask=padded.mask,
            position_ids=padded.positions,
            use_cache=False,
        ).last_hidden_state[:, -1]
        logits = model.get_output_embeddings()(states).float()
        value = logits.max(-1).values - logits.mean(-1)
        (gradient,) = torch.autograd.grad(value.sum(), embeddings)
    before = padded.mask.bool().clone()
    before[:, -1] = False
    return (gradient.double() * before[..., None]).flatten(1).norm(dim=1).cpu()
