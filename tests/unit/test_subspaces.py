"""Subspaces against float64 numpy and closed forms, and the properties that make a projection a projection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safebook import subspaces
from safebook.activations import attention_output, mlp_input
from safebook.errors import InputError
from safebook.models import GPT
from safebook.profiles import profile
from safebook.worlds.instructions import compliance, prompts
from safebook.worlds.pcfg import PCFGWorld


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)


def random_update(update, g):
    """A matrix with the singular values of `update` and uniformly random singular vectors."""
    s = torch.linalg.svdvals(update)
    u = subspaces.random_orthonormal(update.shape[0], len(s), g)
    return (u * s) @ subspaces.random_orthonormal(update.shape[1], len(s), g).T


shapes = st.tuples(st.integers(2, 14), st.integers(2, 9), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(shapes, st.floats(0.05, 0.99))
def test_the_projector_is_one(shape, energy):
    """Idempotent, symmetric, of the rank that the rule says; the parts inside and outside make up the whole."""
    rows, columns, seed = shape
    weight = matrix(rows, columns, seed)
    basis = subspaces.column_space(weight, energy)
    projector = basis @ basis.T
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector, projector.T)
    assert round(float(projector.trace())) == basis.shape[1] == torch.linalg.matrix_rank(projector)
    squares = np.linalg.svd(weight.numpy(), compute_uv=False) ** 2
    share = np.cumsum(squares) / squares.sum()
    k = basis.shape[1]
    assert share[k - 1] > energy and (k == 1 or share[k - 2] <= energy)
    other = matrix(rows, 3, seed + 1)
    inside = (basis.T @ other).norm(dim=0)
    whole = (inside.square() + subspaces.outside(basis, other).square()).sqrt()
    torch.testing.assert_close(whole, other.norm(dim=0))


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_nothing_changes_under_rotation(shape):
    """Rotating outputs (or inputs) of everything at once changes no measure."""
    rows, columns, seed = shape
    weight, update, inputs = (
        matrix(rows, columns, seed),
        matrix(rows, columns, seed + 1),
        matrix(5, columns, seed + 2),
    )
    left = subspaces.random_orthonormal(rows, rows, generator(seed))
    right = subspaces.random_orthonormal(columns, columns, generator(seed + 1))
    basis, turned = subspaces.column_space(weight, 0.8), subspaces.column_space(left @ weight @ right, 0.8)
    torch.testing.assert_close(
        subspaces.energy_outside(basis, update),
        subspaces.energy_outside(turned, left @ update @ right),
        atol=1e-9,
        rtol=1e-7,
    )
    for measure in (subspaces.row_projection, subspaces.gain):
        torch.testing.assert_close(measure(update, inputs), measure(left @ update @ right, inputs @ right))


def test_vectors_inside_and_orthogonal_to_the_subspace():
    weight = torch.diag(torch.tensor([5.0, 4.0, 0.1]))
    basis = subspaces.column_space(weight, 0.9)
    assert basis.shape == (3, 2)
    vectors = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(
        subspaces.outside(basis, vectors), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    )
    diagonal = torch.tensor([[1.0], [0.0], [1.0]]) / 2**0.5
    torch.testing.assert_close(
        subspaces.outside(basis, diagonal), torch.tensor([0.5**0.5], dtype=torch.float64)
    )
    assert subspaces.energy_outside(basis, torch.diag(torch.tensor([1.0, 1.0, 2.0]))) == pytest.approx(4 / 6)


def test_a_subspace_holds_the_energy_with_as_few_directions_as_can_be():
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))  # squares 9, 4, 1 of 14
    for energy, size in ((0.5, 1), (0.64, 1), (0.65, 2), (0.9, 2), (0.92, 2), (0.93, 3), (0.999, 3)):
        for matrix in (weight, weight.T):
            assert subspaces.column_space(matrix, energy).shape == (3, size)
    for energy in (0, 1):
        with pytest.raises(InputError, match="energy"):
            subspaces.column_space(weight, energy)


def test_parity_with_numpy():
    weight, update, inputs = matrix(12, 5).numpy(), matrix(12, 5, 1).numpy(), matrix(40, 5, 2).numpy()
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    w, t, _ = np.linalg.svd(weight, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(t**2) / (t**2).sum(), 0.9, side="right")) + 1
    rest = np.eye(12) - w[:, :k] @ w[:, :k].T
    as_torch = [torch.tensor(x) for x in (weight, update, inputs)]
    basis = subspaces.column_space(as_torch[0], 0.9)
    np.testing.assert_allclose(subspaces.outside(basis, torch.tensor(u)), np.linalg.norm(rest @ u, axis=0))
    np.testing.assert_allclose(
        subspaces.energy_outside(basis, as_torch[1]),
        np.linalg.norm(rest @ update) ** 2 / np.linalg.norm(update) ** 2,
    )
    length = np.linalg.norm(inputs, axis=1)
    expected = s[:3] * np.abs(inputs @ vt[:3].T) / length[:, None]
    np.testing.assert_allclose(subspaces.row_projections(as_torch[1], as_torch[2], 3), expected)
    np.testing.assert_allclose(subspaces.row_projection(as_torch[1], as_torch[2], 3), (expected**2).sum(1))
    np.testing.assert_allclose(
        subspaces.gain(as_torch[1], as_torch[2]), np.linalg.norm(inputs @ update.T, axis=1) / length
    )
    np.testing.assert_allclose(subspaces.cumulative_energy(as_torch[1]), np.cumsum(s**2) / (s**2).sum())


def test_all_directions_together_are_the_gain():
    update, inputs = matrix(9, 6), matrix(30, 6, 1)
    torch.testing.assert_close(
        subspaces.row_projection(update, inputs, 6), subspaces.gain(update, inputs).square()
    )


def test_stable_rank_of_known_matrices():
    assert subspaces.stable_rank(torch.eye(7)) == pytest.approx(7)
    assert subspaces.stable_rank(torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 4))) == pytest.approx(1)
    assert subspaces.stable_rank(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(5 / 4)


def test_a_random_update_has_the_same_spectrum_and_no_preference():
    """Outside a subspace of k of n dimensions lies, on average, a share 1 - k/n of it: the null of claim 2."""
    update, basis = matrix(40, 8), subspaces.random_orthonormal(40, 10, generator(3))
    g = generator(4)
    drawn = [random_update(update, g) for _ in range(300)]
    for other in drawn[:3]:
        torch.testing.assert_close(torch.linalg.svdvals(other), torch.linalg.svdvals(update))
    share = np.mean([subspaces.energy_outside(basis, other) for other in drawn])
    assert share == pytest.approx(1 - 10 / 40, abs=0.01)
    again = random_update(update, generator(4))
    torch.testing.assert_close(again, drawn[0], rtol=0, atol=0)


def test_random_directions_are_uniform():
    """First coordinates of a uniform unit vector: mean 0 and variance 1/n, whatever signs QR prefers."""
    g = generator(5)
    first = torch.stack([subspaces.random_orthonormal(6, 2, g)[0] for _ in range(4000)])
    assert first.mean(0).abs().max() < 0.03
    torch.testing.assert_close(first.var(0), torch.full((2,), 1 / 6, dtype=torch.float64), atol=0.01, rtol=0)


def test_the_released_measure_says_random_on_random_matrices_and_on_equal_ones_not():
    """Rows of U carry no column space: even independent matrices give sqrt(1 - k/n), and equal ones give zero."""
    base, tuned = matrix(120, 30), matrix(120, 30, 1)
    k = len(subspaces.released_values(base, base))
    assert float(subspaces.released_values(base, base).max()) < 1e-6
    assert float(subspaces.released_values(base, tuned).mean()) == pytest.approx(
        (1 - k / 120) ** 0.5, abs=0.03
    )


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: subspaces.leading(torch.ones(3), 1.0), "energy"),
        (lambda: subspaces.column_space(torch.ones(3)), "weight"),
        (lambda: subspaces.energy_outside(torch.eye(2).double(), torch.full((2, 2), float("nan"))), "update"),
        (lambda: subspaces.random_orthonormal(2, 3, generator()), "columns"),
        (lambda: subspaces.row_projection(torch.eye(2), torch.ones(1, 2), 0), "count"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(InputError, match=name):
        call()


def test_what_the_mlp_reads_equals_the_block_computed_by_hand():
    p = profile("smoke")
    world, model = PCFGWorld(p.world), GPT(p.model, generator()).eval().requires_grad_(False)
    batch = compliance(world, prompts(world, 70, generator(1), unsafe=False))
    read, attended = mlp_input(model, batch), attention_output(model, batch)
    assert read.shape == attended.shape == (p.model.layers, 70, p.model.width)
    x = model.wte(batch.tokens[:, :-1]) + model.wpe[: batch.tokens.shape[1] - 1]
    rows = torch.arange(70)
    for layer, block in enumerate(model.blocks):
        x = block.ln_1(x)
        attention = block.attn(x)
        torch.testing.assert_close(attended[layer], attention[rows, batch.decision], atol=1e-5, rtol=1e-4)
        x = x + attention
        torch.testing.assert_close(read[layer], x[rows, batch.decision], atol=1e-5, rtol=1e-4)
        x = x + block.mlp(x)


def test_random_values_are_those_of_random_updates():
    """The left singular vectors of `random_update` and `random_outside` follow one distribution."""
    basis, update = subspaces.random_orthonormal(30, 12, generator(6)), matrix(30, 4)
    g = generator(7)
    updates = [subspaces.column_space(random_update(update, g), 0.999) for _ in range(400)]
    ours = torch.stack([subspaces.outside(basis, u) for u in updates])
    drawn = subspaces.random_outside(basis, 4, 400, generator(8))
    assert drawn.shape == (400, 4)
    assert float(ours.mean()) == pytest.approx(float(drawn.mean()), abs=0.01)
    assert float(ours.std()) == pytest.approx(float(drawn.std()), abs=0.01)
