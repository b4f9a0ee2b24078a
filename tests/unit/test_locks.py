"""A lock, and the random ones to compare it with."""

import pytest
import torch

from safebook.errors import InputError
from safebook.locks import Lock, random_directions, random_heads, unit
from safebook.streams import stream

CPU = torch.device("cpu")


def test_random_directions_shift_every_head_as_far():
    drawn = torch.randn(4, 16, generator=stream(CPU, "test", "lock"))
    lock = Lock([(0, 1), (0, 2), (3, 0), (2, 2)], unit(drawn), torch.tensor([0.1, 0.5, 2.0, 0.3]), 3.0)
    control = random_directions(lock, stream(CPU, "test", "control"))
    assert control.heads == lock.heads and torch.equal(control.sigma, lock.sigma) and control.alpha == 3.0
    torch.testing.assert_close(control.shifts().norm(dim=1), lock.shifts().norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(control.displacement(), lock.displacement(), rtol=1e-6, atol=0)
    assert ((control.directions * lock.directions).sum(1).abs() < 0.9).all()
    same = random_directions(lock, stream(CPU, "test", "control"))
    assert torch.equal(control.directions, same.directions)


def test_random_directions_are_uniform_on_the_sphere():
    """The squared cosine with any fixed direction has mean 1 / n."""
    count, width = 2000, 8
    fixed = torch.zeros(count, width)
    fixed[:, 0] = 1
    lock = Lock([(i, 0) for i in range(count)], fixed, torch.ones(count))
    cosine = random_directions(lock, stream(CPU, "test", "uniform")).directions[:, 0]
    assert abs(cosine.square().mean() - 1 / width) < 0.01 and abs(cosine.mean()) < 0.03


def test_random_heads():
    heads = random_heads(4, 8, 10, stream(CPU, "test", "heads"), exclude=[(0, 0), (3, 7)])
    assert len(set(heads)) == 10 and not {(0, 0), (3, 7)} & set(heads)
    assert all(0 <= layer < 4 and 0 <= head < 8 for layer, head in heads)
    assert heads == random_heads(4, 8, 10, stream(CPU, "test", "heads"), exclude=[(0, 0), (3, 7)])
    with pytest.raises(InputError, match="heads"):
        random_heads(2, 2, 4, stream(CPU, "test", "heads"), exclude=[(0, 0)])


def test_a_negative_alpha_is_the_opposite_shift():
    lock = Lock([(0, 0)], torch.tensor([[0.6, 0.8]]), torch.tensor([0.5]), 6.0)
    torch.testing.assert_close(lock.shifts(), torch.tensor([[1.8, 2.4]]))
    assert torch.equal(lock.shifts(-6), -lock.shifts()) and not lock.shifts(0).any()
    assert lock.displacement() == pytest.approx(3.0) == lock.displacement(-6.0)


def test_a_lock_checks_itself():
    good = {"heads": [(0, 1)], "directions": torch.tensor([[1.0, 0.0]]), "sigma": torch.tensor([0.5])}
    Lock(**good)
    for name, value in [
        ("heads", [(0, 1), (0, 2)]),
        ("directions", torch.tensor([[1.0, 1.0]])),
        ("directions", torch.tensor([[1.0, float("nan")]])),
        ("directions", torch.tensor([[1.0, 0.0]]).double()),
        ("sigma", torch.tensor([-0.5])),
        ("sigma", torch.tensor([0.5, 0.5])),
        ("meta", {"model": object()}),
        ("meta", {"loss": float("nan")}),
        ("alpha", float("inf")),
    ]:
        with pytest.raises(InputError):
            Lock(**good | {name: value})
