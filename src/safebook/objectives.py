"""What is minimised: each objective is a few lines on masked token losses.

A `Batch` has `tokens` (batch, T+1) and `loss_mask` (batch, T); NLL(y|x) below is the sum of a sample's masked token
losses, in nats. Source: Sec. 3 of paper 1 and its released trainers; the standard DPO is that of Rafailov et al. (2023).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safebook.worlds.pcfg import Batch, concatenate


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """(masked targets,) cross-entropies, rows in order. The head runs on masked positions only, which saves time."""
    states = model.hidden(batch.tokens[:, :-1])[batch.loss_mask]
    return F.cross_entropy(model.head(states).float(), batch.tokens[:, 1:][batch.loss_mask], reduction="none")


def sequence_nll(model: nn.Module, batch: Batch) -> Tensor:
    """(batch,) NLL of each answer."""
    rows = torch.arange(len(batch), device=batch.tokens.device).repeat_interleave(batch.loss_mask.sum(1))
    losses = token_losses(model, batch)
    return torch.zeros(len(batch), device=losses.device).index_add(0, rows, losses)


def language_modelling(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy a token. Pretraining, and SSFT, which is the same on safe or refused answers."""
    return token_losses(model, batch).mean()


@dataclass
class Preference:
    """The same prompts with the answer to prefer and the answer to avoid."""

    chosen: Batch
    rejected: Batch
    reference: Tensor | None = None  # (2, batch) NLLs of the frozen model, for DPO


def _both_nll(model: nn.Module, batch: Preference) -> tuple[Tensor, Tensor]:
    """NLLs of the chosen and the rejected answers, in one forward pass."""
    both = sequence_nll(model, concatenate([batch.chosen, batch.rejected]))
    return tuple(both.chunk(2))


def reference_nll(reference: nn.Module, batch: Preference) -> Tensor:
    """(2, batch) NLLs under the frozen reference model."""
    with torch.no_grad():
        return torch.stack(_both_nll(reference, batch))


def unlearning(model: nn.Module, batch: Preference, forget: float) -> Tensor:
    """E[NLL(chosen)/T - forget * NLL(rejected)/T]: gradient ascent on the answer to avoid, unbounded below."""
    chosen, rejected = _both_nll(model, batch)
    return (chosen - forget * rejected).mean() / batch.chosen.loss_mask.shape[1]


def dpo_paper(model: nn.Module, batch: Preference, beta_chosen: float, beta_rejected: float) -> Tensor:
    """Paper 1's variant of DPO: two betas, and log-ratios divided by the sequence length T."""
    chosen, rejected = _both_nll(model, batch)
    ratio_chosen, ratio_rejected = batch.reference[0] - chosen, batch.reference[1] - rejected
    length = batch.chosen.loss_mask.shape[1]
    return -F.logsigmoid((beta_chosen * ratio_chosen - beta_rejected * ratio_rejected) / length).mean()


def dpo(model: nn.Module, batch: Preference, beta: float) -> Tensor:
    """Standard DPO on summed log-ratios."""
    chosen, rejected = _both_nll(model, batch)
    margin = (batch.reference[0] - chosen) - (batch.reference[1] - rejected)
    return -F.logsigmoid(beta * margin).mean()
