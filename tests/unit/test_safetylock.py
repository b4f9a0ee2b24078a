"""Extraction of locks: activations planted by hand, with known heads and directions; numpy and scipy as second opinions."""

import dataclasses

import joblib
import llamas
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from safebook.errors import InputError
from safebook.llama_activations import head_outputs
from safebook.messages import dialogues, prompts
from safebook.safetylock import (
    LockSettings,
    Samples,
    cosines,
    default_count,
    extract,
    make_lock,
    probe,
    projections,
    released,
    samples,
    top_heads,
)
from safebook.streams import stream

LAYERS, HEADS, WIDTH, TOKENS = 3, 4, 16, 5
PLANTED = {
    (0, 2): 8.0,
    (2, 1): 6.0,
    (2, 3): 4.0,
}  # head -> distance of its class means, noise having spread 1
CPU = torch.device("cpu")


def planted(pairs: int = 80, between: float = 0.0) -> tuple[Samples, dict]:
    """Noise in every head, and a direction in some. `between`: spread of what the tokens of one response share."""
    generator = stream(CPU, "test", "planted")
    safe = torch.arange(2 * pairs * TOKENS) < pairs * TOKENS
    own = torch.arange(2 * pairs).repeat_interleave(TOKENS)
    values = torch.randn(LAYERS, len(safe), HEADS, WIDTH, generator=generator)
    values += between * torch.randn(LAYERS, 2 * pairs, HEADS, WIDTH, generator=generator)[:, own]
    values += 3 * torch.randn(LAYERS, 1, HEADS, WIDTH, generator=generator)  # the mean of all tells nothing
    directions = {}
    for head, distance in PLANTED.items():
        direction = torch.randn(WIDTH, generator=generator)
        directions[head] = direction / direction.norm()
        side = torch.where(safe, 0.5, -0.5)[:, None]
        values[head[0], :, head[1]] += distance * side * directions[head]
    return Samples(values, safe, own % pairs), directions


def split() -> torch.Generator:
    return stream(CPU, "test", "split")


def test_planted_heads_are_found_in_order_of_strength_and_their_directions_recovered():
    found, directions = planted()
    probes = probe(found, LockSettings(), split())
    assert top_heads(probes, 3) == list(PLANTED)
    rest = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    for head, direction in directions.items():
        assert probes.directions[head] @ direction > 0.99  # its sign too: towards the safe class
        assert abs(probes.gaps[head] - PLANTED[head]) < 0.3
        assert probes.validation_accuracy[head] > 0.95
        rest[head] = False
    assert (probes.validation_accuracy[rest] < 0.6).all()
    lock = make_lock(probes, top_heads(probes, 3), alpha=2.0)
    assert lock.heads == tuple(PLANTED)
    for direction, sigma, head in zip(lock.directions, lock.sigma, lock.heads):
        assert torch.equal(direction, probes.directions[head]) and sigma == probes.sigma[head]


def test_the_probes_weights_as_directions():
    found, directions = planted()
    settings = LockSettings(direction="probe")
    probes = probe(found, settings, split())
    for head, direction in directions.items():
        assert probes.directions[head] @ direction > 0.9
    by_mean = probe(found, LockSettings(), split())
    assert not torch.allclose(probes.directions, by_mean.directions, atol=1e-3)
    assert torch.equal(probes.scores, by_mean.scores)
    along = projections(found, probes.directions)
    torch.testing.assert_close(probes.sigma, along.std(-1, correction=0).float())


def test_directions_and_sigmas_equal_numpy_in_float64():
    found, _ = planted(between=1.0)
    values, safe = found.values.numpy().astype(np.float64), found.chosen.numpy()
    theta = values[:, safe].mean(1) - values[:, ~safe].mean(1)
    length = np.linalg.norm(theta, axis=-1)
    unit = theta / length[..., None]
    along = (values * unit[:, None]).sum(-1)  # (layers, samples, heads)
    probes = probe(found, LockSettings(), split())
    np.testing.assert_allclose(probes.directions, unit, atol=1e-6)
    np.testing.assert_allclose(probes.gaps, length, rtol=1e-6)
    np.testing.assert_allclose(probes.sigma, along.std(1), rtol=1e-6)
    np.testing.assert_allclose(
        projections(found, torch.tensor(unit)), along.transpose(0, 2, 1), rtol=1e-10, atol=1e-10
    )
    within = probe(found, LockSettings(sigma="within"), split()).sigma
    variances = (along[:, safe].var(1) + along[:, ~safe].var(1)) / 2  # as many of both classes
    np.testing.assert_allclose(within, np.sqrt(variances), rtol=1e-6)
    # Pooled, sigma contains the gap between the classes: sigma^2 = within^2 + (gap / 2)^2.
    np.testing.assert_allclose(probes.sigma.square(), within.square() + (probes.gaps / 2).square(), rtol=1e-5)


def test_the_probe_minimises_the_penalised_log_loss():
    """Independent: scipy on the loss itself, 1/2 |w|^2 + sum log(1 + exp(-y (w x + b))), on the training pairs."""
    found, _ = planted(pairs=30)
    probes = probe(found, LockSettings(direction="probe"), split())
    chosen = torch.randperm(30, generator=split())[:18]
    train = torch.isin(found.pairs, chosen).numpy()
    sides = np.where(found.chosen.numpy(), 1.0, -1.0)
    for layer, head in [(0, 2), (1, 1)]:
        x = found.values[layer, :, head].double().numpy()

        def loss(wb, x=x):
            margins = sides[train] * (x[train] @ wb[:-1] + wb[-1])
            return wb[:-1] @ wb[:-1] / 2 + np.logaddexp(0, -margins).sum()

        best = minimize(loss, np.zeros(WIDTH + 1), method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9}).x
        margins = sides * (x @ best[:-1] + best[-1])
        assert abs(probes.train_accuracy[layer, head] - (margins[train] > 0).mean()) < 0.006  # one sample
        assert abs(probes.validation_accuracy[layer, head] - (margins[~train] > 0).mean()) < 0.009
        expected = np.logaddexp(0, -margins[~train]).mean()
        assert abs(probes.validation_loss[layer, head] - expected) < 2e-3
        weights = best[:-1] / np.linalg.norm(best[:-1])
        np.testing.assert_allclose(probes.directions[layer, head], weights, atol=5e-3)


def test_shuffled_labels_are_at_chance_by_pair_and_leak_by_token():
    """Tokens of one response resemble each other, so a probe recognises the responses that it was trained on.

    The released code splits by token; its accuracies of this data, where there is nothing to learn, look like success.
    """
    generator = stream(CPU, "test", "shuffled")
    pairs, width = 60, 128
    own = torch.arange(2 * pairs).repeat_interleave(TOKENS)
    responses = torch.randn(1, 2 * pairs, 4, width, generator=generator)
    values = responses[:, own] + 0.2 * torch.randn(1, len(own), 4, width, generator=generator)
    swapped = torch.rand(pairs, generator=generator) < 0.5  # which of a pair is called safe says nothing
    safe = (own < pairs) != swapped[own % pairs]
    found = Samples(values, safe, own % pairs)
    by_pair = probe(found, LockSettings(split="pair"), split())
    by_token = probe(found, LockSettings(split="token"), split())
    assert abs(by_pair.validation_accuracy.mean() - 0.5) < 0.08
    assert by_token.validation_accuracy.min() > 0.9
    as_released = probe(found, released(), split())  # the mean with the training accuracy hides it further
    expected = (by_token.train_accuracy + by_token.validation_accuracy) / 2
    torch.testing.assert_close(as_released.scores, expected)
    assert (by_pair.scores == by_pair.validation_accuracy).all() and (by_pair.train_accuracy > 0.99).all()


def test_a_split_by_pair_separates_pairs_and_keeps_classes_equal(monkeypatch):
    found, _ = planted(pairs=25)
    seen = []
    monkeypatch.setattr("safebook.safetylock._fit", lambda v, s, train: seen.append(train) or (0, 0, 0, v[0]))
    probe(found, LockSettings(), split())
    train = torch.tensor(seen[0])
    assert all((mask == seen[0]).all() for mask in seen)  # every head's probe has the same one
    assert not set(found.pairs[train].tolist()) & set(found.pairs[~train].tolist())
    assert train.sum() == 15 * 2 * TOKENS == 2 * (train & found.chosen).sum()


def test_same_seed_same_numbers_with_any_number_of_jobs():
    found, _ = planted(pairs=20)
    with joblib.parallel_config("threading"):  # processes take seconds to start
        first, again, parallel = (probe(found, LockSettings(), split(), jobs) for jobs in (1, 1, 2))
    other = probe(found, LockSettings(), stream(CPU, "test", "another split"))
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(getattr(first, name), getattr(parallel, name))
    assert not torch.equal(first.validation_loss, other.validation_loss)
    assert torch.equal(
        first.directions, other.directions
    )  # they use all samples, so the split does not matter


def test_ties_go_to_the_lower_loss_then_to_the_earlier_head():
    found, _ = planted(pairs=10)
    probes = dataclasses.replace(
        probe(found, LockSettings(), split()),
        scores=torch.tensor([[1.0, 0.5, 1.0], [0.9, 1.0, 1.0]]),
        validation_loss=torch.tensor([[0.3, 0.0, 0.1], [0.0, 0.1, 0.2]]),
    )
    assert top_heads(probes, 6) == [(0, 2), (1, 1), (1, 2), (0, 0), (1, 0), (0, 1)]
    assert top_heads(probes, 2) == [(0, 2), (1, 1)]


def test_k_is_the_papers_share():
    assert [default_count(*shape) for shape in ((32, 32), (8, 8), (12, 12), (16, 16), (2, 2))] == [
        24,
        2,
        3,
        6,
        1,
    ]


def test_cosines_compare_two_models_head_by_head():
    found, _ = planted()
    probes = probe(found, LockSettings(), split())
    torch.testing.assert_close(cosines(probes, probes), torch.ones(LAYERS, HEADS, dtype=torch.float64))
    mirrored = probe(dataclasses.replace(found, chosen=~found.chosen), LockSettings(), split())
    torch.testing.assert_close(cosines(probes, mirrored), -torch.ones(LAYERS, HEADS, dtype=torch.float64))


# from a model


@pytest.fixture(scope="module")
def answered():
    """Pairs: one request, two answers of different lengths, some shorter than five tokens."""
    w = llamas.words()
    lengths = [(1, 7), (6, 2), (5, 5), (8, 3), (4, 9), (2, 2)]
    chosen, rejected = [], []
    for chat, (long, short) in zip(llamas.chats(), lengths):
        chosen.append([*chat, {"role": "assistant", "content": " ".join(w[3 : 3 + long])}])
        rejected.append([*chat, {"role": "assistant", "content": " ".join(w[12 : 12 + short])}])
    return chosen, rejected


@pytest.mark.parametrize("shape", ["plain", "grouped", "bias", "llama3"])
def test_samples_of_responses_are_their_last_words_one_chat_at_a_time(answered, shape):
    chosen, rejected = answered
    model, tokenizer = llamas.model(shape), llamas.tokenizer()
    found = samples(model, tokenizer, chosen, rejected)
    expected, safe, pairs = [], [], []
    for number, chat in enumerate([*chosen, *rejected]):
        tokens = dialogues(tokenizer, [chat])[0].tokens
        text = chat[-1]["content"].split()
        assert tokenizer.decode(tokens[-1 - len(text) :]).split() == [
            *text,
            "<|end|>",
        ]  # so the words are at -1 - n .. -2
        at = list(range(-1 - min(5, len(text)), -1))
        expected.append(head_outputs(model, [tokens], at)[:, 0])
        safe += [number < len(chosen)] * len(at)
        pairs += [number % len(chosen)] * len(at)
    torch.testing.assert_close(found.values, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    assert found.chosen.tolist() == safe and found.pairs.tolist() == pairs
    in_twos = samples(model, tokenizer, chosen, rejected, batch=2)
    torch.testing.assert_close(found.values, in_twos.values, rtol=1e-4, atol=1e-5)


def test_samples_of_prompts_are_the_token_before_the_answer():
    model, tokenizer = llamas.model(), llamas.tokenizer()
    chats = llamas.chats()
    found = samples(model, tokenizer, chats[:4], chats[4:], LockSettings(position="prompt"))
    for number, asked in enumerate(prompts(tokenizer, chats)):
        assert tokenizer.decode(asked.tokens[-1]) == "<|assistant|>"
        alone = head_outputs(model, [asked.tokens], -1)[:, 0]
        torch.testing.assert_close(found.values[:, number], alone, rtol=1e-4, atol=1e-5)
    assert found.chosen.tolist() == [True] * 4 + [False] * 2 and found.pairs.tolist() == [0, 1, 2, 3, 0, 1]


def test_the_released_cut_drops_five_ids_whatever_they_are(answered):
    """With a template that ends in one token, it cuts off four words of every answer (and reads the request's tokens)."""
    chosen, rejected = answered
    chosen, rejected = chosen[1:2], rejected[1:2]
    model, tokenizer = llamas.model(), llamas.tokenizer()
    cut = samples(model, tokenizer, chosen, rejected, LockSettings(cut_tail=True, tokens=2))
    tokens = [d.tokens for d in dialogues(tokenizer, chosen + rejected)]
    expected = [head_outputs(model, [t[:-5]], [-2, -1])[:, 0] for t in tokens]
    torch.testing.assert_close(cut.values, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    content = chosen[0][-1]["content"].split()
    assert tokenizer.decode(tokens[0][-7:-5]).split() == content[:2] != content[-2:]


def test_extraction_notes_what_it_did_and_takes_given_heads(answered):
    chosen, rejected = answered
    model, tokenizer = llamas.model("grouped"), llamas.tokenizer()
    lock, probes = extract(
        model, tokenizer, chosen, rejected, heads=3, alpha=2, generator=split(), meta={"note": "test"}
    )
    assert lock.heads == tuple(top_heads(probes, 3)) and lock.alpha == 2.0
    assert lock.directions.shape == (3, 8) and lock.directions.dtype == torch.float32
    assert lock.meta["settings"]["tokens"] == 5 and lock.meta["shape"] == [2, 4]
    assert lock.meta["chats"] == [6, 6] and lock.meta["note"] == "test"
    accuracies = [float(probes.validation_accuracy[h]) for h in lock.heads]
    assert lock.meta["validation_accuracy"] == accuracies
    given, _ = extract(model, tokenizer, chosen, rejected, heads=[(1, 3), (0, 0)], generator=split())
    assert given.heads == ((1, 3), (0, 0)) and torch.equal(given.directions[0], probes.directions[1, 3])
    one, _ = extract(model, tokenizer, chosen, rejected, generator=split())
    assert len(one.heads) == 1  # 24 in 1,024 of eight heads


def test_a_head_made_to_differ_is_found_in_a_real_model(answered):
    """Only one value head of layer 0 can tell the two classes of answers apart: the words differ in its channels alone."""
    model, tokenizer = llamas.model("plain"), llamas.tokenizer()
    w = llamas.words()
    safe_words, unsafe_words = w[:10], w[10:20]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1)
            layer.self_attn.q_proj.weight.zero_()  # attention is the plain mean of what came before
        embedding = model.model.embed_tokens.weight
        embedding[:, 31] = 0
        for words, sign in ((safe_words, 1.0), (unsafe_words, -1.0)):
            embedding[tokenizer.convert_tokens_to_ids(words), 31] = 4 * sign
        values = model.model.layers[0].self_attn.v_proj.weight  # (heads * 8, 32)
        values[:, 31] = 0
        values[3 * 8 : 4 * 8, 31] = 1.0
    picks = stream(CPU, "test", "words")

    def answers(words):
        order = [torch.randperm(10, generator=picks)[:8].tolist() for _ in range(12)]
        return [
            [
                {"role": "user", "content": "yes"},
                {"role": "assistant", "content": " ".join(words[i] for i in o)},
            ]
            for o in order
        ]

    probes = extract(model, tokenizer, answers(safe_words), answers(unsafe_words), generator=split())[1]
    first = probes.gaps[0] / probes.sigma[0]  # how far apart the classes are, on each head's own scale
    assert first.argmax() == 3 and probes.validation_accuracy[0, 3] > 0.95
    assert (probes.directions[0, 3] > 0.2).all()  # all its channels read the planted one with weight 1


# bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [("position", "last"), ("tokens", 0), ("tokens", True), ("split", "none"), ("train_share", 1.0), ("score", "f1"),
     ("direction", "random"), ("sigma", "all")],
)  # fmt: skip
def test_bad_settings_name_the_parameter(name, value):
    with pytest.raises(InputError) as caught:
        LockSettings(**{name: value})
    assert caught.value.parameter == name


def test_bad_chats(answered):
    chosen, rejected = answered
    model, tokenizer = llamas.model(), llamas.tokenizer()
    empty = [[*chosen[0][:-1], {"role": "assistant", "content": " "}]]
    for first, second, settings, words in [
        (chosen, rejected[:-1], LockSettings(), "as many"),
        ([], [], LockSettings(), "at least one"),
        (chosen[:1], empty, LockSettings(), "chat 1 of the joined lists"),
        (chosen[:1], rejected[:1], LockSettings(cut_tail=True, tokens=30), "35 tokens"),
        (chosen[:1], rejected[:1], LockSettings(), "both classes"),  # no pair is left to validate on
        (chosen, rejected, LockSettings(position="prompt"), "user"),
    ]:
        with pytest.raises(InputError, match=words):
            extract(model, tokenizer, first, second, settings, generator=split())
    with pytest.raises(InputError, match="cut_tail"):
        LockSettings(position="prompt", cut_tail=True)


def test_bad_heads_and_strengths_stop_before_any_compute(answered):
    for heads, alpha, name in [
        (0, 6, "heads"),
        (9, 6, "heads"),
        (1, float("nan"), "alpha"),
        (1, "6", "alpha"),
    ]:
        with pytest.raises(InputError) as caught:
            extract(llamas.model(), None, *answered, heads=heads, alpha=alpha, generator=split())
        assert caught.value.parameter == name
    found, _ = planted(pairs=10)
    probes = probe(found, LockSettings(), split())
    for heads in ([], [(0, 0), (0, 0)], [(LAYERS, 0)], [(0, HEADS)], [(-1, 0)]):
        with pytest.raises(InputError, match="heads"):
            make_lock(probes, heads)
    found.values[1, :, 1] = 2.5  # a head that is the same everywhere has no direction
    with pytest.raises(InputError, match="differs"):
        make_lock(probe(found, LockSettings(), split()), [(1, 1)])
