"""Cluster distance and spectrum against closed forms, float64 numpy and scikit-learn; hooks; kept samples."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from safebook.activations import captured, mlp_hidden
from safebook.errors import InputError
from safebook.geometry import cluster_distance, separation, spectrum
from safebook.models import GPT
from safebook.profiles import profile
from safebook.worlds.instructions import compliance, prompts
from safebook.worlds.pcfg import PCFGWorld

RANDOM = np.random.default_rng(0)


def test_distance_of_the_means_themselves():
    safe, unsafe = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])
    tau = cluster_distance(torch.stack([safe, unsafe, (safe + unsafe) / 2]), safe, unsafe)
    assert tau.tolist() == [5.0, -5.0, 0.0]


def test_distance_equals_numpy():
    x, s, u = (RANDOM.normal(size=shape) for shape in ((50, 8), 8, 8))
    found = cluster_distance(*(torch.tensor(a) for a in (x, s, u))).numpy()
    np.testing.assert_allclose(
        found, np.linalg.norm(x - u, axis=1) - np.linalg.norm(x - s, axis=1), rtol=1e-12
    )
    cosine = cluster_distance(*(torch.tensor(a) for a in (x, s, u)), metric="cosine").numpy()
    norm = np.linalg.norm
    expected = x @ s / norm(x, axis=1) / norm(s) - x @ u / norm(x, axis=1) / norm(u)
    np.testing.assert_allclose(cosine, expected, rtol=1e-9)
    with pytest.raises(InputError, match="metric"):
        cluster_distance(torch.ones(1, 2), torch.ones(2), torch.ones(2), metric="taxi")


def test_distance_does_not_change_under_rotation_and_shift():
    x, s, u = (torch.tensor(RANDOM.normal(size=shape)) for shape in ((50, 8), 8, 8))
    q, _ = torch.linalg.qr(torch.tensor(RANDOM.normal(size=(8, 8))))
    moved = [(a @ q) + 3 for a in (x, s, u)]
    torch.testing.assert_close(cluster_distance(*moved), cluster_distance(x, s, u))


def test_nearest_mean_accuracy_equals_scikit_learn():
    x = np.concatenate([RANDOM.normal(0, 1, (200, 5)), RANDOM.normal(0.7, 1, (200, 5))])
    y = np.repeat([0, 1], 200)
    model = NearestCentroid().fit(x, y)
    t = torch.tensor(x)
    safe, unsafe = t[:200].mean(0), t[200:].mean(0)
    found = separation(cluster_distance(t[:200], safe, unsafe), cluster_distance(t[200:], safe, unsafe))
    assert found.nearest_mean_accuracy == pytest.approx(model.score(x, y))
    assert found.index > 0


def test_separation_scales_as_it_should():
    safe, unsafe = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -3.0])
    found = separation(safe, unsafe)
    assert (
        found.index == 4
        and found.scaled == pytest.approx(4 / np.sqrt(2))
        and found.nearest_mean_accuracy == 1
    )
    ten = separation(10 * safe, 10 * unsafe)
    assert ten.index == 40 and ten.scaled == pytest.approx(found.scaled)
    assert separation(torch.ones(3), -torch.ones(3)).scaled == 0  # no spread: no ratio


def test_spectrum_of_a_line_and_of_numpy():
    line = torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0, 2.0])) + 7
    values = spectrum(line)
    assert values[0] == pytest.approx(3 * np.sqrt(10)) and values[1:].max() < 1e-9
    x = RANDOM.normal(size=(30, 6))
    np.testing.assert_allclose(
        spectrum(torch.tensor(x)), np.linalg.svd(x - x.mean(0), compute_uv=False), rtol=1e-10
    )


def test_hidden_units_are_read_where_the_paper_reads_them():
    p = profile("smoke")
    world, model = PCFGWorld(p.world), GPT(p.model, torch.Generator().manual_seed(0)).eval()
    batch = compliance(world, prompts(world, 7, torch.Generator().manual_seed(0), unsafe=False))
    found = mlp_hidden(model, batch, window=3)
    assert found.shape == (p.model.layers, 7, p.model.hidden)
    x = model.wte(batch.tokens[:, :-1]) + model.wpe
    for layer, block in enumerate(model.blocks):
        x = block.ln_1(x)
        x = x + block.attn(x)
        h = torch.nn.functional.gelu(block.mlp.c_fc(x), approximate="tanh")
        x = x + block.mlp.c_proj(h)
        for i, at in enumerate(batch.decision.tolist()):
            assert batch.tokens[i, at] == world.vocabulary.end_of_text
            torch.testing.assert_close(found[layer, i], h[i, at : at + 3].mean(0), atol=1e-5, rtol=1e-4)


def test_hooks_are_removed_even_after_an_error():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="on purpose"), captured([layer]) as store:
        layer(torch.ones(1, 2))
        assert store[0].shape == (1, 2)
        raise RuntimeError("on purpose")
    assert not layer._forward_hooks
