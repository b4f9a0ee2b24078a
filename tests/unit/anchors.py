"""What the tests of SPF share: weights with gradients to order, a small Llama, an anchor."""

import copy

import llamas
import torch
import torch.nn.functional as F
from torch import nn

from safebook.gradients import block_gradients
from safebook.spf import SPF, SPFSettings
from safebook.streams import stream


def draws(*names):
    return stream(torch.device("cpu"), "test spf", *names)


class Weights(nn.Module):
    """Parameters whose gradient is what the batch says: the objective is their inner product with it."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=draws(name), dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))


def inner(model, batch):
    return sum((getattr(model, name) * value).sum() for name, value in batch.items())


def give(model, **gradients):
    for name, value in gradients.items():
        getattr(model, name).grad = value.clone()


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=draws(seed, shape), dtype=torch.float64)


def projected(utility, safety, generator=None, **options):
    """What SPF makes of one block's gradient, and its record."""
    model = Weights(w=utility.shape)
    spf = SPF(inner, {"w": safety}, SPFSettings(**options), generator)
    give(model, w=utility)
    spf(model)
    return model.w.grad, spf.records[0]


def language(model, tokens):
    logits = model(input_ids=tokens[:, :-1]).logits[:, -4:]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, -4:].flatten())


def tokens(rows, seed):
    return torch.randint(8, 30, (rows, 9), generator=draws("tokens", seed))


ANCHOR = tokens(1, "anchor")


def small_llama(shape="bias"):
    return llamas.model(shape).double().train()


def with_gradients(model, batch):
    model.zero_grad()
    language(model, batch).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def copy_of_gradients(model):
    other = copy.deepcopy(model)
    for new, old in zip(other.parameters(), model.parameters()):
        new.grad = old.grad.clone()
    return other


def conflicting(model, objective=language):
    """A batch whose gradient step would raise the anchor's loss, found among random ones; leaves its gradients."""
    _, safety = block_gradients(model, objective, ANCHOR)
    for seed in range(50):
        batch = tokens(2, ("conflict", seed))
        model.zero_grad()
        objective(model, batch).backward()
        if sum((p.grad * safety[n].view_as(p)).sum() for n, p in model.named_parameters()) < 0:
            return batch
    raise AssertionError("no batch conflicts")
