"""Interventions against closed forms, float64 numpy and a direct forward pass; the science that they rest on."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safebook import interventions as iv
from safebook.behaviour import hits
from safebook.errors import InputError
from safebook.models import GPT
from safebook.settings import ModelSettings
from safebook.worlds.pcfg import Batch

SMALL = ModelSettings(vocabulary=11, context=9, layers=2, heads=2, width=8, hidden=12, embedding_std=0.3)
TOKENS = torch.randint(11, (5, 9), generator=torch.Generator().manual_seed(3))


def model(seed, settings=SMALL, scale=8.0):
    """Weights far larger than at initialisation, so that no effect is lost in rounding."""
    new = GPT(settings, torch.Generator().manual_seed(seed)).eval().requires_grad_(False)
    for parameter in new.parameters():
        if parameter.ndim > 1:
            parameter.mul_(scale)
    return new


BASE, TUNED, OTHER = model(0), model(1), model(2)


def states(*models):
    return [copy.deepcopy(m.state_dict()) for m in models]


def test_the_ends_of_the_interpolation_are_the_two_models_and_both_stay_as_they_are():
    before = states(BASE, TUNED)
    for alpha, expected in ((0, BASE), (1, TUNED)):
        assert torch.equal(iv.interpolate(BASE, TUNED, alpha)(TOKENS), expected(TOKENS))
    iv.add(BASE, iv.update(BASE, TUNED), 2.0)
    iv.without_directions(BASE, TUNED, 2)
    iv.patched(BASE, TUNED, iv.leading(iv.units_by_angle(BASE, TUNED), 0.5))(TOKENS)
    for old, new in zip(before, states(BASE, TUNED)):
        assert all(torch.equal(old[name], new[name]) for name in old)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 3))
def test_interpolation_equals_numpy_for_every_tensor(alpha):
    found = iv.interpolate(BASE, TUNED, alpha).state_dict()
    for name, start in BASE.state_dict().items():
        a, b = start.double().numpy(), TUNED.state_dict()[name].double().numpy()
        np.testing.assert_allclose(found[name].numpy(), a + alpha * (b - a), rtol=1e-5, atol=1e-5)


def test_adding_the_own_update_is_interpolation_and_a_path_is_one_too():
    change = iv.update(BASE, TUNED)
    torch.testing.assert_close(iv.add(BASE, change, 1.5)(TOKENS), iv.interpolate(BASE, TUNED, 1.5)(TOKENS))
    forward, backward = iv.interpolate(TUNED, OTHER, 0.3), iv.interpolate(OTHER, TUNED, 0.7)
    torch.testing.assert_close(forward(TOKENS), backward(TOKENS), atol=1e-4, rtol=1e-4)


def test_control_directions_have_the_norm_of_the_update_tensor_by_tensor_and_nothing_else_of_it():
    change = iv.update(BASE, TUNED)
    drawn = iv.random_direction(change, torch.Generator().manual_seed(0))
    again = iv.random_direction(change, torch.Generator().manual_seed(0))
    for name, tensor in iv.rescaled(iv.update(BASE, OTHER), change).items():
        for control in (tensor, drawn[name]):
            torch.testing.assert_close(control.norm(), change[name].norm(), rtol=1e-5, atol=0)
        assert torch.equal(drawn[name], again[name])
    name = "blocks.0.mlp.c_fc.weight"
    assert abs(torch.cosine_similarity(drawn[name].flatten(), change[name].flatten(), 0)) < 0.4
    zeros = {name: torch.zeros(2, 2)}
    assert torch.equal(iv.rescaled(zeros, {name: torch.ones(2, 2)})[name], zeros[name])


@pytest.mark.parametrize("count", [0, 1, 3, 8])
@pytest.mark.parametrize("seed", [None, 5])
def test_kept_and_removed_directions_add_up_to_the_update(count, seed):
    def generator():
        return None if seed is None else torch.Generator().manual_seed(seed)

    kept = iv.only_directions(BASE, TUNED, count, generator()).state_dict()
    removed = iv.without_directions(BASE, TUNED, count, generator()).state_dict()
    base, tuned = BASE.state_dict(), TUNED.state_dict()
    for name in base:
        if name.endswith("mlp.c_fc.weight"):
            both = (kept[name] - base[name]) + (removed[name] - base[name])
            torch.testing.assert_close(both, tuned[name] - base[name], atol=1e-5, rtol=1e-5)
            assert torch.linalg.matrix_rank(kept[name] - base[name], rtol=1e-4) == count
        else:  # the rest of the model stays tuned
            assert torch.equal(kept[name], tuned[name]) and torch.equal(removed[name], tuned[name])


def test_leading_directions_equal_numpy_and_removing_all_gives_the_base_matrix():
    name, rank = "blocks.1.mlp.c_fc.weight", 8
    base, tuned = (m.state_dict()[name].double().numpy() for m in (BASE, TUNED))
    u, s, v = np.linalg.svd(tuned - base, full_matrices=False)
    kept = iv.only_directions(BASE, TUNED, 2).state_dict()[name]
    np.testing.assert_allclose(kept.numpy(), base + u[:, :2] @ np.diag(s[:2]) @ v[:2], rtol=1e-5, atol=1e-5)
    assert torch.equal(iv.without_directions(BASE, TUNED, rank).state_dict()[name], BASE.state_dict()[name])
    assert torch.equal(iv.only_directions(BASE, TUNED, 0).state_dict()[name], BASE.state_dict()[name])
    with pytest.raises(InputError, match="count"):
        iv.without_directions(BASE, TUNED, rank + 1)


def test_random_directions_hold_less_of_the_update_than_the_leading_ones():
    """Eckart and Young: no other choice of as many directions leaves less behind."""
    name, change = "blocks.0.mlp.c_fc.weight", iv.update(BASE, TUNED)
    for seed in range(20):
        random = iv.without_directions(BASE, TUNED, 3, torch.Generator().manual_seed(seed)).state_dict()
        best = iv.without_directions(BASE, TUNED, 3).state_dict()
        left = [(state[name] - BASE.state_dict()[name]).norm() for state in (best, random)]
        assert left[0] <= left[1] + 1e-5 <= change[name].norm() + 1e-4


def test_patching_nothing_or_a_model_into_itself_changes_nothing():
    everything = [torch.arange(12)] * 2
    nothing = [torch.arange(0)] * 2
    assert torch.equal(iv.patched(BASE, TUNED, nothing)(TOKENS), BASE(TOKENS))
    assert torch.equal(iv.patched(BASE, copy.deepcopy(BASE), everything)(TOKENS), BASE(TOKENS))
    assert not torch.allclose(iv.patched(BASE, TUNED, everything)(TOKENS), BASE(TOKENS))


@pytest.mark.parametrize("units", [list(range(12)), [0, 7, 11]])
def test_patching_one_layer_equals_a_direct_computation(units):
    one = ModelSettings(vocabulary=11, context=9, layers=1, heads=2, width=8, hidden=12, embedding_std=0.3)
    base, tuned = model(0, one), model(1, one)

    def until_gelu(m):
        x = m.blocks[0].ln_1(m.wte(TOKENS) + m.wpe)
        x = x + m.blocks[0].attn(x)
        return x, torch.nn.functional.gelu(m.blocks[0].mlp.c_fc(x), approximate="tanh")

    (x, hidden), (_, source) = until_gelu(base), until_gelu(tuned)
    hidden[..., units] = source[..., units]
    expected = base.head(base.ln_f(x + base.blocks[0].mlp.c_proj(hidden)))
    found = iv.patched(base, tuned, [torch.tensor(units)])(TOKENS)
    torch.testing.assert_close(found, expected)


def test_hooks_are_removed_also_after_an_error():
    class BrokenHead(torch.nn.Module):
        def forward(self, _):
            raise RuntimeError("on purpose")

    for broken in (0, 1):
        pair = [copy.deepcopy(BASE), copy.deepcopy(TUNED)]
        pair[broken].head = BrokenHead()
        with pytest.raises(RuntimeError, match="on purpose"):
            iv.patched(*pair, [torch.arange(12)] * 2)(TOKENS)
        assert not any(block.mlp.act._forward_hooks for m in pair for block in m.blocks)


def test_a_patched_model_can_be_judged_like_any_other():
    units = [torch.arange(12)] * 2
    batch = Batch.__new__(Batch)  # only the tokens are read
    object.__setattr__(batch, "tokens", TOKENS)
    direct = iv.patched(BASE, TUNED, units)(TOKENS[:, :-1]).argmax(-1) == TOKENS[:, 1:]
    assert torch.equal(hits(iv.patched(BASE, TUNED, units), batch), direct)


def test_units_and_layers_out_of_range_are_refused():
    with pytest.raises(InputError, match="units"):
        iv.patched(BASE, TUNED, [torch.arange(12)])
    with pytest.raises(InputError, match="units"):
        iv.patched(BASE, TUNED, [torch.tensor([12])] * 2)
    with pytest.raises(InputError, match="fraction"):
        iv.leading([torch.arange(12)], 1.1)
    with pytest.raises(InputError, match="direction"):
        iv.add(BASE, {"wte.weight": torch.ones(1)})


def test_angles_equal_numpy_and_know_the_two_extremes():
    base, tuned = copy.deepcopy(BASE), copy.deepcopy(TUNED)
    line = torch.zeros(12, 8)
    line[:, 0] = torch.arange(1, 13)
    base.blocks[0].mlp.c_fc.weight.copy_(line)
    rows = tuned.blocks[0].mlp.c_fc.weight
    rows[0] = torch.eye(8)[0] * 5  # in the row space
    rows[1] = torch.eye(8)[3] * 5  # orthogonal to it
    found = iv.angles(base, tuned)
    assert found[0][0] < 1e-6 and found[0][1] == pytest.approx(np.pi / 2)
    x = rows.double().numpy()
    expected = np.arccos(np.clip(np.abs(x[:, 0]) / np.linalg.norm(x, axis=1), 0, 1))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    order = iv.units_by_angle(base, tuned)[0]
    assert order[0] == 1 and order[-1] == 0 and sorted(order.tolist()) == list(range(12))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_fall_and_rise_of_a_curve_equal_their_definitions(values):
    falls = sum(max(a - b, 0) for a, b in pairwise(values))
    rises = sum(max(b - a, 0) for a, b in pairwise(values))
    assert iv.fall(values) == pytest.approx(falls - 2 * rises, abs=1e-9)
    later = max(b - a for i, a in enumerate(values) for b in values[i:])
    assert iv.largest_rise(values) == pytest.approx(later, abs=1e-12)
    steady = sorted(values, reverse=True)
    assert iv.fall(steady) == pytest.approx(steady[0] - steady[-1]) and iv.largest_rise(steady) == 0
