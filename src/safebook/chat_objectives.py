"""What is minimised on dialogues: answer tokens alone count, and no prompt token.

A `ChatBatch` has `tokens` (batch, T+1) and `loss_mask` (batch, T). Works on any `LlamaForCausalLM`, also in peft's wrapping.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safebook.llama_activations import decoder, input_device
from safebook.worlds.chat_tokens import ChatBatch, pair


def token_losses(model: nn.Module, batch: ChatBatch) -> Tensor:
    """(masked targets,) cross-entropies in nats, rows in order. The head runs on masked positions only.

    The batch may lie elsewhere than the model: batches of words are small, models are not moved for them.
    """
    batch = batch.to(input_device(model))
    states = decoder(model)(input_ids=batch.tokens[:, :-1]).last_hidden_state[batch.loss_mask]
    logits = model.get_output_embeddings()(states).float()
    return F.cross_entropy(logits, batch.tokens[:, 1:][batch.loss_mask], reduction="none")


def answer_nll(model: nn.Module, batch: ChatBatch) -> Tensor:
    """(batch,) summed cross-entropy of each answer, nats."""
    losses = token_losses(model, batch)
    rows = torch.arange(len(batch)).repeat_interleave(batch.loss_mask.sum(1).cpu()).to(losses.device)
    return torch.zeros(len(batch), device=losses.device).index_add(0, rows, losses)


def answer_loss(model: nn.Module, batch: ChatBatch) -> Tensor:
    """Mean cross-entropy of an answer token: pretraining, alignment by SFT, and every fine-tuning attack."""
    return token_losses(model, batch).mean()


@dataclass
class ChatPreference:
    """The same requests with the answer to prefer and the answer to avoid."""

    chosen: ChatBatch
    rejected: ChatBatch
    reference: Tensor | None = None  # (2, batch) NLLs of the frozen model


def _both(model: nn.Module, batch: ChatPreference) -> tuple[Tensor, Tensor]:
    """NLLs of the chosen and of the rejected answers, in one forward pass."""
    return tuple(answer_nll(model, pair(batch.chosen, batch.rejected)).chunk(2))


def reference_nll(reference: nn.Module, batch: ChatPreference) -> Tensor:
    """(2, batch) NLLs under the frozen reference model."""
    with torch.no_grad():
        return torch.stack(_both(reference, batch))


def chat_dpo(model: nn.Module, batch: ChatPreference, beta: float) -> Tensor:
    """Direct preference optimisation on summed log-ratios. Source: Rafailov et al. (2023), eq. 7."""
    chosen, rejected = _both(model, batch)
    margin = (batch.reference[0] - chosen) - (batch.reference[1] - rejected)
    return -F.logsigmoid(beta * margin).mean()
