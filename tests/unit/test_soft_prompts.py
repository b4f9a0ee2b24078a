"""The soft-prompt attack: places and positions, one step by hand, norms, and what counts as success."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safebook.activations import mlp_hidden, mlp_input
from safebook.behaviour import answers, greedy
from safebook.errors import InputError
from safebook.models import GPT
from safebook.profiles import profile
from safebook.sensitivity import sensitivity, slopes
from safebook.settings import ModelSettings
from safebook.soft_prompts import attack, insert, observe, radius, soft_embeddings, step, target_loss
from safebook.worlds.instructions import compliance, prompts
from safebook.worlds.pcfg import PCFGWorld

P = profile("smoke")
WORLD = PCFGWorld(P.world)
NULL = WORLD.vocabulary.null


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(seed=0, context=P.model.context):
    s = P.model
    small = ModelSettings(s.vocabulary, context, 2, s.heads, s.width, s.hidden, s.embedding_std)
    m = GPT(small, generator(seed)).eval().requires_grad_(False)
    m.head.weight.mul_(20)  # else all logits are nearly equal, and so are all losses
    return m


def drawn(n=8, seed=0):
    return prompts(WORLD, n, generator(seed), unsafe=True)


def batch(n=8, seed=0):
    return compliance(WORLD, drawn(n, seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(1, 5), st.integers(2, 9))
def test_insertion_equals_putting_lists_together(k, n, time):
    g = generator(7 * k + n)
    x, delta = torch.randn(n, time, 3, generator=g), torch.randn(n, k, 3, generator=g)
    at = torch.randint(time, (n,), generator=g)
    found = insert(x, at, delta)
    for i, d in enumerate(at.tolist()):
        assert torch.equal(found[i], torch.cat([x[i, :d], delta[i], x[i, d:]]))


def test_soft_tokens_that_are_real_tokens_give_the_ordinary_model():
    """On `.. x s1 s2 > y` with s the embeddings of real tokens, losses equal those of that token sequence."""
    m, b = model(), batch()
    words = torch.randint(WORLD.vocabulary.size, (len(b), 2), generator=generator(3))
    found = target_loss(m, b, m.wte(words))
    for i, (at, length) in enumerate(zip(b.decision.tolist(), b.lengths.tolist())):
        tokens = torch.cat([b.tokens[i, :at], words[i], b.tokens[i, at : at + length + 2]])
        logits = m(tokens[None, :-1])[0]
        loss = torch.nn.functional.cross_entropy(logits[at + 2 :], tokens[at + 3 :])
        torch.testing.assert_close(found[i], loss, rtol=1e-4, atol=1e-5)


def test_one_step_by_hand():
    """Gradient (3, 4) has the unit (0.6, 0.8); a step of 1 from (1, 0) ends at (0.4, -0.8), inside 0.5 at half of that."""
    delta = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    gradient = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    moved = step(delta, gradient, torch.tensor([1.0]), torch.tensor([10.0]))
    torch.testing.assert_close(moved, torch.tensor([[[0.4, -0.8], [0.0, 0.0]]]))
    inside = step(delta, gradient, torch.tensor([1.0]), torch.tensor([0.5]))
    torch.testing.assert_close(inside[0, 0], 0.5 * torch.tensor([0.4, -0.8]) / 0.8**0.5)


def test_radius_is_the_mean_norm_of_the_prompts_tokens():
    m, b = model(), batch(3)
    for i, at in enumerate(b.decision.tolist()):
        expected = m.wte.weight[b.tokens[i, : at + 1]].norm(dim=1).mean()
        torch.testing.assert_close(radius(m, b)[i], expected)


def test_equals_a_plain_loop_over_samples():
    """Per-sample attack written out with autograd on one prompt at a time, from the same start."""
    m, b, k, steps = model(), batch(3), 2, 3
    found = attack(m, b, k, steps, generator(5))
    start = 0.01 * torch.randn(3, k, P.model.width, generator=generator(5))
    for i in range(3):
        at, length, d = int(b.decision[i]), int(b.lengths[i]), start[i].clone()
        tokens = b.tokens[i, : at + length + 2]
        n = m.wte(tokens[: at + 1]).norm(dim=-1).mean()
        for _ in range(steps):
            d = d.detach().requires_grad_()
            e = m.wte(tokens[:-1])
            states = m.states(torch.cat([e[:at], d, e[at:]])[None])[0, at + k :]
            torch.nn.functional.cross_entropy(m.head(states), tokens[at + 1 :]).backward()
            d = d.detach() - 2 * n / steps * d.grad / d.grad.norm(dim=1, keepdim=True)
            d = d * (n / d.norm(dim=1, keepdim=True)).clamp(max=1)
        torch.testing.assert_close(found[i], d, rtol=2e-3, atol=2e-4)


def test_the_loss_falls_and_the_norms_are_kept():
    m, b = model(), batch(12)
    start = 0.01 * torch.randn(12, 3, P.model.width, generator=generator(1))
    delta = attack(m, b, 3, 20, generator(1))
    assert (target_loss(m, b, delta) < target_loss(m, b, start)).all()
    assert (delta.norm(dim=-1) <= radius(m, b)[:, None] * (1 + 1e-5)).all()


def test_more_soft_tokens_and_steps_are_a_stronger_attack():
    """On average over samples; a property of the attack, whatever the model."""
    m, b = model(), batch(24)
    losses = [
        target_loss(m, b, attack(m, b, k, steps, generator(1))).mean() for k, steps in ((1, 10), (6, 10))
    ]
    assert losses[1] < losses[0]


def test_deterministic_and_free_of_chunks():
    m, b = model(), batch(7)
    first, again = (attack(m, b, 2, 3, generator(4)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(attack(m, b, 2, 3, generator(4), chunk=3), first, rtol=2e-3, atol=2e-4)


def test_observing_plain_prompts_agrees_with_behaviour_and_activations():
    p = drawn(30)
    m, b = model(), compliance(WORLD, p)
    found = observe(m, b, P.window, NULL, chunk=7)
    assert torch.equal(found.success, answers(WORLD, m, p, second=False).comply)
    torch.testing.assert_close(found.hidden, mlp_hidden(m, b, P.window)[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.read, mlp_input(m, b)[-1], rtol=1e-4, atol=1e-5)


def test_success_is_what_greedy_decoding_writes():
    """On answers of the model's own, all succeed; with one symbol changed, none does; null openings count as refusing."""
    m, b = model(), batch(20)
    longest = int(b.lengths.max()) + 1
    own = b.take(torch.arange(20))
    written = greedy(m, b, longest)
    after = b.decision[:, None] + 1 + torch.arange(longest)
    own.tokens = b.tokens.scatter(1, after, written)
    found = observe(m, own, P.window, NULL)
    assert found.success.all() and not found.refusing.any()
    middle = b.decision + 1 + b.lengths // 2
    wrong = own.take(torch.arange(20))
    changed = (own.tokens.gather(1, middle[:, None]) + 1) % WORLD.vocabulary.size
    wrong.tokens = own.tokens.scatter(1, middle[:, None], changed)
    assert not observe(m, wrong, P.window, NULL).success.any()
    first = own.tokens.gather(1, b.decision[:, None] + 1)[:, 0]
    other = own.take(torch.arange(20))
    other.tokens = own.tokens.scatter(
        1, b.decision[:, None] + 1, ((first + 1) % WORLD.vocabulary.size)[:, None]
    )
    null_of_each = [
        bool(observe(m, other.take(torch.tensor([i])), 1, int(first[i])).refusing) for i in range(20)
    ]
    assert all(null_of_each)


def test_the_window_moves_with_the_soft_tokens():
    m, b = model(), batch(5)
    delta = torch.randn(5, 3, P.model.width, generator=generator(2))
    found = observe(m, b, 2, NULL, delta)
    hidden = []
    hook = m.blocks[-1].mlp.act.register_forward_hook(lambda _m, _i, out: hidden.append(out))
    x = insert(m.wte(b.tokens[:, :-4]), b.decision, delta)
    m.states(x)
    hook.remove()
    prompt, at = soft_embeddings(m, b, delta)
    assert torch.equal(at, b.decision + 3) and torch.equal(prompt, x[:, : int(at.max()) + 1])
    for i, d in enumerate(at.tolist()):
        torch.testing.assert_close(x[i, d], m.wte.weight[WORLD.vocabulary.end_of_text])
        torch.testing.assert_close(found.hidden[i], hidden[0][i, d : d + 2].mean(0), rtol=1e-4, atol=1e-5)


def test_without_soft_tokens_the_sensitivity_is_the_ordinary_one():
    m, b = model(), batch(5)
    x, at = soft_embeddings(m, b, torch.zeros(5, 0, P.model.width))
    torch.testing.assert_close(slopes(m, x, at), sensitivity(m, b), rtol=1e-4, atol=1e-8)


def test_bad_input_is_refused_before_any_step():
    m, b = model(), batch(4)
    for wrong in ({"k": 0, "steps": 1}, {"k": 1, "steps": 0}, {"k": 1.5, "steps": 1}):
        with pytest.raises(InputError, match=r"k|steps"):
            attack(m, b, generator=generator(), **wrong)
    time = int((b.decision + b.lengths).max()) + 1
    tight = model(context=time + 1)
    assert attack(tight, b, 1, 1, generator()).shape == (4, 1, P.model.width)
    with pytest.raises(InputError, match="context"):
        attack(tight, b, 2, 1, generator())
    with pytest.raises(InputError, match="window"):
        observe(m, b, 99, NULL)


def test_no_gradient_is_left_in_the_model():
    m, b = model(), batch(4)
    attack(m, b, 1, 2, generator())
    assert all(p.grad is None for p in m.parameters())
