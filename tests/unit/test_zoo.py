"""Models are found by what went into them; profiles and recipes say what that is."""

import json

import pytest
import torch

from safebook import paths, recipes, streams, zoo
from safebook.errors import InputError
from safebook.profiles import SIZES, profile
from safebook.worlds.pcfg import PCFGWorld


def test_keys_tell_what_went_in():
    keys = {
        (n, size, seed): zoo.key(n, size, seed) for n in zoo.ARTIFACTS for size in SIZES for seed in (0, 1)
    }
    assert len(set(keys.values())) == len(keys)
    assert all(len(k) == 12 and int(k, 16) >= 0 for k in keys.values())


@pytest.mark.parametrize(
    ("name", "seed", "parameter"), [("pcfg-magic", 0, "name"), ("pcfg-pretrained", -1, "seed")]
)
def test_unknown_models_are_refused(name, seed, parameter):
    with pytest.raises(InputError) as caught:
        zoo.path(name, "smoke", seed)
    assert caught.value.parameter == parameter
    with pytest.raises(InputError, match="size"):
        zoo.path("pcfg-pretrained", "huge", 0)


def test_build_is_idempotent_complete_and_resumable(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path)
    early = zoo.build("pcfg-ssft-medium", "smoke", 0, progress=False, stop_after_seconds=0.0)
    assert not (early / "meta.json").exists()  # out of time: a checkpoint somewhere, no model
    folder = zoo.build("pcfg-ssft-medium", "smoke", 0, progress=False)
    steps = zoo.snapshots("pcfg-ssft-medium", "smoke")
    kept = [f"after-{step}.safetensors" for step in steps[:-1]]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*kept, "meta.json", "model.safetensors"])
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert zoo.build("pcfg-ssft-medium", "smoke", 0, progress=False) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["history"]["loss"][-1]["iteration"] == profile("smoke").fine_tuning["medium"].iterations
    base, tuned = zoo.load("pcfg-pretrained", "smoke", 0), zoo.load("pcfg-ssft-medium", "smoke", 0)
    assert not torch.equal(base.head.weight, tuned.head.weight)
    assert not any(p.requires_grad for p in tuned.parameters())
    ways = [zoo.load("pcfg-ssft-medium", "smoke", 0, step) for step in steps]
    moved = [float((way.head.weight - base.head.weight).norm()) for way in ways]
    assert moved == sorted(moved) and moved[0] > 0  # each further along the way than the one before
    assert torch.equal(ways[-1].head.weight, tuned.head.weight)
    with pytest.raises(InputError, match="iteration"):
        zoo.load("pcfg-ssft-medium", "smoke", 0, 3)
    with pytest.raises(InputError, match="name"):
        zoo.snapshots("pcfg-pretrained", "smoke")


def test_streams_are_seeded_by_name_and_do_not_overlap():
    def draw(*names):
        return torch.rand(4, generator=streams.stream(torch.device("cpu"), *names)).tolist()

    assert draw("test", 0) == draw("test", 0)
    assert (
        len({tuple(draw(*n)) for n in (("test", 0), ("test", 1), ("validation", 0), ("fine-tuning", 0, 0))})
        == 4
    )


@pytest.mark.parametrize("name", (*zoo.FINE_TUNED, *zoo.ARMS))
def test_every_recipe_draws_the_same_batch_twice_and_has_a_finite_loss(name):
    p = profile("smoke")
    world, model = PCFGWorld(p.world), recipes.new_model(p, 0)
    recipe = recipes.fine_tuning(name, p, world, 0, model)
    for iteration in (0, 1):
        one, two = recipe.batches(iteration), recipe.batches(iteration)
        first = one.chosen if hasattr(one, "chosen") else one
        second = two.chosen if hasattr(two, "chosen") else two
        assert torch.equal(first.tokens, second.tokens)
        assert recipe.objective(model, one).isfinite()


def test_ssft_draws_safe_prompts_at_the_published_share():
    p = profile("smoke")
    world = PCFGWorld(p.world)
    recipe = recipes.fine_tuning("pcfg-ssft-medium", p, world, 0, recipes.new_model(p, 0))
    null = world.vocabulary.null
    refused = 0
    for iteration in range(150):
        batch = recipe.batches(iteration)
        answer = batch.tokens[:, 1:][batch.loss_mask & world.role_mask(batch.lengths, "output1")]
        refused += bool((answer == null).all())
    assert abs(refused / 150 - 0.2) < 0.1


def test_paper_profile_has_the_published_settings():
    p = profile("paper")
    assert (p.model.layers, p.model.heads, p.model.width, p.model.hidden, p.model.context) == (
        6,
        6,
        192,
        768,
        159,
    )
    assert (p.pretraining.iterations, p.pretraining.batch, p.pretraining.clip) == (100_000, 512, None)
    assert (p.pretraining.learning_rate, p.pretraining.minimum_rate) == (1e-3, 1e-5)
    assert (p.pretraining.warmup, p.pretraining.decay_until) == (20_000, 80_000)
    for rate, value in (("medium", 1e-4), ("small", 1e-5)):
        s = p.fine_tuning[rate]
        assert (s.iterations, s.batch, s.warmup, s.decay_until, s.clip) == (10_000, 512, 2_000, 8_000, 1.0)
        assert s.learning_rate == pytest.approx(value) and s.minimum_rate == pytest.approx(value / 100)
    assert p.mixture.at(0.05) == pytest.approx((0.5, 0.1, 0.2, 0.2))
    assert p.mixture.at(1.0) == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_every_difference_between_laptop_and_paper_carries_a_reason():
    """No setting of the laptop profile differs from the paper's unless the comparison table shows it."""
    from dataclasses import asdict

    from safebook.profiles import comparison

    rows = comparison()
    assert all(row["paper"] != row["laptop"] and len(row["reason"]) > 3 for row in rows)
    laptop, paper = profile("laptop"), profile("paper")
    explained = {
        "world": {"alphabet", "terminals", "operators", "duplicates", "operand_lengths", "sequence_length"}
        | {"always_unsafe", "always_safe"},
        "model": {"vocabulary", "context", "layers", "heads", "width", "hidden", "embedding_std"},
        "pretraining": {
            "iterations",
            "batch",
            "learning_rate",
            "minimum_rate",
            "warmup",
            "decay_until",
            "precision",
        },
        "mixture": {"start", "end", "hold"},
        "protocols": set(),
    }
    for part, allowed in explained.items():
        a, b = asdict(getattr(laptop, part)), asdict(getattr(paper, part))
        assert {name for name in a if a[name] != b[name]} <= allowed, part
    assert laptop.model.hidden == 4 * laptop.model.width and paper.model.hidden == 4 * paper.model.width
