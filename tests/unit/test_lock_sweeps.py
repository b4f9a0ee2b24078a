"""Many locks in shared batches give what each gives alone, and the variants of a lock differ in one thing only."""

import llamas
import pytest
import torch

from safebook import lock_sweeps, safetylock
from safebook.errors import InputError
from safebook.generation import greedy
from safebook.lock_apply import locked
from safebook.locks import Lock, unit
from safebook.safetylock import DEFAULT, LockSettings, Samples
from safebook.streams import stream

CPU = torch.device("cpu")


def lock(seed: int, heads=((0, 1), (1, 0), (1, 3)), width: int = 8, alpha: float = 6.0) -> Lock:
    draw = stream(CPU, "sweep test", seed)
    return Lock(
        heads,
        unit(torch.randn(len(heads), width, generator=draw)),
        torch.rand(len(heads), generator=draw),
        alpha,
    )


@pytest.fixture(scope="module")
def found() -> Samples:
    """Two layers, three heads, classes apart by different amounts, two samples a pair."""
    draw = stream(CPU, "sweep samples")
    chosen = torch.arange(80) < 40
    values = torch.randn(2, 80, 3, 4, generator=draw)
    for layer in range(2):
        for head in range(3):
            values[layer, chosen, head, head] += 0.5 + layer + head
    return Samples(values, chosen, torch.arange(80) % 40 // 2)


def probes(found, **changes):
    return safetylock.probe(found, LockSettings(**changes), stream(CPU, "split"))


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_shared_batches_give_what_each_lock_gives_alone(batch):
    model, words, chats = llamas.model("grouped"), llamas.tokenizer("grouped"), llamas.chats("grouped")
    chats = [chat for chat in chats if chat[-1]["role"] == "user"]
    locks = [lock(0), None, lock(1, ((0, 2),)), lock(0, alpha=-6.0)]
    together = lock_sweeps.answers_under(model, words, locks, chats, 8, batch)
    for one, texts in zip(locks, together):
        if one is None:
            assert texts == greedy(model, words, chats, 8)
            continue
        with locked(model, one):
            assert texts == greedy(model, words, chats, 8)
    assert len({tuple(texts) for texts in together}) == len(locks)  # every lock changed something
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_writing_fails(monkeypatch):
    model, words = llamas.model(), llamas.tokenizer()

    def fail(*_, **__):
        raise RuntimeError("stop")

    monkeypatch.setattr(lock_sweeps, "greedy_tokens", fail)
    with pytest.raises(RuntimeError, match="stop"):
        lock_sweeps.answers_under(model, words, [lock(0)], llamas.chats()[:1], 2)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_matched_and_equal_shifts_keep_the_displacement():
    first = lock(3)
    for sign in (1, -1):
        other = lock_sweeps.matched(lock(4, alpha=sign * 2.0), first.displacement())
        assert other.displacement() == pytest.approx(first.displacement(), rel=1e-6)
        assert other.alpha * sign > 0
    even = lock_sweeps.equal_shifts(first)
    lengths = even.shifts().norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(3))
    assert even.displacement() == pytest.approx(first.displacement(), rel=1e-6)
    assert torch.equal(even.directions, first.directions) and even.heads == first.heads
    with pytest.raises(InputError, match="lock"):
        lock_sweeps.matched(lock(3, alpha=0.0), 1.0)


def test_choices_of_heads(found):
    p, draw = probes(found), stream(CPU, "choice")
    ranked = lock_sweeps.choose(p, "all", 2, draw)
    assert sorted(ranked) == [(layer, head) for layer in range(2) for head in range(3)]
    assert lock_sweeps.choose(p, "by probe", 2, draw) == ranked[:2]
    assert lock_sweeps.choose(p, "worst", 2, draw) == ranked[-2:]
    assert p.scores[ranked[0]] >= p.scores[ranked[-1]]
    drawn = lock_sweeps.choose(p, "at random", 2, stream(CPU, "a"))
    assert len(set(drawn)) == 2 and drawn == lock_sweeps.choose(p, "at random", 2, stream(CPU, "a"))
    with pytest.raises(InputError, match="how"):
        lock_sweeps.choose(p, "best", 2, draw)


def test_spread_within_and_weights_are_those_of_a_refit(found):
    p = probes(found)
    torch.testing.assert_close(
        lock_sweeps.spread_within(found, p).sigma, probes(found, sigma="within").sigma, rtol=1e-5, atol=0
    )
    own = safetylock.make_lock(p, safetylock.top_heads(p, 3), 6.0)
    cheap = lock_sweeps.along_weights(found, own, DEFAULT, stream(CPU, "split"))
    whole = safetylock.make_lock(probes(found, direction="probe"), own.heads, 6.0)
    torch.testing.assert_close(cheap.directions, whole.directions, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cheap.sigma, whole.sigma, rtol=1e-5, atol=1e-6)


def test_curves_and_tests_share_no_request_on_the_testbed():
    asked, curves, tests = lock_sweeps.prompt_parts("testbed", "smoke", 22, 11)
    assert asked.is_testbed and set(curves.sets) == set(tests.sets) == {"hexphi", "benign"}
    assert [len(tests.sets[n]) for n in ("hexphi", "benign")] == [22, 11]
    assert [len(curves.sets[n]) for n in ("hexphi", "benign")] == [11, 6]
    assert len(set(curves.sets["hexphi"].categories)) == 11  # evenly through the categories
    for name in curves.sets:
        pairs = [set(asked.world.pairs(part.sets[name].requests)) for part in (curves, tests)]
        assert not pairs[0] & pairs[1]


def test_a_checkpoints_prompts_are_cut_apart(tmp_path):
    harmful, benign, pairs = (tmp_path / name for name in ("harmful.csv", "benign.csv", "pairs.csv"))
    harmful.write_text("prompt\n" + "\n".join(f"h{i}" for i in range(7)))
    benign.write_text("prompt\n" + "\n".join(f"b{i}" for i in range(8)))
    pairs.write_text("prompt,chosen,rejected\nq,no,yes\n")
    files = dict(
        zip(("harmful_prompts", "benign_prompts", "preference_pairs"), map(str, (harmful, benign, pairs)))
    )
    _, *parts = lock_sweeps.prompt_parts("somewhere", "smoke", 100, 100, **files)
    names = [{n: [c[-1]["content"] for c in p.sets[n].chats] for n in p.sets} for p in parts]
    assert sorted(names[0]["harmful"] + names[1]["harmful"]) == [f"h{i}" for i in range(7)]
    assert sorted(names[0]["benign"] + names[1]["benign"]) == [
        "b4",
        "b5",
        "b6",
        "b7",
    ]  # the lock reads the others
    benign.write_text("prompt\nb0\nb1\n")
    with pytest.raises(InputError, match="benign_prompts"):
        lock_sweeps.prompt_parts("somewhere", "smoke", 100, 100, **files)


def test_removed_and_kept_are_shares_of_what_was_there():
    assert lock_sweeps.removed(0.8, 0.2) == pytest.approx(0.75) and lock_sweeps.removed(0.5, 0.6) < 0
    assert lock_sweeps.removed(0.0, 0.0) == 0.0
    assert lock_sweeps.kept(0.8, 0.2) == pytest.approx(0.25) and lock_sweeps.kept(0.0, 0.0) == 0.0
