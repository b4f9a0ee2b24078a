"""SPF's controls: other subspaces of equal rank, a frozen one, randomised decompositions; and what the settings refuse."""

import numpy as np
import pytest
import torch
from anchors import (
    ANCHOR,
    Weights,
    copy_of_gradients,
    draws,
    give,
    inner,
    language,
    normal,
    projected,
    small_llama,
    tokens,
    with_gradients,
)

from safebook.errors import InputError
from safebook.gradients import block_gradients, leading_directions
from safebook.spf import SPF, SPFSettings, project, strict


def test_a_random_subspace_removes_k_of_m():
    rank, size, count = 3, 12, 400
    generator, utility, safety = draws("random"), normal(size, 5), normal(size, 5, seed=1)
    model = Weights(w=(size, 5))
    spf = SPF(inner, {"w": safety}, SPFSettings(rank, test="always", subspace="random"), generator)
    for _ in range(count):
        give(model, w=utility)
        spf(model)
    removed = np.array([record["removed"] for record in spf.records])
    assert removed.mean() == pytest.approx(rank / size, abs=4 * removed.std() / count**0.5)
    assert removed.std() > 0.01  # a new one at each step
    assert {record["directions"] for record in spf.records} == {rank}


def test_the_subspace_is_that_of_the_current_weights_unless_frozen():
    for frozen in (False, True):
        model = small_llama()
        spf = SPF(language, ANCHOR, SPFSettings(2, test="always", frozen=frozen))
        if frozen:
            spf.freeze(model)
        _, first = block_gradients(model, language, ANCHOR)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3)
        _, second = block_gradients(model, language, ANCHOR)
        with_gradients(model, tokens(4, 0))
        spf(model)
        for name, parameter in model.named_parameters():
            ends = [leading_directions(s[name], 2)[0].T for s in (first, second)]
            left = [float((u @ parameter.grad.reshape(first[name].shape)).norm()) for u in ends]
            assert left[0 if frozen else 1] < 1e-12
            if "mlp" in name:
                assert left[1 if frozen else 0] > 1e-6
        assert spf.records[0]["safety_loss"] == pytest.approx(float(language(model, ANCHOR).detach()))


def test_a_utility_subspace_of_equal_rank_as_control():
    model, control = small_llama(), tokens(1, "control")
    with_gradients(model, tokens(4, 0))
    plain = SPF(language, ANCHOR, SPFSettings(2, test="always"))
    plain(copy_of_gradients(model))
    spf = SPF(language, ANCHOR, SPFSettings(2, test="always", subspace="utility"), control=control)
    spf(model)
    _, other = block_gradients(model, language, control)
    for name, parameter in model.named_parameters():
        left, _ = leading_directions(other[name], 2)
        assert float((left.T @ parameter.grad.reshape(other[name].shape)).norm()) < 1e-12
    for key in ("conflict", "safety_loss", "directions"):  # the test is still the anchor's
        assert spf.records[0][key] == plain.records[0][key]
    assert spf.records[0]["removed"] != plain.records[0]["removed"]


def test_a_block_that_the_frozen_subspace_does_not_know_is_left_alone():
    """LoRA's A has no safety gradient at first, since B is 0; the block of another library may have none at all."""
    model, u = Weights(a=(3, 3), b=(3, 3)), normal(3, 3)
    spf = SPF(inner, {"a": u}, SPFSettings(2, test="always", frozen=True))
    spf.freeze(model)
    spf.anchor = {"a": u, "b": u}
    give(model, a=u, b=u)
    spf(model)
    assert torch.equal(model.b.grad, u) and not torch.equal(model.a.grad, u)
    assert spf.records[0]["blocks"] == 1


def test_a_control_is_cut_to_the_rank_of_the_anchor():
    safety, model = normal(8, 2, seed=1) @ normal(2, 6, seed=2), Weights(w=(8, 6))
    control = {"w": normal(8, 6, seed=3)}  # of rank 6
    spf = SPF(inner, {"w": safety}, SPFSettings(4, test="always", subspace="utility"), control=control)
    give(model, w=normal(8, 6))
    spf(model)
    left, _ = leading_directions(control["w"], 2)
    torch.testing.assert_close(model.w.grad, normal(8, 6) - left @ (left.T @ normal(8, 6)))
    assert spf.records[0]["directions"] == 2


def test_exact_and_low_rank_agree_on_a_low_rank_gradient():
    utility, safety = normal(30, 20), normal(30, 4, seed=1) @ normal(4, 20, seed=2)
    exact, one = projected(utility, safety, rank=4, test="always")
    randomised, two = projected(utility, safety, draws("b"), rank=4, test="always", method="low-rank")
    torch.testing.assert_close(exact, randomised, atol=1e-9, rtol=0)
    assert one["directions"] == two["directions"] == 4 and one["removed"] == pytest.approx(two["removed"])


def test_few_tokens_leave_few_directions():
    """A rank above that of the anchor's gradient must not remove arbitrary directions, unless told to."""
    utility, safety = normal(10, 8), normal(10, 1, seed=1) @ normal(1, 8, seed=2)
    assert projected(utility, safety, rank=5, test="always")[1]["directions"] == 1
    assert projected(utility, safety, rank=5, test="always", tolerance=0.0)[1]["directions"] == 5


# Settings.


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("rank", 1.0), ("rank", 0.0), ("rank", True), ("rank", -3), ("test", "local"), ("side", "up"),
     ("subspace", "none"), ("project", "weights"), ("method", "fast"), ("frozen", 1), ("tolerance", -1.0),
     ("tolerance", 1.0), ("exclude", "head"), ("exclude", ("heads",))],
)  # fmt: skip
def test_settings_that_are_not_allowed(name, value):
    with pytest.raises(InputError) as error:
        SPFSettings(**{name: value})
    assert error.value.parameter == name


def test_what_the_options_need():
    for options in ({"subspace": "random"}, {"method": "low-rank"}):
        with pytest.raises(InputError, match="generator"):
            SPF(inner, {}, SPFSettings(**options))
    with pytest.raises(InputError, match="control"):
        SPF(inner, {}, SPFSettings(subspace="utility"))
    model = Weights(w=(2, 2))
    with pytest.raises(InputError, match="backward"):
        SPF(inner, {"w": torch.ones(2, 2)})(model)
    give(model, w=normal(2, 2))
    with pytest.raises(FloatingPointError):
        SPF(inner, {"w": torch.full((2, 2), torch.nan)})(model)


def test_directions_of_a_share():
    assert [SPFSettings(0.05).directions(size) for size in (1, 20, 30, 1000)] == [1, 1, 2, 50]
    assert SPFSettings(7).directions(3) == 7  # cut where the gradient is known
    left, right = leading_directions(normal(6, 4), 2)
    both, count = project(normal(6, 4, seed=1), (left, right), "both")
    assert count == 4
    assert float((left.T @ both).norm()) < 1e-12 and float((both @ right).norm()) < 1e-12
    record = projected(normal(8, 4), normal(8, 4, seed=1), rank=0.25, side="both", test="always")[1]
    assert record["directions"] == 2 + 1  # of 8 outputs and of 4 inputs


def test_freezing_again_takes_the_control_again():
    model, first, second = Weights(w=(4, 3)), normal(4, 3, seed=1), normal(4, 3, seed=2)
    settings = SPFSettings(1, test="always", subspace="utility", frozen=True)
    spf = SPF(inner, {"w": normal(4, 3)}, settings, control={"w": first})
    for control in (first, second):
        spf.control = {"w": control}
        spf.freeze(model)
        give(model, w=normal(4, 3, seed=3))
        spf(model)
        left, _ = leading_directions(control, 1)
        assert float((left.T @ model.w.grad).norm()) < 1e-12


def test_reduced_precision_around_it_does_not_reach_the_projection():
    utility, safety = normal(16, 12).float(), normal(16, 12, seed=1).float()
    plain = {}
    for reduced in (False, True):
        model = Weights(w=(16, 12)).float()
        give(model, w=utility)
        spf = SPF(inner, {"w": safety}, SPFSettings(4, test="always"))
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            spf(model)
        plain[reduced] = model.w.grad
    assert torch.equal(plain[False], plain[True])
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), strict(torch.device("cpu")):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"  # no TF32
        raise ZeroDivisionError
    assert torch.backends.cuda.matmul.fp32_precision == before
