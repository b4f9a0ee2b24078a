"""SPF: the projection by hand and against numpy, and its theory."""

import copy

import llamas
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anchors import (
    ANCHOR,
    Weights,
    conflicting,
    copy_of_gradients,
    draws,
    give,
    inner,
    language,
    matrix,
    normal,
    projected,
    small_llama,
    tokens,
    with_gradients,
)

from safebook.gradients import block_gradients, explained_ratio, leading_directions
from safebook.models import GPT
from safebook.settings import ModelSettings
from safebook.spf import SPF, SPFSettings

# The rule.


def test_two_by_two_by_hand():
    safety = matrix([3.0, 0.0], [0.0, 1.0])  # directions e1, then e2; norm sqrt(10)
    utility = matrix([-2.0, 1.0], [4.0, 1.0])  # <u, s> = -6 + 1 = -5; norm sqrt(22)
    found, record = projected(utility, safety, rank=1)
    assert torch.equal(found, matrix([0.0, 0.0], [4.0, 1.0]))
    assert record["conflict"] == pytest.approx(-5 / 220**0.5) and record["acted"]
    assert record["residual"] == pytest.approx(1 / 220**0.5)
    assert record["removed"] == pytest.approx(5 / 22)
    assert (record["step"], record["blocks"], record["directions"]) == (0, 1, 1)
    assert record["utility_norm"] == pytest.approx(22**0.5)
    assert record["safety_norm"] == pytest.approx(10**0.5)
    assert torch.equal(projected(utility, safety, rank=1, side="right")[0], matrix([0.0, 1.0], [0.0, 1.0]))
    assert torch.equal(projected(utility, safety, rank=1, side="both")[0], matrix([0.0, 0.0], [0.0, 1.0]))
    assert torch.equal(projected(utility, safety, rank=2)[0], torch.zeros(2, 2).double())


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_no_conflict_leaves_the_gradient_to_the_bit(scale):
    safety = matrix([3.0, 0.0], [0.0, 1.0])
    utility = scale * matrix([2.0, 1.0], [4.0, 1.0])  # inner product 7, or exactly 0: neither is a conflict
    found, record = projected(utility, safety, rank=1)
    assert torch.equal(found, utility)
    assert not record["acted"] and record["removed"] == record["blocks"] == record["directions"] == 0
    assert record["residual"] == pytest.approx(record["conflict"])
    found, record = projected(utility, safety, rank=1, test="always")
    assert record["acted"] and torch.equal(found[0], torch.zeros(2).double())


@pytest.mark.parametrize("rank", [1, 3, 0.25])
def test_every_block_of_a_llama_against_numpy(rank):
    model = small_llama()
    before = with_gradients(model, tokens(4, 0))
    _, safety = block_gradients(model, language, ANCHOR)
    SPF(language, ANCHOR, SPFSettings(rank, test="always"))(model)
    for name, parameter in model.named_parameters():
        g, s = (x.numpy().reshape(len(x), -1) for x in (before[name], safety[name]))
        u, values, _ = np.linalg.svd(s, full_matrices=False)
        wanted = max(1, round(rank * len(g))) if rank < 1 else rank
        u = u[:, : min(wanted, int((values > 1e-5 * values[0]).sum()))]
        after = parameter.grad.numpy().reshape(g.shape)
        np.testing.assert_allclose(after, g - u @ (u.T @ g), atol=1e-12)
        assert np.abs(u.T @ after).max() < 1e-12  # U^T P G = 0
        # The residual of Sec. 4.3 once the subspace is truncated: <PG, S> = <G, (I - UU^T) S>, and its bound.
        residual = (after * s).sum()
        assert residual == pytest.approx((g * (s - u @ (u.T @ s))).sum(), abs=1e-12)
        left_over = max(0.0, 1 - float(explained_ratio(safety[name], (u.shape[1],))))
        assert abs(residual) <= np.linalg.norm(g) * left_over**0.5 * np.linalg.norm(s) + 1e-12


def test_float32_keeps_the_orthogonality_that_the_replication_asks_for():
    model = llamas.model("bias")
    with_gradients(model, tokens(4, 0))
    SPF(language, ANCHOR, SPFSettings(3, test="always"))(model)
    _, safety = block_gradients(model, language, ANCHOR)
    for name, parameter in model.named_parameters():
        left, _ = leading_directions(safety[name], 3)
        held = parameter.grad.reshape(safety[name].shape)
        assert float((left.T @ held).norm()) <= 1e-5 * max(float(held.norm()), 1e-3)


def test_the_second_projection_changes_nothing():
    model = small_llama()
    with_gradients(model, tokens(4, 0))
    spf = SPF(language, ANCHOR, SPFSettings(2, test="always"))
    spf(model)
    once = {n: p.grad.clone() for n, p in model.named_parameters()}
    spf(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, once[name], atol=1e-12, rtol=0)
    assert spf.records[0]["removed"] > 1e-3 and spf.records[1]["removed"] == pytest.approx(0, abs=1e-12)


def test_which_blocks_each_test_reaches():
    safety = {"a": torch.eye(2).double(), "b": torch.eye(2).double()}
    good, bad = torch.eye(2).double() * 3, -torch.eye(2).double()
    for test, utility, reached in (
        ("global", {"a": good, "b": bad}, set()),  # the sum, 6 - 2, is positive
        ("block", {"a": good, "b": bad}, {"b"}),
        ("always", {"a": good, "b": bad}, {"a", "b"}),
        ("global", {"a": good, "b": 5 * bad}, {"a", "b"}),  # 6 - 10: block a goes along
        ("block", {"a": good, "b": 5 * bad}, {"b"}),
    ):
        model = Weights(a=(2, 2), b=(2, 2))
        give(model, **utility)
        spf = SPF(inner, safety, SPFSettings(1, test=test))
        spf(model)
        assert {n for n in "ab" if not torch.equal(getattr(model, n).grad, utility[n])} == reached
        assert spf.records[0]["blocks"] == len(reached)


def test_blocks_that_lack_a_gradient():
    """No utility gradient: none is made. No safety gradient, or a zero one: unchanged. Frozen: neither seen nor touched."""
    shapes = dict.fromkeys(("both", "no_utility", "no_safety", "zero", "frozen"), (3, 3))
    model, u = Weights(**shapes), normal(3, 3)
    model.frozen.requires_grad_(False)
    give(model, both=u, no_safety=u, zero=u)
    anchor = {"both": -u, "no_utility": u, "zero": torch.zeros(3, 3)}
    SPF(inner, anchor, SPFSettings(2))(model)
    assert not torch.equal(model.both.grad, u)
    assert torch.equal(model.no_safety.grad, u) and torch.equal(model.zero.grad, u)
    assert model.no_utility.grad is None and model.frozen.grad is None


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_vector_loses_its_part_along_the_safety_gradient(side):
    utility, safety = normal(7), normal(7, seed=1)
    found, _ = projected(utility, safety, rank=3, test="always", side=side)
    expected = utility - (utility @ safety) / (safety @ safety) * safety
    torch.testing.assert_close(found, expected)


def test_excluded_kinds_neither_count_nor_change():
    model = small_llama()
    before = with_gradients(model, tokens(4, 0))
    spf = SPF(language, ANCHOR, SPFSettings(2, test="always", exclude=("vectors", "embeddings", "head")))
    spf(model)
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or "embed" in name or "lm_head" in name
        assert torch.equal(parameter.grad, before[name]) == spared
    squares = sum(float(g.square().sum()) for n, g in before.items() if g.ndim > 1 and "layers" in n)
    assert spf.records[0]["utility_norm"] == pytest.approx(squares**0.5)


def test_nothing_but_the_gradients_changes():
    model = small_llama()
    before, state = with_gradients(model, tokens(4, 0)), torch.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    spf = SPF(language, ANCHOR, SPFSettings(2, method="low-rank"), draws("a"))
    spf(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    expected = float(language(model, ANCHOR).detach())
    assert spf.records[0]["safety_loss"] == pytest.approx(expected)
    if not spf.records[0]["acted"]:
        assert all(torch.equal(p.grad, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_keep_their_precision(dtype):
    model = llamas.model().to(dtype)
    with_gradients(model, tokens(4, 0))
    spf = SPF(language, ANCHOR, SPFSettings(4, test="always"))
    spf(model)
    assert {p.grad.dtype for p in model.parameters()} == {dtype} and 0 < spf.records[0]["removed"] < 1


# What the theory says.


def next_tokens(model, batch):
    return F.cross_entropy(model(batch[:, :-1])[:, -4:].flatten(0, 1), batch[:, -4:].flatten())


def change_of_anchor_loss(model, step=1e-5):
    """Of an SGD step along the gradients that the model holds, per unit of step, by central differences."""
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for new, old in zip(moved.parameters(), model.parameters()):
                new -= sign * step * old.grad
            ends.append(float(next_tokens(moved, ANCHOR)))
    return (ends[0] - ends[1]) / (2 * step)


def test_a_step_does_not_raise_the_anchor_loss_to_first_order():
    """With every direction of the anchor's gradient P grad L_s = 0; with fewer, what is left obeys the truncation."""
    # Not a Llama: transformers computes its norms in float32, which finite differences do not bear.
    model = GPT(ModelSettings(30, 16, layers=2, heads=2, width=32, hidden=48), draws("gpt")).double()
    conflicting(model, next_tokens)
    held, raised = copy_of_gradients(model), change_of_anchor_loss(model)
    assert raised > 1e-3  # plain SGD raises it
    whole = SPF(next_tokens, ANCHOR, SPFSettings(1000))
    whole(model)
    assert whole.records[0]["acted"] and whole.records[0]["removed"] < 1
    assert abs(change_of_anchor_loss(model)) < 1e-4 * raised
    some = SPF(next_tokens, ANCHOR, SPFSettings(1))
    some(held)
    record = some.records[0]
    assert record["conflict"] < record["residual"]
    left_over = -record["residual"] * record["utility_norm"] * record["safety_norm"]
    assert change_of_anchor_loss(held) == pytest.approx(left_over, rel=1e-4)
    assert left_over < raised


def test_it_removes_more_than_vector_surgery_does():
    """All input directions of the subspace go, not the part along the safety gradient alone."""
    utility, safety = normal(8, 6), normal(8, 6, seed=1)
    left, _ = leading_directions(safety, 8)
    found, record = projected(utility, left[:, :1] @ left[:, :1].T @ safety, rank=1, test="always")
    along = float((utility * found).sum())
    assert along == pytest.approx(float(found.square().sum()))  # an orthogonal projection
    assert record["removed"] > record["conflict"] ** 2
