"""Variants of the cluster distance against numpy, closed forms and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from safebook.activations import last_hidden_by_position, mlp_hidden
from safebook.errors import InputError
from safebook.models import GPT
from safebook.profiles import profile
from safebook.variants import agreement, bandwidth, kernel_distance, two_means
from safebook.worlds.instructions import compliance, prompts
from safebook.worlds.pcfg import PCFGWorld

RANDOM = np.random.default_rng(0)


def generator():
    return torch.Generator().manual_seed(0)


def test_mean_over_positions_is_the_activation_of_the_main_page():
    p = profile("smoke")
    world, model = PCFGWorld(p.world), GPT(p.model, generator()).eval()
    batch = compliance(world, prompts(world, 70, generator(), unsafe=False))
    found = last_hidden_by_position(model, batch, window=3)
    assert found.shape == (70, 3, p.model.hidden)
    torch.testing.assert_close(found.mean(1), mlp_hidden(model, batch, 3)[-1], atol=1e-5, rtol=1e-4)
    first = mlp_hidden(model, batch, 1)[-1]
    torch.testing.assert_close(found[:, 0], first, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="window"):
        last_hidden_by_position(model, batch, 0)


def test_kernel_distance_equals_scikit_learn():
    x, s, u = (RANDOM.normal(size=(n, 5)) for n in (20, 12, 15))
    width = 1.7

    def distance(cluster):
        own = rbf_kernel(cluster, cluster, gamma=1 / (2 * width**2)).mean()
        return np.sqrt(1 - 2 * rbf_kernel(x, cluster, gamma=1 / (2 * width**2)).mean(1) + own)

    found = kernel_distance(*(torch.tensor(a) for a in (x, s, u)), width)
    np.testing.assert_allclose(found.numpy(), distance(u) - distance(s), rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="width"):
        kernel_distance(*(torch.tensor(a) for a in (x, s, u)), 0.0)


def test_kernel_distance_to_single_points_is_known_in_closed_form_and_odd_in_the_clusters():
    safe, unsafe = torch.zeros(1, 3), torch.ones(1, 3)
    tau = kernel_distance(safe, safe, unsafe, 2.0)
    assert tau.item() == pytest.approx(np.sqrt(2 - 2 * np.exp(-3 / 8)))
    x, s, u = (torch.tensor(RANDOM.normal(size=(n, 4))) for n in (9, 8, 7))
    torch.testing.assert_close(kernel_distance(x, s, u, 1.0), -kernel_distance(x, u, s, 1.0))


def test_a_wide_kernel_orders_points_as_the_plain_distance_does():
    """k = 1 - d^2 / (2 width^2) + ...: to first order the squared distance of the means."""
    x, s, u = (torch.tensor(RANDOM.normal(size=(n, 4))) for n in (30, 25, 25))
    width = 1e3
    squares = [((x - c.mean(0)) ** 2).sum(1) for c in (u, s)]
    found = kernel_distance(x, s, u, width)
    expected = (squares[0].sqrt() - squares[1].sqrt()) / width
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-3)


def test_bandwidth_is_the_median_distance():
    points = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert bandwidth(points) == 2
    assert bandwidth(10 * points) == 20
    with pytest.raises(InputError, match="points"):
        bandwidth(torch.zeros(4, 2))


def test_clusters_far_apart_are_found_and_one_cloud_is_not():
    labels = torch.arange(200) < 100
    cloud = torch.tensor(RANDOM.normal(size=(200, 6)))
    apart = cloud + 20 * labels[:, None] * torch.eye(6)[0]
    assert agreement(two_means(apart, generator()), labels) == 1
    assert agreement(two_means(cloud, generator()), labels) < 0.65
    assert torch.equal(two_means(cloud, generator()), two_means(cloud, generator()))


def test_cosine_clusters_do_not_see_length():
    labels = torch.arange(100) < 50
    drawn = np.random.default_rng(1)  # its own: whether length misleads hangs on the draw
    angle = torch.where(labels, 0.0, np.pi / 2) + 0.05 * torch.tensor(drawn.normal(size=100))
    length = torch.tensor(drawn.uniform(0.1, 100, size=100))
    points = length[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    assert agreement(two_means(points, generator(), cosine=True), labels) == 1
    assert agreement(two_means(points, generator()), labels) < 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_agreement_does_not_depend_on_the_names_of_the_clusters(pairs):
    found, labels = (torch.tensor(column) for column in zip(*pairs))
    value = agreement(found, labels)
    assert agreement(~found, labels) == pytest.approx(value) == agreement(found, ~labels)
    assert 0.5 <= value <= 1


def test_agreement_refuses_other_shapes():
    with pytest.raises(InputError, match="labels"):
        agreement(torch.ones(2).bool(), torch.ones(3).bool())
