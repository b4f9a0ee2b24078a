"""Gradients of blocks, their spectra, cosines and overlaps: against numpy, against chance, against hand-made cases."""

from dataclasses import replace

import llamas
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from safebook import gradients as g
from safebook.errors import InputError
from safebook.models import GPT
from safebook.settings import ModelSettings
from safebook.streams import stream
from safebook.subspaces import random_orthonormal
from safebook.worlds.chat_tokens import ChatBatch


def draws(*names):
    return stream(torch.device("cpu"), "test gradients", *names)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=draws(seed, shape), dtype=torch.float64)


def answers(rows=4, time=9, answer=4, seed=0):
    """Random tokens of which the last `answer` targets count."""
    tokens = torch.randint(8, 30, (rows, time), generator=draws("tokens", seed))
    mask = torch.zeros(rows, time - 1, dtype=torch.bool)
    mask[:, -answer:] = True
    return ChatBatch(tokens, mask, torch.full((rows,), time))


def answer_loss(model, batch):
    logits = model(input_ids=batch.tokens[:, :-1]).logits
    return F.cross_entropy(logits[batch.loss_mask], batch.tokens[:, 1:][batch.loss_mask])


def low_rank(rows, columns, values, seed=0):
    """A matrix with these singular values, and its left singular vectors."""
    u = random_orthonormal(rows, len(values), draws("u", seed))
    v = random_orthonormal(columns, len(values), draws("v", seed))
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.T, u


# Gradients of blocks.


@pytest.mark.parametrize("shape", ["grouped", "bias", "tied"])
def test_gradients_are_those_of_backward_and_nothing_else_changes(shape):
    model = llamas.model(shape)
    model.train()
    model.model.layers[1].eval()  # modes that differ between modules come back one by one
    modes = [m.training for m in model.modules()]
    held = {n: torch.full_like(p, 3.0) for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = held[name].clone()
    loss, found = g.block_gradients(model, answer_loss, answers())
    assert all(torch.equal(p.grad, held[n]) for n, p in model.named_parameters())
    assert [m.training for m in model.modules()] == modes
    model.zero_grad()
    expected = answer_loss(model, answers())
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()))
    assert set(found) == {n for n, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert found[name].shape == (parameter.shape[0], parameter.numel() // parameter.shape[0])
        torch.testing.assert_close(found[name], parameter.grad.reshape(found[name].shape))


def test_dropout_is_off_and_the_global_stream_untouched():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2)).train()
    x, before = torch.ones(3, 6), torch.get_rng_state()
    runs = [g.block_gradients(model, lambda m, b: m(b).square().sum(), x)[1] for _ in range(2)]
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])
    assert torch.equal(torch.get_rng_state(), before) and model.training


def test_kinds_of_blocks():
    everything = {n for n, _ in llamas.model("bias").named_parameters()}
    assert set(g.blocks(llamas.model("bias"))) == everything
    matrices = set(g.blocks(llamas.model("bias"), ("vectors",)))
    assert not any(n.endswith("bias") or "norm" in n for n in matrices)
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    assert matrices - set(g.blocks(llamas.model("bias"), g.KINDS)) == ends
    tied = g.blocks(llamas.model("tied"))
    assert "model.embed_tokens.weight" in tied and "lm_head.weight" not in tied  # comes once
    assert "model.embed_tokens.weight" not in g.blocks(llamas.model("tied"), ("head",))
    small = GPT(ModelSettings(20, 16, layers=1, heads=2, width=8, hidden=8), draws("gpt"))
    assert set(g.blocks(small)) - set(g.blocks(small, ("embeddings", "head"))) == {
        "wte.weight",
        "head.weight",
    }


def test_bad_input():
    model = llamas.model()
    with pytest.raises(InputError, match="exclude"):
        g.blocks(model, ("bias",))
    with pytest.raises(InputError, match="requires_grad_"):
        g.blocks(model.requires_grad_(False))
    linear = nn.Linear(2, 2)
    with pytest.raises(FloatingPointError, match="weight"):
        g.block_gradients(linear, lambda m, b: m(b).sum(), torch.full((1, 2), torch.inf))
    other = torch.ones((), requires_grad=True)
    with pytest.raises(InputError, match="depends on the blocks"):
        g.block_gradients(linear, lambda m, b: other * 2, None)


def test_a_frozen_tensor_is_no_block_and_an_unused_one_has_no_gradient():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["c"].requires_grad_(False)
    _, found = g.block_gradients(model, lambda m, x: m["c"](m["a"](x)).sum(), torch.ones(1, 3))
    assert set(found) == {"a.weight"} and set(g.blocks(model)) == {"a.weight", "b.weight", "b.bias"}


# Directions.


@pytest.mark.parametrize("method", g.METHODS)
def test_directions_of_a_low_rank_gradient(method):
    matrix, u = low_rank(40, 25, (5.0, 2.0, 1.0))
    left, right = g.leading_directions(matrix, 10, method=method, generator=draws("svd"))
    assert left.shape == (40, 3) and right.shape == (25, 3)  # not ten: the other seven are arbitrary
    torch.testing.assert_close(left @ left.T, u @ u.T, atol=1e-9, rtol=0)
    torch.testing.assert_close(left @ (left.T @ matrix @ right) @ right.T, matrix, atol=1e-9, rtol=0)
    assert g.leading_directions(matrix, 2, method=method, generator=draws("svd"))[0].shape == (40, 2)
    everything = g.leading_directions(matrix, 10, tolerance=0.0, method=method, generator=draws("svd"))
    assert everything[0].shape[1] > 3


def test_the_noise_of_float32_does_not_count_as_directions():
    """A gradient of five positions has rank five, whatever rounding adds."""
    outputs, inputs = normal(64, 5).float(), normal(5, 48, seed=1).float()
    matrix = outputs @ inputs
    assert g.leading_directions(matrix, 20)[0].shape[1] == 5
    assert g.leading_directions(matrix, 20, tolerance=0.0)[0].shape[1] == 20
    assert g.leading_directions(torch.zeros(4, 3), 2)[0].shape == (4, 0)


def test_low_rank_needs_a_generator_and_leaves_the_global_stream():
    matrix = normal(30, 30)
    with pytest.raises(InputError, match="generator"):
        g.leading_directions(matrix, 2, method="low-rank")
    before = torch.get_rng_state()
    one, two, three = (
        g.leading_directions(matrix, 2, method="low-rank", generator=draws(s))[0] for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two) and not torch.equal(one, three)
    for options in ({"rank": 0}, {"rank": 2, "method": "fast"}):
        with pytest.raises(InputError):
            g.leading_directions(matrix, **options)


# Spectra.


def test_explained_ratio_by_hand_and_against_numpy():
    matrix, _ = low_rank(6, 4, (2.0, 1.0, 1.0))
    expected = torch.tensor([4 / 6, 5 / 6, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(g.explained_ratio(matrix, (1, 2, 3, 50)), expected)
    values = np.linalg.svd(normal(9, 5).numpy(), compute_uv=False)
    found = g.singular_values({"a": normal(9, 5), "v": torch.tensor([3.0, 4.0])})
    np.testing.assert_allclose(found["a"], values)
    assert found["v"].tolist() == pytest.approx([5.0])  # a vector is one column
    np.testing.assert_allclose(
        g.explained_ratio(normal(9, 5), (2,)), (values[:2] ** 2).sum() / (values**2).sum()
    )
    assert g.explained_ratio(torch.zeros(3, 3), (1,)).isnan().all()
    with pytest.raises(InputError, match="ranks"):
        g.explained_ratio(matrix, ())


def test_the_rank_of_a_gradient_is_bounded_by_its_answer_tokens():
    """The null of Insight I: at random weights, without any safety, few tokens make few directions."""
    model = llamas.model()
    for count in (1, 3, 5):
        _, found = g.block_gradients(model, answer_loss, answers(rows=1, time=12, answer=count))
        for name in ("lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
            assert float(g.explained_ratio(found[name], (count,))) == pytest.approx(1.0, abs=1e-9)
            assert g.leading_directions(found[name], 20)[0].shape[1] == count


def test_equal_tokens_make_equal_bounds_on_the_rank():
    long, short = answers(rows=5, time=12, answer=7), answers(rows=3, time=9, answer=4, seed=1)
    short.loss_mask[1, -1] = False  # three targets in this row
    a, b = g.equal_tokens(long.loss_mask, short.loss_mask)
    assert a.shape == (3, 11) and b.shape == (3, 8)
    assert a.sum(1).tolist() == b.sum(1).tolist() == [3, 3, 3]
    assert not (a & ~long.loss_mask[:3]).any() and not (b & ~short.loss_mask).any()
    assert a[0].nonzero().flatten().tolist() == [4, 5, 6]  # the first targets of the row
    (c,) = g.equal_tokens(long.loss_mask, tokens=2, generator=draws("c"))
    (d,) = g.equal_tokens(long.loss_mask, tokens=2, generator=draws("c"))
    assert torch.equal(c, d) and c.sum(1).tolist() == [2] * 5 and not (c & ~long.loss_mask).any()
    assert len({tuple(row) for row in c.tolist()}) > 1
    cut = replace(long.take(torch.arange(3)), loss_mask=a)
    _, found = g.block_gradients(llamas.model(), answer_loss, cut)
    assert g.leading_directions(found["lm_head.weight"], 20)[0].shape[1] == 9
    with pytest.raises(InputError, match="tokens"):
        g.equal_tokens(long.loss_mask, short.loss_mask, tokens=4)


# Conflict.


def test_cosines_against_numpy():
    a = {"x": normal(4, 3), "y": normal(5, 2, seed=1)}
    b = {"x": normal(4, 3, seed=2), "y": -2 * a["y"]}
    flat = [np.concatenate([side[n].numpy().ravel() for n in "xy"]) for side in (a, b)]
    expected = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert g.cosine(a, b) == pytest.approx(expected)
    single = g.block_cosines(a, b)
    x = [side["x"].numpy().ravel() for side in (a, b)]
    assert single["x"] == pytest.approx(x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1]))
    assert single["y"] == pytest.approx(-1.0)
    assert np.isnan(g.block_cosines({"x": a["x"]}, {"x": torch.zeros(4, 3)})["x"])
    for function in (g.cosine, g.block_cosines):
        with pytest.raises(InputError, match="same blocks"):
            function(a, {"x": b["x"]})


def test_removed_share():
    safety, u = low_rank(12, 8, (3.0, 2.0, 1.0))
    inside, outside = u[:, :1] @ normal(1, 8), normal(12, 8)
    outside -= u @ (u.T @ outside)
    assert g.removed_share(inside, safety, 1) == pytest.approx(1.0)
    assert g.removed_share(outside, safety, 3) == pytest.approx(0.0, abs=1e-12)
    both = inside / inside.norm() + 2 * outside / outside.norm()
    assert g.removed_share(both.float(), safety.float(), 2) == pytest.approx(0.2, abs=1e-6)


# Overlap.


def test_overlap_is_one_inside_zero_outside_and_chance_between():
    a, u = low_rank(30, 20, (4.0, 2.0, 1.0))
    turned = u @ normal(3, 3) @ normal(3, 20, seed=5)  # the same column space, other values
    assert g.overlap(a, turned, 3) == pytest.approx(1.0)
    assert g.overlap(a, a[:, :2] * 7, 3) == pytest.approx(1.0)  # the smaller lies in the larger
    other = normal(30, 6, seed=3)
    assert g.overlap(a, other - u @ (u.T @ other), 3) == pytest.approx(0.0, abs=1e-12)
    random = [g.overlap(a, normal(30, 20, seed=("r", s)), 3) for s in range(300)]
    assert np.mean(random) == pytest.approx(g.overlap_chance(30, 3), abs=4 * np.std(random) / 300**0.5)
    thin = [g.overlap(a, normal(30, 1, seed=("t", s)), 3) for s in range(300)]
    assert np.mean(thin) == pytest.approx(g.overlap_chance(30, 3, 1), abs=4 * np.std(thin) / 300**0.5)
    assert g.overlap_chance(30, 3) == pytest.approx(0.1)
    assert np.isnan(g.overlap(a, torch.zeros(30, 4), 3))


def test_principal_angles_agree_with_the_overlap_and_keep_small_angles():
    a, b = normal(20, 15), normal(20, 12, seed=1)
    angles = g.principal_angles(a, b, 4)
    assert angles.shape == (4,) and (angles.diff() >= 0).all()
    assert float(angles.cos().square().mean()) == pytest.approx(g.overlap(a, b, 4))
    u, v = (np.linalg.svd(x.numpy())[0][:, :4] for x in (a, b))
    np.testing.assert_allclose(angles.cos(), np.linalg.svd(u.T @ v, compute_uv=False))
    tilt = 1e-10
    one = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    two = torch.tensor([[1.0], [tilt]], dtype=torch.float64)
    assert float(g.principal_angles(one, two, 1)) == pytest.approx(tilt, rel=1e-3)
    assert g.principal_angles(one, torch.zeros(2, 2), 1).shape == (0,)


def test_overlap_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="outputs"):
        g.overlap(normal(3, 4), normal(4, 4), 1)
    for arguments in ((10, 0), (10, 11), (10, 2, 11)):
        with pytest.raises(InputError, match="rank"):
            g.overlap_chance(*arguments)
