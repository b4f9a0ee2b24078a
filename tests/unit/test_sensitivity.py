"""Local sensitivity against a closed form, torch.func and a plain loop; scale, causality, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safebook.errors import InputError
from safebook.models import GPT
from safebook.profiles import profile
from safebook.sensitivity import sensitivity, slopes
from safebook.worlds.instructions import compliance, prompts
from safebook.worlds.pcfg import PCFGWorld

P = profile("smoke")
WORLD = PCFGWorld(P.world)


class Linear(nn.Module):
    """`states` is a running sum over positions, the head a matrix: f = largest entry of A (e_0 + .. + e_t)."""

    def __init__(self, head: torch.Tensor):
        super().__init__()
        self.matrix = head

    def states(self, embeddings):
        return embeddings.cumsum(1)

    def head(self, x):
        return x @ self.matrix.T


def model(seed=0):
    # A larger head than at initialisation, so that the gradients are not tiny.
    m = GPT(P.model, torch.Generator().manual_seed(seed)).eval().requires_grad_(False)
    m.head.weight.mul_(20)
    return m


def batch(n=9, unsafe=False, seed=0):
    return compliance(WORLD, prompts(WORLD, n, torch.Generator().manual_seed(seed), unsafe=unsafe))


def test_closed_form_of_a_linear_map():
    """df/de_s is the winning row of A at each of the t positions before `>`: Lip = sqrt(t) times the row's length."""
    head = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    embeddings = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(2))
    decision = torch.tensor([1, 2, 3, 4, 5, 6])
    lip, spread = slopes(Linear(head), embeddings, decision, chunk=4)
    for i, t in enumerate(decision.tolist()):
        logits = head.double() @ embeddings[i, : t + 1].double().sum(0)
        row = head[logits.argmax()].double()
        assert lip[i].item() == pytest.approx(t**0.5 * row.norm().item(), rel=1e-5)
        assert spread[i].item() == pytest.approx(logits.numpy().std(), rel=1e-5)


def test_equals_a_loop_over_samples_on_the_bare_prompt():
    """One sample at a time, cut right after `>`: neither the outputs nor the neighbours can matter."""
    m, b = model(), batch()
    lip, spread = sensitivity(m, b)
    for i, at in enumerate(b.decision.tolist()):
        e = m.wte(b.tokens[i : i + 1, : at + 1]).clone().requires_grad_()
        logits = m.head(m.states(e))[0, -1]
        logits.max().backward()
        torch.testing.assert_close(lip[i].item(), e.grad[0, :at].norm().item(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(spread[i].item(), logits.std(correction=0).item(), rtol=1e-4, atol=1e-7)


def test_equals_vmap_of_grad():
    m, b = model(), batch()

    def top(e, at):
        return m.head(m.states(e[None])[0].index_select(0, at[None])[0]).max()

    e = m.wte(b.tokens[:, : int(b.decision.max()) + 1])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradient = torch.func.vmap(torch.func.grad(top))(e, b.decision)
    before = torch.arange(e.shape[1]) < b.decision[:, None]
    expected = (gradient * before[..., None]).flatten(1).norm(dim=1)
    torch.testing.assert_close(sensitivity(m, b)[0].float(), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 12))
def test_chunks_do_not_matter(chunk):
    m, b = model(), batch(10)
    for found, expected in zip(sensitivity(m, b, chunk), sensitivity(m, b, 10)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_answer_after_the_marker_does_not_matter():
    m, b = model(), batch()
    other = b.take(torch.arange(len(b)))
    after = torch.arange(b.tokens.shape[1]) > b.decision[:, None]
    other.tokens = torch.where(after, WORLD.vocabulary.pad, b.tokens)
    torch.testing.assert_close(sensitivity(m, b), sensitivity(m, other), rtol=1e-5, atol=1e-8)


def test_louder_logits_scale_both_and_leave_the_ratio():
    """Multiplying the head is what inflating the logits means: Lip grows with it, Lip / spread does not."""
    m, b = model(), batch()
    lip, spread = sensitivity(m, b)
    m.head.weight.mul_(3)
    louder, wider = sensitivity(m, b)
    torch.testing.assert_close(louder, 3 * lip, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(louder / wider, lip / spread, rtol=1e-4, atol=1e-7)


def test_a_constant_function_is_insensitive():
    m = model()
    m.head.weight.zero_()
    lip, spread = sensitivity(m, batch())
    assert lip.max() == 0 and spread.max() == 0


def test_it_predicts_the_effect_of_a_small_push():
    """Along its gradient f moves by Lip times the step: the norm is that of the right gradient."""
    m, b = model(), batch(4)
    last = int(b.decision.max())
    rows = torch.arange(4)
    e = m.wte(b.tokens[:, : last + 1]).requires_grad_()

    def f(e):
        return m.head(m.states(e)[rows, b.decision]).max(-1).values

    (g,) = torch.autograd.grad(f(e).sum(), e)
    g = g * (torch.arange(last + 1) < b.decision[:, None])[..., None]
    unit = g / g.flatten(1).norm(dim=1)[:, None, None]
    step = 1e-2
    moved = (f(e + step * unit) - f(e - step * unit)) / (2 * step)
    torch.testing.assert_close(moved.double(), sensitivity(m, b)[0], rtol=0.02, atol=1e-3)


def test_parameters_keep_no_gradient_and_bad_input_is_refused():
    m, b = model(), batch()
    sensitivity(m, b)
    assert all(p.grad is None for p in m.parameters())
    with pytest.raises(InputError, match="chunk"):
        sensitivity(m, b, chunk=0)
    with pytest.raises(InputError, match="decision"):
        slopes(m, torch.zeros(2, 4, P.model.width), torch.tensor([1, 4]))
