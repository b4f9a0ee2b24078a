"""The model against an independent formulation in float64, and its cache against the plain forward pass."""

import math

import pytest
import torch

from safebook.behaviour import answers, exact, greedy, hits
from safebook.errors import InputError
from safebook.models import GPT
from safebook.profiles import profile
from safebook.settings import ModelSettings
from safebook.worlds.instructions import compliance, prompts, refusal
from safebook.worlds.pcfg import PCFGWorld

SETTINGS = ModelSettings(vocabulary=40, context=39, layers=3, heads=4, width=32, hidden=128)


def small(seed=0):
    model = GPT(SETTINGS, torch.Generator().manual_seed(seed))
    with torch.no_grad():  # larger weights than at initialisation, so that a wrong block cannot hide
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return model.eval()


def reference(model, tokens):
    """The published block written out with einsum and explicit softmax, in float64."""
    s, w = model.settings, {k: v.double() for k, v in model.state_dict().items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * w[name + ".weight"] + w[name + ".bias"]

    position = torch.arange(tokens.shape[1]).double()[:, None]
    angle = position / 10_000 ** (torch.arange(0, s.width, 2).double() / s.width)
    code = torch.stack([angle.sin(), angle.cos()], -1).reshape(len(position), s.width)
    x = w["wte.weight"][tokens] + code
    time, head = tokens.shape[1], s.width // s.heads
    future = torch.ones(time, time).triu(1).bool()
    for i in range(s.layers):
        x = norm(x, f"blocks.{i}.ln_1")  # replaces the stream
        qkv = x @ w[f"blocks.{i}.attn.c_attn.weight"].T + w[f"blocks.{i}.attn.c_attn.bias"]
        q, k, v = (part.view(*part.shape[:2], s.heads, head) for part in qkv.split(s.width, -1))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(head)
        mixed = torch.einsum(
            "bhij,bjhd->bihd", scores.masked_fill(future, -torch.inf).softmax(-1), v
        ).flatten(2)
        x = x + mixed @ w[f"blocks.{i}.attn.c_proj.weight"].T + w[f"blocks.{i}.attn.c_proj.bias"]
        h = (
            x @ w[f"blocks.{i}.mlp.c_fc.weight"].T + w[f"blocks.{i}.mlp.c_fc.bias"]
        )  # no LayerNorm before the MLP
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w[f"blocks.{i}.mlp.c_proj.weight"].T + w[f"blocks.{i}.mlp.c_proj.bias"]
    return norm(x, "ln_f") @ w["head.weight"].T


def test_parity_with_an_independent_formulation():
    model = small()
    tokens = torch.randint(40, (5, 39), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(tokens).double(), reference(model, tokens), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(model.double()(tokens), reference(model, tokens), atol=1e-5, rtol=1e-5)


def test_parameter_count_at_paper_size():
    model = GPT(ModelSettings())
    head = model.head.weight.numel()
    blocks = sum(p.numel() for p in model.blocks.parameters())
    assert head == 59 * 192  # 11.3 k
    assert abs((blocks + 59 * 192) / 1e6 - 2.68) < 0.01


def test_no_position_sees_the_future():
    model = small()
    tokens = torch.randint(40, (1, 30), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 40
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.allclose(before[:, 20:], after[:, 20:])


def test_the_cache_gives_the_same_logits():
    model = small()
    tokens = torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(1))
    caches = [{} for _ in model.blocks]
    parts = [model(tokens[:, :10], caches)] + [model(tokens[:, i : i + 1], caches) for i in range(10, 30)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-4)


def test_outcomes_without_decoding_equal_greedy_decoding():
    """The induction argument of `behaviour.answers`, checked token by token on a half-trained model."""
    from safebook.objectives import language_modelling
    from safebook.settings import TrainingSettings
    from safebook.training import train

    world = PCFGWorld(profile("smoke").world)
    model = GPT(profile("smoke").model, torch.Generator().manual_seed(0))

    def batches(step):  # identity prompts, half of them refused: quickly learned, never perfectly
        g = torch.Generator().manual_seed(step)
        p = prompts(world, 32, g, unsafe=bool(step % 2))
        p.tasks[:] = p.tasks * 0 + step % 2
        return (refusal if step % 2 else compliance)(world, p)

    train(model, language_modelling, batches, TrainingSettings(150, 32, 3e-3, 3e-3, 5, 150))
    p = prompts(world, 200, torch.Generator().manual_seed(999), unsafe=True)
    p.tasks[:, :] = torch.randint(2, (200, 1), generator=torch.Generator().manual_seed(1))
    found = answers(world, model, p)
    true, null = compliance(world, p), refusal(world, p)
    written = greedy(model, true, world.settings.operand_lengths[1] + 1)
    for i, n in enumerate(p.lengths.tolist()):
        out, at = written[i, : n + 1], slice(n + 7, 2 * n + 8)
        complied = torch.equal(out, true.tokens[i, at])
        assert bool(found.comply[i]) == complied
        assert bool(found.refuse[i]) == (torch.equal(out, null.tokens[i, at]) and not complied)
    assert (found.comply.int() + found.refuse.int() + found.other.int() == 1).all()
    assert 0 < found.refuse.float().mean() < 1  # both outcomes occur, so the test can fail


def test_exact_needs_every_masked_target():
    correct = torch.tensor([[True, False, True], [True, True, True]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    assert exact(correct, mask).tolist() == [False, True]


def test_hits_compare_each_position_with_the_next_token():
    model = small()
    world = PCFGWorld(profile("laptop").world)
    batch = compliance(world, prompts(world, 4, torch.Generator().manual_seed(0), unsafe=False))
    wide = GPT(profile("laptop").model, torch.Generator().manual_seed(0)).eval()
    found = hits(wide, batch)
    assert torch.equal(found, wide(batch.tokens[:, :-1]).argmax(-1) == batch.tokens[:, 1:])
    assert model.settings.context == 39


def test_initialisation_is_seeded():
    one, same, other = (GPT(SETTINGS, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.wte.weight, other.wte.weight)
    assert abs(one.blocks[0].mlp.c_proj.weight.std() - 0.02 / math.sqrt(6)) < 1e-3


def test_bad_settings_and_too_long_inputs_are_refused():
    with pytest.raises(InputError, match="width"):
        ModelSettings(width=100, heads=6)
    with pytest.raises(InputError, match="layers"):
        ModelSettings(layers=0)
    with pytest.raises(InputError, match="tokens"):
        small()(torch.zeros(1, 40, dtype=torch.long))
