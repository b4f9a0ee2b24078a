"""Defences on finished weights: hand-computed projections, exact counts, arithmetic that can be undone."""

import llamas
import pytest
import torch
from test_baselines import ANCHOR, batch, generator, state

from safebook import baselines_posthoc as posthoc
from safebook.chat_objectives import answer_loss
from safebook.errors import InputError
from safebook.settings import TrainingSettings
from safebook.training import train

ZERO = [[0.0, 0], [0, 0]]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def matrices(rows, columns, seed):
    return {"q_proj.weight": torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)}


# -------------------------------------------------------------------- Safe LoRA


def test_safe_lora_projects_only_what_is_under_the_threshold():
    """V_q = diag(3, 4): C = diag(9, 16) / 5. V_v = diag(1, 0): C = diag(1, 0)."""
    base = state(q=ZERO, v=ZERO)
    aligned = state(q=[[3.0, 0], [0, 4]], v=[[1.0, 0], [0, 0]])
    tuned = state(q=[[4.0, 0], [0, 4]], v=[[2.0, 0], [3, 0]])  # dW_q along its image, dW_v = [[1, 0], [3, 0]]
    similarity = posthoc.safe_lora_similarities(base, aligned, tuned)
    assert similarity == {"q_proj.weight": pytest.approx(1), "v_proj.weight": pytest.approx(10**-0.5)}
    new = posthoc.safe_lora(base, aligned, tuned)
    assert torch.equal(new["q_proj.weight"], tuned["q_proj.weight"])
    torch.testing.assert_close(new["v_proj.weight"], torch.tensor([[2.0, 0], [0, 0]]))
    assert same(posthoc.safe_lora(base, aligned, tuned, threshold=0.3), tuned)
    assert same(posthoc.safe_lora(base, aligned, tuned, threshold=None, layers=1), new)
    everything = posthoc.safe_lora(base, aligned, tuned, threshold=None, layers=2)
    torch.testing.assert_close(everything["q_proj.weight"], torch.tensor([[4.8, 0], [0, 4]]))  # 3 + 9/5


def test_the_published_map_scales_with_alignment_and_the_exact_one_is_a_projector():
    base, aligned, far = (matrices(6, 3, seed) for seed in (0, 1, 2))
    v = aligned["q_proj.weight"] - base["q_proj.weight"]
    far["q_proj.weight"] = base["q_proj.weight"] + 7 * v
    published = [posthoc.alignment_maps(base, s)["q_proj.weight"] for s in (aligned, far)]
    torch.testing.assert_close(published[1], 7 * published[0])
    exact = [posthoc.alignment_maps(base, s, exact=True)["q_proj.weight"] for s in (aligned, far)]
    torch.testing.assert_close(exact[0], exact[1])
    torch.testing.assert_close(exact[0] @ exact[0], exact[0])
    torch.testing.assert_close(exact[0] @ v, v)
    torch.testing.assert_close(exact[0], v @ torch.linalg.inv(v.T @ v) @ v.T)


@pytest.mark.parametrize("shape", [(300, 300), (300, 100), (100, 300)])
def test_random_updates_are_as_similar_as_their_shape_says(shape):
    """The null of the similarity: no safety in it, and yet the published threshold of 0.5 would let most through."""
    base, aligned, update = (matrices(*shape, seed) for seed in (0, 1, 2))
    tuned = {name: aligned[name] + update[name] for name in aligned}  # independent of aligned - base
    found = posthoc.safe_lora_similarities(base, aligned, tuned)["q_proj.weight"]
    assert found == pytest.approx((1 + shape[0] / shape[1]) ** -0.5, abs=0.02)


def test_an_exact_projection_is_idempotent_and_without_effect_on_full_rank():
    base, aligned, tuned = (matrices(6, 3, seed) for seed in (0, 1, 2))
    options = {"threshold": None, "layers": 1, "exact": True}
    once = posthoc.safe_lora(base, aligned, tuned, **options)
    twice = posthoc.safe_lora(base, aligned, once, **options)
    torch.testing.assert_close(once["q_proj.weight"], twice["q_proj.weight"])
    assert not torch.allclose(once["q_proj.weight"], tuned["q_proj.weight"])
    base, aligned, tuned = (matrices(4, 5, seed) for seed in (0, 1, 2))
    full = posthoc.safe_lora(base, aligned, tuned, **options)
    torch.testing.assert_close(full["q_proj.weight"], tuned["q_proj.weight"])


def test_projecting_merged_adapters_is_projecting_the_adapter():
    base, aligned = matrices(5, 4, 0), matrices(5, 4, 1)
    b, a = (torch.randn(*shape, generator=generator(3), dtype=torch.float64) for shape in ((5, 2), (2, 4)))
    tuned = {"q_proj.weight": aligned["q_proj.weight"] + b @ a}
    across = posthoc.alignment_maps(base, aligned)["q_proj.weight"]
    new = posthoc.safe_lora(base, aligned, tuned, threshold=1.0)
    torch.testing.assert_close(new["q_proj.weight"], aligned["q_proj.weight"] + (across @ b) @ a)


def test_a_matrix_that_fine_tuning_left_alone_stays_and_other_tensors_do_too():
    base, aligned = llamas.model(seed=1).state_dict(), llamas.model(seed=2).state_dict()
    assert same(posthoc.safe_lora(base, aligned, aligned), aligned)
    tuned = llamas.model(seed=3).state_dict()
    new = posthoc.safe_lora(base, aligned, tuned, threshold=1.0)
    for name in tuned:
        assert torch.equal(new[name], tuned[name]) != name.endswith("_proj.weight")


# -------------------------------------------------------------------- Antidote


SEQUENCES = [[9, 10, 11, 12, 9, 8], [20, 21], [13, 14, 15, 16]]


def test_scores_are_weights_times_the_norms_of_their_inputs():
    """One sequence at a time, without padding, every input seen by a hook of the test's own."""
    model = llamas.model()
    name = "model.layers.1.mlp.down_proj"
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        for sequence in SEQUENCES:
            model(input_ids=torch.tensor([sequence]))
    handle.remove()
    inputs = torch.cat(seen).double()
    assert len(inputs) == sum(map(len, SEQUENCES))
    expected = model.get_submodule(name).weight.detach().double().abs() * inputs.norm(dim=0)
    for size in (1, 2, 16):
        found = posthoc.wanda_scores(model, SEQUENCES, batch=size)[f"{name}.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.33, 1.0])
def test_antidote_zeroes_exactly_the_share_that_scores_highest(ratio):
    model = llamas.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = posthoc.wanda_scores(model, SEQUENCES)
    new = posthoc.antidote(model, SEQUENCES, ratio)
    assert same(dict(model.state_dict()), before)
    for name, weight in new.items():
        zeroed = (weight == 0) & (before[name] != 0)
        if name not in scores:
            assert not zeroed.any()
            continue
        assert int(zeroed.sum()) == int(ratio * weight.numel())
        assert torch.equal(weight[~zeroed], before[name][~zeroed])
        if 0 < ratio < 1:
            assert scores[name][zeroed].min() >= scores[name][~zeroed].max()
    assert len(scores) == 2 * 7


# -------------------------------------------------------------------- repair by training


def test_one_shot_repair_trains_a_copy_on_the_anchor():
    model = llamas.model().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = TrainingSettings(5, 1, 1e-2, 1e-2, 0, 5, betas=(0.5, 0.999), weight_decay=0.0, clip=1.0)
    new = posthoc.one_shot_repair(model, answer_loss, ANCHOR, settings)
    assert same(dict(model.state_dict()), before) and not any(p.requires_grad for p in model.parameters())
    first = float(answer_loss(model, ANCHOR))
    by_hand = llamas.model()
    train(by_hand, answer_loss, lambda i: ANCHOR, settings)
    assert same(new, dict(by_hand.state_dict()))
    assert float(answer_loss(by_hand, ANCHOR)) < 0.7 * first
    assert posthoc.ONE_SHOT.iterations == 10 and posthoc.ONE_SHOT.rate(9) == 2e-5


# -------------------------------------------------------------------- task vectors


def test_the_safety_vector_undoes_the_loss_of_alignment():
    aligned, broken, tuned = (llamas.model(seed=seed).state_dict() for seed in (1, 2, 3))
    restored = posthoc.safety_vector(broken, aligned, broken)
    for name, value in aligned.items():
        torch.testing.assert_close(restored[name], value, atol=1e-6, rtol=1e-6)
    half, whole = (posthoc.safety_vector(broken, aligned, tuned, scale) for scale in (0.5, 1.0))
    for name, value in tuned.items():
        torch.testing.assert_close(2 * (half[name] - value), whole[name] - value, atol=1e-5, rtol=1e-5)
    assert same(posthoc.safety_vector(broken, aligned, tuned, 0.0), tuned)


def test_subtracting_the_harm_that_was_done_gives_the_base_back():
    base, harmful = llamas.model(seed=1).state_dict(), llamas.model(seed=2).state_dict()
    restored = posthoc.subtract_harm(base, harmful, harmful, keep=1.0)
    for name, value in base.items():
        torch.testing.assert_close(restored[name], value, atol=1e-6, rtol=1e-6)


def test_trimming_keeps_the_largest_entries_of_the_whole_vector():
    base = {"a": torch.zeros(4), "b": torch.zeros(2, 3)}
    harmful = {
        "a": torch.tensor([0.1, -9.0, 0.2, 0.3]),
        "b": torch.tensor([[8.0, -0.4, 0.5], [0.6, 7.0, -0.7]]),
    }
    new = posthoc.subtract_harm(base, harmful, base, scale=2.0, keep=0.3)
    assert new["a"].tolist() == [0, 18, 0, 0]
    assert new["b"].tolist() == [[-16, 0, 0], [0, -14, 0]]


def test_dtypes_and_whole_numbers_stay():
    start = {"w": torch.zeros(3, dtype=torch.bfloat16), "n": torch.tensor([3])}
    end = {"w": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor([5])}
    new = posthoc.add_task_vector(start, start, end, 0.5)
    assert new["w"].dtype == torch.bfloat16 and new["w"].tolist() == [0.5] * 3 and new["n"].tolist() == [3]
    new["n"] += 1
    assert start["n"].tolist() == [3]


def test_a_repaired_state_loads_and_answers_differently():
    base, aligned, tuned = (llamas.model(seed=seed) for seed in (1, 2, 3))
    for new in (
        posthoc.safe_lora(base.state_dict(), aligned.state_dict(), tuned.state_dict(), None, layers=3),
        posthoc.antidote(tuned, SEQUENCES),
        posthoc.safety_vector(base.state_dict(), aligned.state_dict(), tuned.state_dict()),
    ):
        model = llamas.model()
        model.load_state_dict(new)
        assert float(answer_loss(model, batch())) != float(answer_loss(tuned, batch()))


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: posthoc.safe_lora(*[state(q=ZERO)] * 3, threshold=0.5, layers=1), "threshold"),
        (lambda: posthoc.safe_lora(state(q=ZERO), state(q=[[1.0, 0], [0, 0]]), state(v=ZERO)), "tuned"),
        (lambda: posthoc.safe_lora(*[state(q=ZERO)] * 3), "aligned"),
        (
            lambda: posthoc.safe_lora(
                state(q=ZERO), state(q=[[1.0, 0], [0, 0]]), state(q=ZERO), threshold=None, layers=2
            ),
            "layers",
        ),
        (lambda: posthoc.alignment_maps(state(q=ZERO), state(q=ZERO), ("k_proj.weight",)), "endings"),
        (lambda: posthoc.antidote(llamas.model(), SEQUENCES, 1.1), "ratio"),
        (lambda: posthoc.antidote(llamas.model(), []), "sequences"),
        (lambda: posthoc.wanda_scores(llamas.model(), SEQUENCES, ("none",)), "endings"),
        (lambda: posthoc.add_task_vector(*[state(q=ZERO)] * 3, 1.0, keep=0.0), "keep"),
        (lambda: posthoc.safety_vector(state(q=ZERO), state(v=ZERO), state(q=ZERO)), "end"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(InputError, match=name):
        call()
