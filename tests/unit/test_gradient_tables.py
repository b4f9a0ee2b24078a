"""Measures of gradients: against the definitions in `gradients`, against hand-made cases and against chance."""

import math

import anchors
import llamas
import pytest
import torch
import torch.nn.functional as F

from safebook import gradient_tables as t
from safebook import gradients as g
from safebook.errors import InputError
from safebook.subspaces import random_orthonormal
from safebook.worlds.chat_tokens import ChatBatch


def answers(rows=3, time=10, answer=4, seed=0):
    tokens = torch.randint(8, 30, (rows, time), generator=anchors.draws("answers", seed))
    mask = torch.zeros(rows, time - 1, dtype=torch.bool)
    mask[:, -answer:] = True
    return ChatBatch(tokens, mask, torch.full((rows,), time))


def matrices_of(model):
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 2)
    return model


def test_spectra_are_the_explained_ratio_of_each_matrix():
    model = matrices_of(llamas.model("grouped"))
    batches = [answers(1, seed=1), answers(2, seed=2)]
    found = t.spectra(model, batches, [1, 3, 0.25], first=5)
    for i, batch in enumerate(batches):
        _, gradients = g.block_gradients(model, t.answer_loss, batch)
        assert found.names == list(gradients)
        for j, gradient in enumerate(gradients.values()):
            share = max(1, round(0.25 * len(gradient)))
            expected = g.explained_ratio(gradient, [1, 3, min(share, *gradient.shape)])
            torch.testing.assert_close(found.ratios[i, j], expected, rtol=1e-6, atol=1e-8)
            values = torch.linalg.svdvals(gradient.double())
            torch.testing.assert_close(found.sigma[i, j], values[:5] / values[0], rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="batches"):
        t.spectra(model, [], [1])


def test_one_sequence_has_at_most_as_many_directions_as_answer_tokens_at_the_last_matrix():
    model = matrices_of(llamas.model())
    found = t.spectra(model, [answers(1, answer=3), answers(1, answer=5)], [1])
    last = max(i for i, name in enumerate(found.names) if t.matrix_of(name) == "down_proj")
    assert found.rank[:, last].tolist() == [3, 5]


def test_signal_counts_the_targets_that_carry_the_gradient():
    model, batch = llamas.model(), answers(2, answer=3)
    found = t.signal(model, batch)
    logits = model(input_ids=batch.tokens[:, :-1]).logits[batch.loss_mask].detach()
    own = batch.tokens[:, 1:][batch.loss_mask]
    delta = (logits.double().softmax(-1) - F.one_hot(own, logits.shape[-1])).square().sum(1)
    assert found["targets"] == 6 and found["loss"] == pytest.approx(
        float(F.cross_entropy(logits, own)), rel=1e-5
    )
    assert found["effective"] == pytest.approx(float(delta.sum() ** 2 / delta.square().sum()), rel=1e-5)
    assert 1 <= found["effective"] <= 6


def test_cosines_by_layer_are_those_of_the_layers_blocks():
    model = llamas.model("sharded")  # three layers
    one = [g.block_gradients(model, t.answer_loss, answers(1, seed=i))[1] for i in range(2)]
    two = [g.block_gradients(model, t.answer_loss, answers(2, seed=i))[1] for i in range(3, 6)]
    found = t.layer_cosines(one, two, 3)
    assert set(found) == {t.WHOLE, t.EMBEDDINGS, 0, 1, 2, 3} and found[0].shape == (2, 3)
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            assert found[t.WHOLE][i, j] == pytest.approx(g.cosine(a, b), abs=1e-9)
            part = [{n: x[n] for n in x if t.layer_of(n, 3) == 1} for x in (a, b)]
            assert found[1][i, j] == pytest.approx(g.cosine(*part), abs=1e-9)
    assert sum(t.layer_of(n, 3) == 3 for n in one[0]) == 2  # the last gain and the head
    with pytest.raises(InputError, match="gradients"):
        t.inner_products(one, [dict(list(two[0].items())[1:])])


def test_watching_changes_nothing_and_sees_the_current_weights():
    model, batch = llamas.model().train(), answers(4)
    watch = t.Watch({"one": answers(1, seed=7), "two": answers(1, seed=8)})
    for step in range(2):
        model.zero_grad()
        t.answer_loss(model, batch).backward()
        before = [p.grad.clone() for p in model.parameters()]
        watch(model)
        assert model.training and all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before))
        utility = g.block_gradients(model, t.answer_loss, batch)[1]
        loss, safety = g.block_gradients(model, t.answer_loss, watch.anchors["two"])
        last = watch.records[-1]
        assert last["step"] == step and last["anchor"] == "two"
        assert last["cosine"] == pytest.approx(g.cosine(utility, safety), abs=1e-6)
        assert last["anchor_loss"] == pytest.approx(loss)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
    assert len(watch.records) == 4


def test_overlaps_are_the_definition_at_every_rank():
    model = matrices_of(llamas.model("grouped"))
    one, many = (g.block_gradients(model, t.answer_loss, answers(n, seed=n))[1] for n in (1, 5))
    ranks = [1, 2, 8, 0.1]
    found, chance = t.overlaps(t.left_bases(one, ranks), t.left_bases(many, ranks), ranks)
    for i, name in enumerate(one):
        outputs = len(one[name])
        for j, rank in enumerate([1, 2, 8, max(1, round(0.1 * outputs))]):
            assert float(found[i, j]) == pytest.approx(g.overlap(one[name], many[name], rank), abs=1e-8)
            sizes = [len(g.leading_directions(x[name].double(), rank)[0].T) for x in (one, many)]
            assert float(chance[i, j]) == pytest.approx(g.overlap_chance(outputs, *sizes))
    zero = {name: torch.zeros_like(x) for name, x in one.items()}
    assert t.overlaps(t.left_bases(zero, ranks), t.left_bases(many, ranks), ranks)[0].isnan().all()


def test_captured_is_what_spf_would_remove_and_chance_is_k_over_m():
    utility = {"w": anchors.normal(12, 9)}
    safety = {"w": anchors.normal(12, 4, seed=1) @ anchors.normal(4, 9, seed=2)}
    held, chance = t.captured(t.left_bases(safety, [3]), utility, 3)
    assert float(held) == pytest.approx(g.removed_share(utility["w"], safety["w"], 3))
    assert float(chance) == pytest.approx(3 / 12)
    draws = anchors.draws("captured")
    random = [float(t.captured({"w": random_orthonormal(12, 3, draws)}, utility, 3)[0]) for _ in range(300)]
    mean, spread = sum(random) / 300, torch.tensor(random).std() / math.sqrt(300)
    assert abs(mean - 3 / 12) < 4 * float(spread)
    held, chance = t.captured(t.left_bases(safety, [8]), safety, 8)  # four directions hold all of it
    assert float(held) == pytest.approx(1) and float(chance) == pytest.approx(4 / 12)
