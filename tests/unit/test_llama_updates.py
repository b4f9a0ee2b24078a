"""Updates of gate projections: against singular value decompositions, and nulls against draws."""

import json
import math

import llamas
import numpy as np
import pytest
import torch

from safebook import subspaces
from safebook.errors import InputError
from safebook.llama_updates import check_family, gate, outside, reader, reading, rotated, update


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(rows, columns, seed):
    """A matrix with a spectrum that falls off, as those of trained weights do."""
    return normal(rows, columns, seed=seed) @ torch.diag(0.8 ** torch.arange(columns, dtype=torch.float64))


@pytest.mark.parametrize("rank", [16, 3])
def test_outside_agrees_with_the_singular_value_decompositions(rank):
    weight, change = decaying(40, 16, 1), decaying(40, rank, 2) @ normal(rank, 16, seed=3)
    found, basis = outside(weight, change), subspaces.column_space(weight)
    assert found.basis == basis.shape[1]
    assert found.energy == pytest.approx(subspaces.energy_outside(basis, change), abs=1e-9)
    kept = subspaces.outside(basis, subspaces.column_space(change))
    assert found.median == pytest.approx(float(kept.median()), abs=1e-6)


def test_an_update_inside_or_outside_the_column_space_has_share_nought_or_one():
    weight = torch.zeros(20, 5, dtype=torch.float64)
    weight[:5] = torch.eye(5)
    inside, beyond = torch.zeros_like(weight), torch.zeros_like(weight)
    inside[:5], beyond[5:] = normal(5, 5), normal(15, 5)
    assert outside(weight, inside).energy == pytest.approx(0, abs=1e-12)
    assert outside(weight, beyond).energy == pytest.approx(1)


def test_the_null_has_the_mean_and_spread_of_random_updates():
    weight, change = decaying(30, 12, 1), decaying(30, 12, 2)
    found = outside(weight, change)
    basis, s = subspaces.column_space(weight), torch.linalg.svdvals(change)
    drawn = subspaces.random_outside(basis, 12, 4000, torch.Generator().manual_seed(0))
    energy = (drawn.square() * s.square()).sum(1) / s.square().sum()
    assert found.expected == pytest.approx(float(energy.mean()), abs=4 * found.spread / math.sqrt(4000))
    assert found.spread == pytest.approx(float(energy.std()), rel=0.06)
    assert found.expected_median == pytest.approx(float(drawn.flatten().median()), abs=0.005)
    assert found.z == pytest.approx((found.energy - found.expected) / found.spread)


def test_reading_agrees_with_the_functions_of_part_one():
    change, inputs = decaying(40, 24, 1), normal(9, 24, seed=2)
    found = reading(reader(change), inputs)
    torch.testing.assert_close(found["projection"], subspaces.row_projection(change, inputs))
    torch.testing.assert_close(found["gain"], subspaces.gain(change, inputs))


@pytest.mark.parametrize("count", [5, 40])
def test_rotated_inputs_keep_their_lengths_and_angles(count):
    inputs = normal(count, 12) + 2
    turned = rotated(inputs, torch.Generator().manual_seed(1))
    torch.testing.assert_close(turned @ turned.T, inputs @ inputs.T)
    assert not torch.allclose(turned, inputs)
    again = rotated(inputs, torch.Generator().manual_seed(1))
    assert torch.equal(turned, again)


def test_rotated_inputs_are_read_as_random_updates_read_the_inputs():
    """Same mean and spread of the ratio between two groups of inputs, over many draws."""
    change, inputs = decaying(30, 10, 1), normal(12, 10, seed=2) + torch.tensor([1.0] * 5 + [-1.0] * 5)
    s = torch.linalg.svdvals(change)

    def ratio(read, points):
        values = reading(read, points)["gain"]
        return math.log2(values[:6].mean() / values[6:].mean())

    read, first, second = reader(change), torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    turned = [ratio(read, rotated(inputs, first)) for _ in range(1500)]
    drawn = [ratio(s[:, None] * subspaces.random_orthonormal(10, 10, second).T, inputs) for _ in range(1500)]
    error = np.std(drawn) / math.sqrt(1500)
    assert np.mean(turned) == pytest.approx(np.mean(drawn), abs=6 * error)
    assert np.std(turned) == pytest.approx(np.std(drawn), rel=0.12)


@pytest.mark.parametrize("shape", ["sharded", "bf16", "tied", "bias"])
def test_gates_are_read_from_the_files_of_every_shape(shape, tmp_path):
    llamas.checkpoint(tmp_path, shape)
    made = llamas.model(shape)
    for i, layer in enumerate(made.model.layers):
        expected = layer.mlp.gate_proj.weight.detach()
        expected = expected.bfloat16() if shape == "bf16" else expected
        assert torch.equal(gate(tmp_path, i), expected.double())


def test_an_update_is_the_difference_and_none_is_an_error(tmp_path):
    llamas.checkpoint(tmp_path / "a")
    llamas.checkpoint(tmp_path / "b")
    with pytest.raises(InputError, match="layer 1"):
        update(tmp_path / "a", tmp_path / "b", 0)
    changed = llamas.model("plain", seed=5)
    changed.save_pretrained(tmp_path / "b")
    weight, change = update(tmp_path / "a", tmp_path / "b", 1)
    assert torch.equal(weight, gate(tmp_path / "a", 1))
    torch.testing.assert_close(
        weight + change, changed.model.layers[1].mlp.gate_proj.weight.detach().double()
    )


def rejected(*arguments, parameter, part):
    with pytest.raises(InputError) as caught:
        check_family(*map(str, arguments))
    assert caught.value.parameter == parameter and part in str(caught.value)


def test_a_family_has_one_shape_and_one_vocabulary(tmp_path):
    chat, base = tmp_path / "chat", tmp_path / "base"
    llamas.checkpoint(chat)
    llamas.checkpoint(base, template=None)
    check_family(str(chat), str(base), str(chat))
    check_family("testbed", "")
    rejected("testbed", base, parameter="base", part="testbed")
    rejected("testbed", "", chat, parameter="control", part="testbed")
    for shape in ("vocabulary", "sharded"):
        llamas.checkpoint(tmp_path / shape, shape)
    rejected(chat, "", parameter="base", part="aligned from")
    rejected(chat, tmp_path / "none", parameter="base", part="no such folder")
    rejected(base, base, parameter="model", part="no chat template")
    rejected(chat, tmp_path / "vocabulary", parameter="base", part="same vocabulary")
    rejected(chat, base, tmp_path / "sharded", parameter="control", part="shape")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    rejected(chat, base, parameter="base", part="GPT2LMHeadModel")
