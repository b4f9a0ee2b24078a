"""The geometry that part 4 rests on: overlaps, nulls, and where a lock's shifts go."""

import math

import llamas
import pytest
import torch

from safebook import shared_geometry as geometry
from safebook.errors import InputError
from safebook.gradients import overlap_chance
from safebook.llama_activations import decoder, watching
from safebook.lock_apply import locked
from safebook.locks import Lock, unit
from safebook.subspaces import random_orthonormal

SAFE = geometry.SAFETY


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def everywhere(basis, layers=(0,)):
    return {space: dict.fromkeys(layers, basis) for space in geometry.SPACES}


def a_lock(seed=0, heads=((0, 1), (0, 3), (1, 0))):
    directions = unit(torch.randn(len(heads), 8, generator=drawn(seed)))
    return Lock(heads, directions, torch.tensor([0.5, 1.0, 2.0][: len(heads)]), 2.0)


def test_the_same_subspace_overlaps_fully_in_whatever_basis_and_its_angle_is_nought():
    basis = random_orthonormal(20, 3, drawn())
    turned = basis @ random_orthonormal(3, 3, drawn(1))
    objects = {("gradient", SAFE): everywhere(basis), ("update", SAFE): everywhere(turned)}
    frame = geometry.compare(objects, [3])
    assert set(frame["space"]) == set(geometry.SPACES)
    assert frame["overlap"].to_list() == pytest.approx([1.0] * 4)
    assert frame["chance"].to_list() == pytest.approx([3 / 20] * 4)
    assert geometry.smallest_angle(basis, turned) == pytest.approx(0, abs=1e-5)
    whole = random_orthonormal(20, 20, drawn(2))
    assert geometry.smallest_angle(whole[:, :5], whole[:, 5:9]) == pytest.approx(90)


def test_a_direction_inside_a_subspace_overlaps_fully_with_it():
    """Of different dimensions: one where the smaller lies in the larger, and chance is the larger's share."""
    basis = random_orthonormal(12, 4, drawn())
    inside = unit(basis @ torch.ones(4, dtype=torch.float64))[:, None]
    objects = {("gradient", SAFE): everywhere(basis), ("direction", SAFE): everywhere(inside)}
    row = geometry.compare(objects, [4]).iloc[0]
    assert row["overlap"] == pytest.approx(1) and row["chance"] == pytest.approx(4 / 12)


def test_random_subspaces_have_the_chance_overlap_and_the_same_law_either_way_round():
    for first, second in ((1, 1), (2, 6), (6, 2), (4, 4)):
        overlap, angle = geometry.random_pairs(24, first, second, 4000, drawn())
        assert float(overlap.mean()) == pytest.approx(overlap_chance(24, first, second), abs=0.01)
        assert (angle > 0).all() and (angle <= 90).all()
    there, back = (geometry.random_pairs(24, *pair, 50, drawn(3)) for pair in ((2, 6), (6, 2)))
    assert torch.equal(there[0], back[0]) and torch.equal(there[1], back[1])


def test_random_pairs_agree_with_two_drawn_subspaces_and_their_angles():
    """Holding one of them fixed changes nothing: against an independent computation with both drawn."""
    few = [random_orthonormal(10, 2, drawn(i)) for i in range(400)]
    many = [random_orthonormal(10, 3, drawn(1000 + i)) for i in range(400)]
    angles = torch.tensor([geometry.smallest_angle(a, b) for a, b in zip(few, many)])
    _, ours = geometry.random_pairs(10, 2, 3, 4000, drawn())
    assert float(ours.median()) == pytest.approx(float(angles.median()), abs=3)
    with pytest.raises(InputError, match="rank"):
        geometry.random_pairs(4, 1, 5, 10, drawn())


def test_the_columns_of_a_lock_are_what_it_adds_to_the_stream():
    network, lock = llamas.model().eval(), a_lock()
    layers = decoder(network).layers
    outputs = {n: layer.self_attn.o_proj.weight.detach() for n, layer in enumerate(layers)}
    columns = geometry.lock_columns(lock, outputs)
    seen = []
    with watching([layers[0].self_attn.o_proj], lambda _, x: seen.append(x), inputs=False):
        for under in (0.0, None):  # strength: none, the lock's own
            with torch.no_grad(), locked(network, lock, under):
                network(input_ids=torch.tensor([[1, 9, 10]]))
    added = (seen[1] - seen[0])[0].double()
    expected = columns["attention"][0].sum(1)
    torch.testing.assert_close(added, expected.expand_as(added), atol=1e-5, rtol=1e-4)
    assert columns["heads"][0].shape == (outputs[0].shape[1], 2) and columns["heads"][1].shape[1] == 1


def test_bases_of_a_lock_are_orthonormal_and_absent_where_no_head_is_locked():
    outputs = {n: torch.randn(16, 32, generator=drawn(n), dtype=torch.float64) for n in range(3)}
    found = geometry.lock_bases(a_lock(), outputs, rank=5)
    assert set(found["attention"]) == set(found["heads"]) == {0, 1} and found["read"] == {}
    for space in ("attention", "heads"):
        basis = found[space][0]
        torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    other = geometry.with_directions(a_lock(), unit(torch.randn(3, 4, 8, generator=drawn(9))))
    assert other.heads == a_lock().heads and other.displacement() == pytest.approx(a_lock().displacement())


def test_left_and_right_directions_land_in_the_spaces_of_their_matrix():
    update = torch.outer(unit(torch.arange(1.0, 7.0)), unit(torch.arange(1.0, 5.0)))
    found = geometry.matrix_bases({"model.layers.2.self_attn.o_proj.weight": update}, rank=3)
    assert found["attention"][2].shape == (6, 1) and found["heads"][2].shape == (4, 1)
    assert abs(float(found["attention"][2][:, 0] @ unit(torch.arange(1.0, 7.0)).double())) == pytest.approx(1)
    assert found["mlp"] == {} and found["read"] == {}


def test_directions_are_unit_and_the_stream_is_the_difference_of_means():
    network = llamas.model().eval()
    words = llamas.tokenizer()
    classes = [[[{"role": "user", "content": f"w{i} w{i + j}"}] for i in range(3)] for j in (1, 2)]
    found = geometry.direction_bases(network, words, *classes)
    assert set(found) == set(geometry.SPACES)
    for part in found.values():
        assert [float(x.norm()) for x in part.values()] == pytest.approx([1.0] * len(part))
    assert found["attention"] is found["mlp"]
    back = geometry.direction_bases(network, words, *classes[::-1])
    torch.testing.assert_close(back["read"][1], -found["read"][1])


def test_groups_and_the_highest_control_of_a_pair():
    """A pair of safety objects stands against the best of the pairs in which one is replaced, not against the others."""
    shared, other, third = (random_orthonormal(8, 8, drawn())[:, i : i + 1] for i in range(3))
    objects = {("gradient", SAFE): everywhere(shared), ("update", SAFE): everywhere(shared)}
    objects |= {("gradient", "sums"): everywhere(other), ("gradient", "lookup"): everywhere(third)}
    objects[("update", "harmless")] = everywhere(other)
    wide = geometry.highest(geometry.by_view(geometry.compare(objects, [1]))).set_index("view")
    assert wide["safety"].to_list() == pytest.approx([7 / 8] * 3)
    assert wide["swapped"].to_list() == pytest.approx([-1 / 8] * 3)  # orthogonal, so below chance
    assert wide["other skills"].to_list() == pytest.approx([7 / 8] * 3)
    assert geometry.group_of(SAFE, "sums") == "swapped"


def test_two_objects_without_a_matrix_meet_once_in_the_stream():
    assert geometry.shared("attention", "direction", "lock, prompt")
    assert not geometry.shared("mlp", "direction", "lock, prompt")
    assert geometry.shared("mlp", "gradient", "direction") and not geometry.shared("read", "update", "update")


def test_an_update_is_a_difference_and_none_is_an_error():
    network = llamas.model()
    before = geometry.weights(network)
    assert {geometry.matrix_of(n) for n in before} == {"o_proj", "down_proj", "gate_proj"}
    with pytest.raises(InputError, match="base"):
        geometry.change(before, before)
    after = {n: x + 1 for n, x in before.items()}
    for x in geometry.change(after, before).values():
        torch.testing.assert_close(x, torch.ones_like(x), atol=1e-6, rtol=0)
    assert len(geometry.weights(network, every=2)) == len(before) // 2


def test_the_rival_of_a_layer_is_the_highest_of_that_layer_and_not_of_the_mean():
    """Two rivals take turns: each is the highest in one layer alone, where the mean over layers has neither above the pair."""
    axes = torch.eye(8, dtype=torch.float64)
    own, half = axes[:, :1], unit(axes[:, 0] + axes[:, 1])[:, None]  # cosine squared of one half
    far = axes[:, 2:3]
    objects = {
        ("gradient", SAFE): everywhere(own, layers=(0, 1)),
        ("update", SAFE): everywhere(half, layers=(0, 1)),
        ("update", "first"): {space: {0: own, 1: far} for space in geometry.SPACES},
        ("update", "second"): {space: {0: far, 1: own} for space in geometry.SPACES},
    }
    frame = geometry.compare(objects, [1])
    by_mean = geometry.highest(geometry.by_view(frame)).iloc[0]
    assert by_mean["swapped"] == pytest.approx(1 / 2 - 1 / 8) == by_mean["safety"]
    found = geometry.in_depth(objects, frame)
    assert set(found["layer"]) == {1, 2} and set(found["rivals"]) == {2} and len(found) == 2 * 4
    assert found["above"].to_list() == pytest.approx([1 / 2 - 1 / 8] * 8)
    assert found["rival"].to_list() == pytest.approx([1 - 1 / 8] * 8)
    assert found["angle"].to_list() == pytest.approx([45] * 8)
    assert found["rival_angle"].to_list() == pytest.approx([0] * 8, abs=1e-5)


def test_a_pair_without_a_rival_has_no_row_in_depth():
    basis = random_orthonormal(6, 2, drawn())
    objects = {("gradient", SAFE): everywhere(basis), ("update", SAFE): everywhere(basis)}
    assert geometry.in_depth(objects, geometry.compare(objects, [1, 2])).empty
    assert math.isnan(geometry.nearest_rival(objects, "gradient", "update", "read", 0, 2))
    objects["update", "sums"] = everywhere(basis, layers=(3,))  # in a layer that the others lack
    assert geometry.in_depth(objects, geometry.compare(objects, [1, 2])).empty
