"""Objectives against plain per-sample sums, TRL's DPO loss and the analytic gradient relation of DPO and unlearning."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from safebook.models import GPT
from safebook.objectives import (
    Preference,
    dpo,
    dpo_paper,
    language_modelling,
    reference_nll,
    sequence_nll,
    unlearning,
)  # fmt: skip
from safebook.profiles import profile
from safebook.worlds.instructions import compliance, prompts, refusal
from safebook.worlds.pcfg import PCFGWorld, concatenate

P = profile("smoke")
WORLD = PCFGWorld(P.world)


def model(seed=0):
    m = GPT(P.model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())))
    return m


@pytest.fixture
def pair():
    p = prompts(WORLD, 12, torch.Generator().manual_seed(0), unsafe=True, rho=0.3)
    return Preference(refusal(WORLD, p), compliance(WORLD, p))


def plain_nll(m, batch):
    """Sum of masked token losses, sample by sample, from the full logits."""
    out = []
    for tokens, mask in zip(batch.tokens, batch.loss_mask):
        logp = F.log_softmax(m(tokens[None, :-1])[0].double(), -1)
        out.append(-sum(logp[j, tokens[j + 1]] for j in mask.nonzero()[:, 0]))
    return torch.stack(out)


def gradient(loss, m):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.parameters()))])


def test_nll_is_the_sum_of_masked_token_losses(pair):
    m = model()
    torch.testing.assert_close(
        sequence_nll(m, pair.chosen).double(), plain_nll(m, pair.chosen), atol=1e-4, rtol=1e-5
    )
    total = plain_nll(m, pair.chosen).sum() / pair.chosen.loss_mask.sum()
    assert float(language_modelling(m, pair.chosen)) == pytest.approx(float(total), rel=1e-5)


def test_unlearning_is_the_published_formula(pair):
    m, length = model(), pair.chosen.tokens.shape[1] - 1
    expected = (plain_nll(m, pair.chosen) - 0.1 * plain_nll(m, pair.rejected)).mean() / length
    assert float(unlearning(m, pair, 0.1)) == pytest.approx(float(expected), rel=1e-4)


def test_dpo_of_the_paper_is_the_published_formula(pair):
    m, ref = model(0), model(1)
    pair.reference = reference_nll(ref, pair)
    assert not pair.reference.requires_grad
    w = plain_nll(ref, pair.chosen) - plain_nll(m, pair.chosen)
    lose = plain_nll(ref, pair.rejected) - plain_nll(m, pair.rejected)
    expected = -torch.log(torch.sigmoid((0.1 * w - 0.01 * lose) / (pair.chosen.tokens.shape[1] - 1))).mean()
    assert float(dpo_paper(m, pair, 0.1, 0.01)) == pytest.approx(float(expected), rel=1e-5)


class PerTokenLogProbabilities(torch.nn.Module):
    """Our model behind the interface that TRL's loss calls: input ids and labels in, per-token values out."""

    def __init__(self, gpt):
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids, labels, **_):
        logits = self.gpt(input_ids[:, :-1])
        targets, counted = input_ids[:, 1:], labels[:, 1:] != -100
        logp = F.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
        zeros = torch.zeros_like(logp)
        return SimpleNamespace(
            log_probs=torch.where(counted, logp, zeros),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


def test_standard_dpo_equals_trl(pair):
    """The loss code of TRL's trainer itself, on the same model, reference and answers; gradients too."""
    trl = pytest.importorskip("trl")
    m, ref = model(0), model(1)
    pair.reference = reference_nll(ref, pair)
    both = concatenate([pair.chosen, pair.rejected])
    no_column = torch.zeros(len(both), 1, dtype=torch.bool)
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=same, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0],
        beta=0.1, label_smoothing=0.0, use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )  # fmt: skip
    inputs = {
        "input_ids": both.tokens,
        "completion_mask": torch.cat([no_column, both.loss_mask], 1).long(),
        "ref_chosen_logps": -pair.reference[0],
        "ref_rejected_logps": -pair.reference[1],
    }
    theirs = trl.DPOTrainer._compute_loss(trainer, PerTokenLogProbabilities(m), inputs, False)
    ours = dpo(m, pair, 0.1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(ours, m), gradient(theirs, m), atol=1e-5, rtol=1e-4)


def test_dpo_starts_at_log_two(pair):
    m = model()
    pair.reference = reference_nll(m, pair)
    assert float(dpo(m, pair, 0.1)) == pytest.approx(0.6931472, rel=1e-5)
    assert float(dpo_paper(m, pair, 0.1, 0.01)) == pytest.approx(0.6931472, rel=1e-5)


def test_released_dpo_and_unlearning_have_proportional_gradients(pair):
    """With the released betas the sigmoid stays near 1/2, so the two protocols are nearly one algorithm."""
    m = model()
    pair.reference = reference_nll(m, pair)
    a = gradient(dpo_paper(m, pair, 0.1, 0.01), m)
    b = gradient(unlearning(m, pair, 0.1), m)
    assert F.cosine_similarity(a, b, 0) > 0.9999
    assert float(a.norm() / b.norm()) == pytest.approx(0.05, rel=1e-2)


def test_standard_dpo_moves_towards_the_chosen_answer(pair):
    m = model()
    pair.reference = reference_nll(m, pair)
    before = sequence_nll(m, pair.chosen) - sequence_nll(m, pair.rejected)
    step = torch.optim.SGD(m.parameters(), 1e-2)
    for _ in range(5):
        step.zero_grad()
        dpo(m, pair, 0.1).backward()
        step.step()
    after = sequence_nll(m, pair.chosen) - sequence_nll(m, pair.rejected)
    assert after.mean() < before.mean() - 0.1
