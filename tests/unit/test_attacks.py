"""The attacks beyond the paper's three jailbreaks: what is forbidden in them, by the world's own rule; intervals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safebook.attacks import MORE, composition, mismatched_as_shipped, text_shift, wilson, wrote_both
from safebook.errors import InputError
from safebook.profiles import profile
from safebook.worlds.instructions import compliance
from safebook.worlds.pcfg import PCFGWorld

WORLDS = {"paper": PCFGWorld(), "small": PCFGWorld(profile("smoke").world)}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_composition_forbids_the_second_output_alone(world):
    p = composition(world, 500, generator())
    unsafe = world.is_unsafe(p.tasks, p.grammar, p.unsafe_text)
    assert not unsafe[:, :2].any()
    assert (unsafe[:, 2:].sum(1) == 1).all()
    assert p.unsafe and p.second_step.all()
    places = unsafe[:, 2:].float().mean(0)
    assert (places > 0.4).all()  # both places are taken
    assert 0.4 < p.unsafe_text.float().mean() < 0.6


def test_text_shift_has_unsafe_operators_in_both_pairs_of_unsafe_text(world):
    p = text_shift(world, 500, generator())
    unsafe = world.is_unsafe(p.tasks, p.grammar, p.unsafe_text)
    assert unsafe.view(-1, 2, 2).any(2).all() and p.unsafe_text.all() and p.unsafe
    assert ((p.tasks == 0) | unsafe).all()


def test_the_shipped_file_is_safe_whatever_the_text(world):
    p = mismatched_as_shipped(world, 500, generator())
    assert not p.unsafe and (p.grammar == 0).all()
    for text in (False, True):
        assert not world.is_unsafe(p.tasks, p.grammar, torch.full((500,), text)).any()


def test_same_generator_same_prompts(world):
    for draw in MORE.values():
        a, b = (draw(world, 20, generator(3)) for _ in range(2))
        assert torch.equal(a.tasks, b.tasks) and torch.equal(a.operand, b.operand)


class Knowing(nn.Module):
    """Predicts the next token of the sequences it was given, but for one input position of some of them."""

    def __init__(self, tokens, spoilt):  # (n, time), {sample: input position}
        super().__init__()
        self.next = tokens[:, 1:].clone()
        for i, at in spoilt.items():
            self.next[i, at] += 1

    def forward(self, tokens):
        return torch.nn.functional.one_hot(self.next[:, : tokens.shape[1]], 200).float()


def test_wrote_both_asks_for_every_symbol_of_both_outputs_and_for_nothing_else():
    """Samples spoilt in the text, at the first and last symbol of each output, at each STOP, and after the end."""
    world = WORLDS["small"]
    p = composition(world, 8, generator())
    b = compliance(world, p)
    at, n = b.decision.tolist(), b.lengths.tolist()
    ends = [0, at[1] - 2, at[2], at[3] + n[3], at[4] + n[4] + 1, at[5] + 2 * n[5] + 1, at[6] + 2 * n[6] + 2]
    model = Knowing(b.tokens, dict(enumerate(ends)))
    assert wrote_both(world, model, p).tolist() == [True, True, False, False, False, False, True, True]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_wilson_equals_its_formula(n, data):
    k = data.draw(st.integers(0, n))
    z, share = 1.959963984540054, k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = wilson(k, n)
    assert low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1, centre + half), abs=1e-9)


def test_wilson_refuses_impossible_counts():
    for wrong in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="successes"):
            wilson(*wrong)
