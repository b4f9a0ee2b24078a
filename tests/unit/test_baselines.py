"""Defences at fine-tuning time: each has the property that defines it, on gradients and weights small enough to know."""

from functools import partial

import llamas
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from safebook import baselines
from safebook import baselines_gradients as gradients
from safebook.chat_objectives import answer_loss, token_losses
from safebook.errors import InputError
from safebook.gradients import block_gradients
from safebook.settings import TrainingSettings
from safebook.training import train
from safebook.worlds import chat_tokens
from safebook.worlds.chat_tokens import ChatBatch

SETTINGS = TrainingSettings(12, 2, 1e-2, 1e-2, warmup=0, decay_until=12, weight_decay=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=0, answers=(3, 8)):
    """Random words, one row an answer length."""
    lengths = torch.tensor([5 + n for n in answers])
    tokens = torch.randint(8, 30, (len(answers), int(lengths.max())), generator=generator(seed))
    place = torch.arange(1, tokens.shape[1])
    mask = (place >= 5) & (place < lengths[:, None])
    return ChatBatch(tokens, mask, lengths)


ANCHOR = batch(9, answers=(4,))


class Vectors(nn.Module):
    """Two blocks. `along` has whatever gradient it is given."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(2, 3))
        self.second = nn.Parameter(torch.zeros(4))


def along(model, wanted):
    return (model.first * wanted[0]).sum() + (model.second * wanted[1]).sum()


def flat(parts):
    return torch.cat([g.reshape(-1) for g in parts]).double().numpy()


def transformed(utility, safety, transform=gradients.surgery, **options):
    """The gradient that `transform` leaves, and the transform's second argument as flat vectors."""
    model = Vectors()
    along(model, utility).backward()
    transform(along, safety, **options)(model)
    return model.first.grad, model.second.grad


def drawn(seed):
    g = generator(seed)
    return torch.randn(2, 3, generator=g), torch.randn(4, generator=g)


def pair(conflict):
    """Random (utility, safety) gradients that conflict or do not."""
    for seed in range(100):
        utility, safety = drawn(2 * seed), drawn(2 * seed + 1)
        if (flat(utility) @ flat(safety) < 0) == conflict:
            yield utility, safety


# -------------------------------------------------------------------- loss mixing and KL


def test_mixing_adds_the_anchors_gradient_times_the_weight():
    model, task = llamas.model(), batch()
    _, utility = block_gradients(model, answer_loss, task)
    _, safety = block_gradients(model, answer_loss, ANCHOR)
    loss, both = block_gradients(model, baselines.mixed(answer_loss, ANCHOR, 0.3), task)
    with torch.no_grad():
        assert loss == pytest.approx(float(answer_loss(model, task) + 0.3 * answer_loss(model, ANCHOR)))
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, utility[name] + 0.3 * safety[name], atol=1e-6, rtol=1e-4)
        assert baselines.mixed(answer_loss, ANCHOR, 0)(model, task) == answer_loss(model, task)


def test_the_divergence_is_kl_from_the_reference_and_flat_where_they_agree():
    model, reference = llamas.model(seed=1), llamas.model(seed=2)
    logits = [m(input_ids=ANCHOR.tokens[:, :-1]).logits[ANCHOR.loss_mask] for m in (reference, model)]
    p, q = (torch.distributions.Categorical(logits=x.double()) for x in logits)
    expected = torch.distributions.kl_divergence(p, q).mean()
    assert float(gradients.divergence_from(reference)(model, ANCHOR)) == pytest.approx(
        float(expected), rel=1e-5
    )
    loss, flat_ones = block_gradients(reference, gradients.divergence_from(reference), ANCHOR)
    assert abs(loss) < 1e-6 and max(float(g.abs().max()) for g in flat_ones.values()) < 1e-5


# -------------------------------------------------------------------- gradient surgery


def test_surgery_leaves_gradients_that_agree_untouched():
    for (utility, safety), _ in zip(pair(conflict=False), range(10)):
        for before, after in zip(utility, transformed(utility, safety)):
            assert torch.equal(before, after)


def test_surgery_makes_conflicting_gradients_orthogonal_and_takes_nothing_else():
    for (utility, safety), _ in zip(pair(conflict=True), range(10)):
        u, s, after = flat(utility), flat(safety), flat(transformed(utility, safety))
        assert abs(after @ s) < 1e-5 * np.linalg.norm(u) * np.linalg.norm(s)
        np.testing.assert_allclose(after, u - (u @ s) / (s @ s) * s, atol=1e-6)
        added = flat(transformed(utility, safety, add=0.5))
        np.testing.assert_allclose(added, after + 0.5 * s, atol=1e-6)


def test_one_conflicting_block_is_no_conflict():
    """The test is global: the first block conflicts, both together do not."""
    utility = torch.tensor([[1.0, 0, 0], [0, 0, 0]]), torch.tensor([3.0, 0, 0, 0])
    safety = torch.tensor([[-1.0, 0, 0], [0, 0, 0]]), torch.tensor([1.0, 0, 0, 0])
    cosines = []
    after = transformed(utility, safety, cosines=cosines)
    assert all(torch.equal(a, b) for a, b in zip(utility, after))
    assert cosines == [pytest.approx(2 / (10**0.5 * 2**0.5))]


def test_pcgrad_is_the_sum_of_the_gradients_each_projected_on_the_others_normal_plane():
    for conflict in (True, False):
        for (utility, safety), _ in zip(pair(conflict), range(5)):
            tasks = [flat(utility), flat(safety)]
            total = np.zeros(10)
            for mine, other in (tasks, tasks[::-1]):  # the algorithm as published, task by task
                total += mine - min(0.0, mine @ other) / (other @ other) * other
            np.testing.assert_allclose(flat(transformed(utility, safety, gradients.pcgrad)), total, atol=1e-6)


def test_blocks_without_a_task_gradient_get_none():
    model = Vectors()
    (model.first * torch.ones(2, 3)).sum().backward()
    gradients.surgery(along, (-torch.ones(2, 3), torch.ones(4)))(model)
    assert model.second.grad is None
    torch.testing.assert_close(model.first.grad, torch.zeros(2, 3))  # orthogonal on the block that both have


def test_on_a_llama_surgery_ends_the_conflict_and_a_small_step_does_not_raise_the_anchors_loss():
    """SGD on what opposes the anchor raises its loss; on what surgery leaves, only by a second-order term."""
    model = llamas.model()
    against = lambda m, b: -answer_loss(m, b)  # noqa: E731
    before = float(answer_loss(model, ANCHOR))
    changes = []
    for transform in (lambda m: None, gradients.surgery(answer_loss, ANCHOR)):
        tried = llamas.model()
        (against(tried, ANCHOR) + answer_loss(tried, batch())).backward()
        transform(tried)
        with torch.no_grad():
            for p in tried.parameters():
                p -= 1e-4 * p.grad
        changes.append(float(answer_loss(tried, ANCHOR)) - before)
    assert changes[0] > 0 and abs(changes[1]) < 0.02 * changes[0]


def test_safegrad_at_the_aligned_model_changes_nothing():
    """There the divergence is flat but for rounding, whose direction must not count, whichever way it points."""
    for sign in (1, -1):
        model = llamas.model()
        (sign * answer_loss(model, batch())).backward()
        before = {n: p.grad.clone() for n, p in model.named_parameters()}
        gradients.surgery(gradients.divergence_from(llamas.model()), ANCHOR)(model)
        assert all(torch.equal(p.grad, before[n]) for n, p in model.named_parameters())


def test_safegrad_away_from_it_ends_the_conflict_with_the_divergence():
    """Here the task is to go on drifting away from the aligned model."""
    model, divergence = llamas.model(seed=1), gradients.divergence_from(llamas.model(seed=2))
    (-divergence(model, ANCHOR) + answer_loss(model, batch())).backward()
    found = [p.grad for p in model.parameters()]
    _, safety = block_gradients(model, divergence, ANCHOR)
    before = flat(found) @ flat(safety.values())
    gradients.surgery(divergence, ANCHOR)(model)
    after = flat([p.grad for p in model.parameters()]) @ flat(safety.values())
    assert before < 0 and abs(after) < 1e-5 * abs(before)


def test_surgery_runs_in_the_training_loop_and_twice_the_same():
    runs = []
    for _ in range(2):
        model, cosines = llamas.model(), []
        transform = gradients.surgery(answer_loss, ANCHOR, cosines=cosines)
        train(model, answer_loss, batch, SETTINGS, transform=transform)
        runs.append([*model.parameters()])
        assert len(cosines) == SETTINGS.iterations and max(map(abs, cosines)) <= 1
    assert all(torch.equal(a, b) for a, b in zip(*runs))


# -------------------------------------------------------------------- Lisa


def test_lisa_alternates_and_leaves_no_batch_out():
    _, batches = baselines.lisa(answer_loss, lambda i: ("task", i), lambda i: ("safe", i), 2, 3)
    found = [batches(i) for i in range(11)]
    assert [b.state for b in found] == ["safety"] * 2 + ["task"] * 3 + ["safety"] * 2 + ["task"] * 3 + [
        "safety"
    ]
    assert [i for i, b in enumerate(found) if b.switch] == [0, 2, 5, 7, 10]
    assert [b.batch[1] for b in found if b.state == "task"] == list(range(6))
    assert [b.batch for b in found if b.state == "safety"] == [("safe", i) for i in range(5)]
    assert batches(7) == found[7]  # a function of the iteration alone


def test_lisas_proximal_term_pulls_to_where_the_other_state_ended():
    objective, batches = baselines.lisa(along, lambda i: drawn(1), lambda i: drawn(2), 2, 3, rho=0.7)
    model = Vectors()
    ends = []
    for i in range(8):
        found = batches(i)
        if found.switch:
            ends.append([p.detach().clone() for p in model.parameters()])  # the other state ends here
        plain = drawn(1) if found.state == "task" else drawn(2)
        model.zero_grad()
        objective(model, found).backward()
        for p, own, end in zip(model.parameters(), plain, ends[-1]):
            torch.testing.assert_close(p.grad, own + 0.7 * (p.detach() - end))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    assert len(ends) == 4


def test_a_larger_rho_keeps_the_task_state_nearer_to_the_safety_state():
    distances = []
    for rho in (0.0, 1.0, 100.0):
        model, kept = llamas.model(), {}
        objective, batches = baselines.lisa(answer_loss, batch, lambda i: ANCHOR, 4, 8, rho=rho)

        def keep(model, iteration, kept=kept):
            kept[iteration] = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

        train(model, objective, batches, SETTINGS, keep=keep, keep_at=(4, 12))
        distances.append(float((kept[12] - kept[4]).norm()))
    assert distances[0] > 1.1 * distances[1] > 1.1 * distances[2]


def test_lisas_proximal_term_can_start_late_and_never_starts_amid_a_state():
    objective, batches = baselines.lisa(
        along, lambda i: drawn(1), lambda i: drawn(2), 2, 3, 5.0, proximal_from=3
    )
    model = Vectors()
    objective(model, batches(2))
    with torch.no_grad():
        model.first += 1
    assert float(objective(model, batches(2))) == float(along(model, drawn(1)))
    objective(Vectors(), batches(2))
    assert float(objective(model, batches(3))) == pytest.approx(
        float(along(model, drawn(1))) + 2.5 * 6, rel=1e-5
    )
    fresh, _ = baselines.lisa(along, lambda i: drawn(1), lambda i: drawn(2), 2, 3)
    with pytest.raises(RuntimeError, match="iteration 3"):
        fresh(model, batches(3))


# -------------------------------------------------------------------- ConstrainedSFT


def test_betas_follow_the_place_in_the_answer():
    found = baselines.token_betas(batch(answers=(3, 8)).loss_mask)
    np.testing.assert_allclose(found, [0.5, 2, 2, 0.5, 2, 2, 2, 2, 0.1, 0.1, 0.1])


def test_constrained_weights_match_the_formula():
    losses, reference = torch.tensor([3.0, 0.5, 2.0, 0.01]), torch.tensor([1.0, 1.0, 2.0, 40.0])
    betas = torch.tensor([0.5, 2.0, 0.1, 2.0])
    ratio = reference.double().numpy() - losses.double().numpy()  # log pi - log pi_ref
    expected = np.maximum(1e-3, 2 * (1 - 1 / (1 + np.exp(-betas.numpy() * ratio))))
    found = baselines.constrained_weights(losses, reference, betas)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] > 1 > found[1] and found[2] == 1 and found[3] == pytest.approx(1e-3)


def test_constrained_sft_starts_as_sft_and_follows_the_published_objective():
    """Its gradient is that of - (2 / beta_t) log sigmoid(beta_t (log pi - log pi_ref)), summed over tokens."""
    reference, data = llamas.model(seed=1), batch()
    referenced = baselines.with_reference(reference, lambda i: data)(0)
    assert float(baselines.constrained_sft(reference, referenced)) == pytest.approx(
        float(answer_loss(reference, data)), rel=1e-6
    )
    model = llamas.model(seed=1)
    with torch.no_grad():
        for p, q in zip(model.parameters(), llamas.model(seed=2).parameters()):
            p.lerp_(q, 0.05)

    def published(model, found):
        betas = baselines.token_betas(found.batch.loss_mask)
        ratio = found.reference - token_losses(model, found.batch)
        return (-2 / betas * F.logsigmoid(betas * ratio)).mean()

    _, ours = block_gradients(model, baselines.constrained_sft, referenced)
    _, theirs = block_gradients(model, published, referenced)
    _, sft = block_gradients(model, answer_loss, data)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4)
    assert not all(torch.allclose(gradient, sft[name], rtol=1e-2) for name, gradient in ours.items())


def test_constrained_sft_keeps_first_tokens_nearer_to_the_aligned_model():
    """Same steps: an answer's first tokens gain less than under SFT."""
    data, gains = batch(answers=(8, 8)), {}
    for name in ("sft", "constrained"):
        model, reference = llamas.model(seed=3), llamas.model(seed=3)
        if name == "sft":
            train(model, answer_loss, lambda i: data, SETTINGS)
        else:
            batches = baselines.with_reference(reference, lambda i: data)
            train(model, partial(baselines.constrained_sft, beta=1.0), batches, SETTINGS)
        with torch.no_grad():
            gain = (token_losses(reference, data) - token_losses(model, data)).view(2, 8).mean(0)
        gains[name] = float(gain[:5].mean())
    assert 0 < gains["constrained"] < 0.5 * gains["sft"]


# -------------------------------------------------------------------- BackdoorAlign


def test_the_secret_is_random_words_that_the_tokenizer_knows():
    tokenizer = chat_tokens.tokenizer()
    secret = baselines.secret_prompt(tokenizer, generator())
    ids = tokenizer(secret, add_special_tokens=False)["input_ids"]
    assert len(ids) == 150 and not set(ids) & {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    assert len(set(ids)) > 75
    assert secret == baselines.secret_prompt(tokenizer, generator())
    assert secret != baselines.secret_prompt(tokenizer, generator(1))


def test_only_safety_rows_carry_the_secret_and_inference_looks_like_them():
    rows = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    safety = [
        [{"role": "user", "content": "c"}, {"role": "assistant", "content": "no"}],
        [{"role": "system", "content": "s"}, *rows[0]],
    ]
    data = baselines.backdoor_align(rows, safety, "x y")
    assert data[0] == rows[0] and len(data) == 3
    assert data[1] == [{"role": "system", "content": "x y"}, *safety[0]]
    assert data[2] == [{"role": "system", "content": "x y s"}, *rows[0]]
    assert safety[1][0]["content"] == "s"
    assert baselines.with_secret([safety[0][:1]], "x y")[0] == data[1][:2]


# -------------------------------------------------------------------- AsFT


def state(**matrices):
    return {f"{name}_proj.weight": torch.tensor(value) for name, value in matrices.items()}


class Projection(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.q_proj = nn.Linear(2, 2, bias=False)
        self.q_proj.weight = nn.Parameter(torch.tensor(weight))


def zero(model, batch):
    return torch.zeros(())


def nothing(model, batch):
    return 0.0 * model.q_proj.weight.sum()


def test_asft_charges_what_lies_outside_the_alignment_direction():
    """V = diag(3, 0), so that C = diag(3, 0), exactly diag(1, 0). dW = [[1, 0], [2, 0]]."""
    base, aligned = state(q=[[0.0, 0], [0, 0]]), state(q=[[3.0, 0], [0, 0]])
    model = Projection([[4.0, 0], [2, 0]])
    exact = baselines.asft(nothing, base, aligned, weight=2.0, exact=True)
    assert float(exact(model, None)) == pytest.approx(2 * 2**2)
    published = baselines.asft(nothing, base, aligned, weight=2.0)
    assert float(published(model, None)) == pytest.approx(2 * (2**2 + (1 - 3) ** 2))
    exact(model, None).backward()
    torch.testing.assert_close(model.q_proj.weight.grad, torch.tensor([[0.0, 0], [8, 0]]))
    assert float(published(Projection([[3.0, 0], [0, 0]]), None)) == 0


def test_asft_on_a_llama_is_zero_at_the_aligned_model_and_trains():
    base, model = llamas.model(seed=1).state_dict(), llamas.model(seed=2)
    objective = baselines.asft(answer_loss, base, model.state_dict(), weight=10.0)
    aligned = {name: value.clone() for name, value in model.state_dict().items()}
    assert float(objective(model, ANCHOR)) == float(answer_loss(model, ANCHOR))
    distances = []
    for chosen in (answer_loss, objective):
        tuned = llamas.model(seed=2)
        train(tuned, chosen, batch, SETTINGS)
        change = [tuned.state_dict()[n] - aligned[n] for n in aligned if n.endswith("_proj.weight")]
        distances.append(float(sum(c.square().sum() for c in change)))
    assert distances[1] < 0.8 * distances[0]


def test_asft_is_precise_and_remembers_the_aligned_weights():
    """bfloat16 of the training loop would lose the difference; a state dict changes with the model it is of."""
    base, model = llamas.model(seed=1), llamas.model(seed=2)
    objective = baselines.asft(lambda m, b: m.lm_head.weight.sum() * 0, base.state_dict(), model.state_dict())
    with torch.no_grad():
        for p, q in zip(model.parameters(), llamas.model(seed=3).parameters()):
            p.lerp_(q, 1e-3)
        exact = float(objective(model, None))
        with torch.autocast("cpu", torch.bfloat16):
            assert float(objective(model, None)) == pytest.approx(exact, rel=1e-5)
    assert exact > 0


def test_asft_reads_the_update_of_adapters():
    base, aligned = llamas.model(seed=1).state_dict(), llamas.model(seed=2).state_dict()
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(llamas.model(seed=2), config)
    endings = ("q_proj.weight", "v_proj.weight")
    adapted = baselines.asft(zero, base, aligned, endings=endings)(model, None)
    assert adapted.requires_grad
    merged = baselines.asft(zero, base, aligned, endings=endings)(model.merge_and_unload(), None)
    assert float(adapted) == pytest.approx(float(merged), rel=1e-4) and float(adapted) > 0


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: baselines.mixed(answer_loss, ANCHOR, -1), "weight"),
        (lambda: gradients.surgery(answer_loss, ANCHOR, float("nan")), "add"),
        (lambda: baselines.lisa(answer_loss, batch, batch, 0), "safety_steps"),
        (lambda: baselines.lisa(answer_loss, batch, batch, rho=-1), "rho"),
        (lambda: baselines.secret_prompt(llamas.tokenizer(), generator(), 0), "length"),
        (lambda: baselines.backdoor_align([], [], " "), "secret"),
        (lambda: baselines.asft(nothing, state(q=[[1.0]]), state(q=[[1.0]])), "aligned"),
        (
            lambda: baselines.asft(zero, state(q=[[1.0]]), state(q=[[2.0]]))(Vectors(), None),
            "endings",
        ),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(InputError, match=name):
        call()
