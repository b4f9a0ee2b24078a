"""The theory's measurements: by hand, on losses whose smoothness is known, and against SPF's own records."""

import anchors
import llamas
import pytest
import torch
from torch import nn

from safebook import spf_theory as theory
from safebook.chat_objectives import answer_loss
from safebook.errors import InputError
from safebook.gradients import block_gradients
from safebook.spf import SPF, SPFSettings
from safebook.tokenized import answered


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def dialogues(count, start, answer):
    said = [f"w{(start + i) % 20} w{(start + 3 * i) % 20} w{start % 7}" for i in range(count)]
    return [[{"role": "user", "content": s}, {"role": "assistant", "content": answer}] for s in said]


WORDS = llamas.tokenizer()
ANCHOR = answered(WORDS, dialogues(1, 2, "w5 w6 ."))
TASK = answered(WORDS, dialogues(4, 9, "yes w2 w2 ."))


def small():
    return llamas.model().train()


def followed(arm, optimiser, steps=3, rate=1e-3, task=TASK, share=0.1, **more):
    return theory.follow(small(), arm, optimiser, ANCHOR, lambda i: task, rate, steps, 4, share, 0, **more)


def conflicting():
    """A batch whose gradient step would raise the anchor's loss."""
    model = small()
    _, safety = block_gradients(model, answer_loss, ANCHOR)
    for start in range(20):
        for word in ("yes", "w1", "w7"):
            batch = answered(WORDS, dialogues(2, start, f"{word} {word} {word}"))
            _, utility = block_gradients(model, answer_loss, batch)
            if sum(float((g * safety[n]).sum()) for n, g in utility.items()) < 0:
                return batch
    raise AssertionError("no batch conflicts")


# The lemma.


def test_what_is_kept_by_hand():
    utility = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])}  # energies 4, 1, 4, 0
    safety = {"w": torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])}  # directions e3, e4
    rows = theory.retained(utility, safety, (0.25, 0.5), draws())
    kept = {(r["share"], r["subspace"]): r["retained"] for r in rows}
    assert kept[0.25, "safety"] == pytest.approx(5 / 9) and kept[0.5, "safety"] == pytest.approx(5 / 9)
    assert {r["expected"] for r in rows if r["share"] == 0.25} == {0.75}
    assert {r["expected"] for r in rows if r["share"] == 0.5} == {0.5}
    control = {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])}  # e1 alone
    rows = theory.retained(utility, safety, (0.5,), draws(), control)
    assert next(r["retained"] for r in rows if r["subspace"] == "utility") == pytest.approx(5 / 9)
    rows = theory.retained(utility, {}, (0.25,), draws())  # no safety gradient: nothing is removed
    assert all(r["retained"] == r["expected"] == pytest.approx(1.0) for r in rows)
    with pytest.raises(InputError, match="utility"):
        theory.retained({"w": torch.zeros(4, 2)}, safety, (0.5,), draws())


def test_random_directions_meet_the_lemma_on_average():
    utility, safety = ({"w": anchors.normal(20, 9, seed=s)} for s in (1, 2))
    found = [theory.retained(utility, safety, (0.2,), draws(s)) for s in range(60)]
    random = [r["retained"] for rows in found for r in rows if r["subspace"] == "random"]
    assert sum(random) / len(random) == pytest.approx(0.8, abs=0.02)


def test_what_is_kept_is_what_spf_keeps():
    model = small()
    _, utility = block_gradients(model, answer_loss, TASK)
    _, safety = block_gradients(model, answer_loss, ANCHOR)
    kept = next(
        r["retained"] for r in theory.retained(utility, safety, (0.1,), draws()) if r["subspace"] == "safety"
    )
    spf = SPF(answer_loss, ANCHOR, SPFSettings(0.1, test="always"))
    answer_loss(model, TASK).backward()
    spf(model)
    assert 1 - spf.records[0]["removed"] == pytest.approx(kept, abs=1e-5)


# One step.


class Bowl(nn.Module):
    """Loss on a batch c: half the sum of c * w squared; its Hessian is the diagonal matrix of c."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64))


def bowl(model, curvature):
    return (curvature[:, None] * model.w.square()).sum() / 2


def test_a_watched_step_on_a_bowl():
    model, safety = Bowl(), torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    watch = theory.Watch(safety, objective=bowl)
    optimise = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimise.zero_grad()
        (
            -bowl(model, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
        ).backward()  # climbs, against safety
        watch(model)
        optimise.step()
        watch.after(model)
    watch.finish(model)
    first = watch.records[0]
    assert first["anchor_loss"] == 1.0 and first["kept"] == pytest.approx(1.0)
    assert first["conflict"] == pytest.approx(-(2**-0.5))
    assert first["first_order"] == pytest.approx(0.2) and first["length"] == pytest.approx(0.1 * 2**0.5)
    assert first["rise"] == pytest.approx(1.1**2 - 1)
    assert first["bend"] == pytest.approx(2 * 0.1 / (0.1 * 2**0.5))
    moved, steps = theory.drift(watch.records), theory.against(watch.records)
    assert moved["rise"] == pytest.approx(1.21**2 - 1)
    assert moved["first_order_conflict"] + moved["curvature"] == pytest.approx(moved["rise"])
    assert moved["first_order_free"] == 0
    assert steps == {"conflicting": 1.0, "against": 1.0, "against_all": 1.0, "rising": 1.0}
    # Without its first-order part the rise is the curvature's, which the bound covers.
    assert moved["curvature"] <= moved["bound"] + 1e-12


def test_sharpness_is_the_largest_eigenvalue_and_leaves_the_weights():
    model = Bowl()
    value = theory.sharpness(model, torch.tensor([1.0, 7.0, 3.0], dtype=torch.float64), draws(), 40, bowl)
    assert value == pytest.approx(7.0, rel=1e-4) and torch.equal(model.w.detach(), torch.ones_like(model.w))


# Runs.


@pytest.mark.parametrize("optimiser", theory.OPTIMISERS)
def test_every_optimiser_takes_its_steps(optimiser):
    seen = []

    def look(model):
        seen.append(sum(float(p.detach().sum()) for p in model.parameters()))
        return {"loss": 0.0}

    records, looks = followed("sft", optimiser, look=look, look_at=(0, 2, 3))
    assert len(records) == 3 and [p["iteration"] for p in looks] == [0, 2, 3] and len(set(seen)) == 3
    assert all({"first_order", "length", "rise", "bend"} <= r.keys() and r["length"] > 0 for r in records)
    again, _ = followed("sft", optimiser)
    assert again == records


def test_sgd_goes_down_the_gradient_and_nowhere_else():
    record = followed("sft", "sgd", steps=1, rate=0.01)[0][0]
    inner = record["conflict"] * record["utility_norm"] * record["safety_norm"]
    assert record["first_order"] == pytest.approx(-0.01 * inner, rel=1e-4, abs=1e-9)
    assert record["length"] == pytest.approx(0.01 * record["utility_norm"], rel=1e-4)


def test_complete_spf_leaves_sgd_nothing_of_the_safety_gradient():
    task = conflicting()
    complete = followed("spf, complete", "sgd", steps=4, rate=0.01, task=task)[0]
    assert complete[0]["conflict"] < 0
    for r in complete:
        if r["conflict"] < 0:
            assert abs(r["first_order"]) < 1e-4 * r["length"] * r["safety_norm"] and r["kept"] < 1
        else:
            assert r["first_order"] <= 0 and r["kept"] == pytest.approx(1)
    # So many directions hold all that an update does against safety, momentum and scaling included.
    for r in followed("spf, update", "adamw 0.9", steps=4, rate=1e-3, task=task, share=0.9)[0]:
        assert r["first_order"] < 1e-3 * r["length"] * r["safety_norm"]
    assert theory.against(complete)["against"] == 0


def test_unknown_names_are_errors():
    with pytest.raises(InputError, match="arm"):
        followed("nothing", "sgd")
    with pytest.raises(InputError, match="optimiser"):
        followed("sft", "adam")
