"""Anchors, variants and decompositions of SPF's ablations."""

import numpy as np
import pytest
import torch

from safebook import spf_ablations as ablations
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.judge import refused
from safebook.spf import SPFSettings
from safebook.spf_arms import ARMS
from safebook.streams import stream
from safebook.worlds.chat import ChatWorld

WORLD = ChatWorld(chat_profile("smoke").world)
CPU = torch.device("cpu")


def category_of(row) -> int:
    (found,) = [WORLD.category[i] for i, name in enumerate(WORLD.objects) if f" {name} " in row[0]["content"]]
    return int(found)


def test_every_variant_is_an_arm_with_settings_that_exist():
    for variant in ablations.VARIANTS:
        for method in ablations.METHODS:
            arm, changed = ablations.changes(variant, method)
            settings = SPFSettings(rank=0.05, **changed)
            assert arm in ARMS and (settings.method == method) == (variant != "other SVD")
    with pytest.raises(InputError, match="variant"):
        ablations.changes("no such", "exact")
    with pytest.raises(InputError, match="method"):
        ablations.changes("as published", "guess")


def test_a_generic_anchor_and_that_of_a_category_differ_in_the_naming_sentence_alone():
    for category in (0, 3, 10):
        (generic,), (specific,) = (
            ablations.anchor(WORLD, kind, category, 0) for kind in ("generic", "category")
        )
        assert generic[0] == specific[0] and category_of(generic) == category
        first, second = generic[1]["content"], specific[1]["content"]
        assert second.startswith(first) and second != first and refused([first, second]).all()
        named = second[len(first) :]
        assert any(f" {x} " in named for x in WORLD.objects)
        assert not any(f" {x} " in f" {first} " for x in WORLD.objects)
    assert ablations.anchor(WORLD, "generic", 3, 0) == ablations.anchor(WORLD, "generic", 3, 0)
    assert ablations.anchor(WORLD, "generic", 3, 0) != ablations.anchor(WORLD, "generic", 3, 1)


def test_the_anchor_of_all_others_leaves_its_category_out():
    rows = ablations.anchor(WORLD, "all but one", 4, 0)
    every = set(range(WORLD.settings.categories))
    assert {category_of(row) for row in rows} == every - {4} and len(rows) == len(every) - 1


def test_own_categories_are_different_and_bad_input_is_named():
    found = ablations.own_categories(WORLD, 0, 5)
    assert len(set(found)) == 5 and found == ablations.own_categories(WORLD, 0, 5)
    for call in (
        lambda: ablations.own_categories(WORLD, 0, 99),
        lambda: ablations.anchor(WORLD, "kind", 0, 0),
        lambda: ablations.anchor(WORLD, "generic", 99, 0),
    ):
        with pytest.raises(InputError):
            call()


def test_inside_and_outside_are_weighted_by_prompts():
    found = ablations.inside_and_outside({0: (2, 0.5), 1: (1, 1.0), 2: (3, 0.0)}, 0)
    assert found == {"own category": (2, 0.5), "other categories": (4, 0.25)}
    with pytest.raises(InputError):
        ablations.inside_and_outside({0: (2, 0.5)}, 0)


def test_both_decompositions_agree_on_a_gradient_of_few_directions():
    generator = stream(CPU, "test agreement")
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0])
    low = torch.randn(64, 4, generator=generator) * scales @ torch.randn(4, 40, generator=generator)
    gradients = {"matrix": low, "vector": torch.ones(64, 1)}
    found = ablations.agreement(gradients, 2 / 64, generator)
    assert found["overlap"] == pytest.approx(1, abs=1e-3) and found["chance"] == 2 / 64
    # Noise that has no leading directions: the randomised ones are others.
    noise = {"noise": torch.randn(200, 200, generator=generator)}
    assert ablations.agreement(noise, 2 / 200, generator)["lowest_overlap"] < 0.98
    with pytest.raises(InputError):
        ablations.agreement({"vector": torch.ones(4, 1)}, 0.5, generator)


def test_rank_correlation_is_spearmans_and_nought_without_variation():
    x, y = [1, 2, 4, 8, 16], [0.9, 0.7, 0.8, 0.2, 0.1]
    ranks = np.argsort(np.argsort(y)) + 1
    by_hand = 1 - 6 * sum((r - i) ** 2 for i, r in enumerate(ranks, 1)) / (5 * 24)
    assert ablations.rank_correlation(x, y) == pytest.approx(by_hand)
    assert ablations.rank_correlation(x, [0.5] * 5) == 0.0
