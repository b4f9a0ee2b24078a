"""The one training loop: schedule, weight decay, exact resumption, determinism, failure."""

import math

import pytest
import torch
from torch import nn

from safebook.errors import InputError
from safebook.models import GPT
from safebook.objectives import language_modelling
from safebook.profiles import profile
from safebook.settings import ModelSettings, TrainingSettings
from safebook.training import optimizer, train
from safebook.worlds.instructions import pretraining_batch
from safebook.worlds.pcfg import PCFGWorld

WORLD = PCFGWorld(profile("smoke").world)
MODEL = ModelSettings(
    WORLD.vocabulary.size, WORLD.settings.sequence_length - 1, layers=2, heads=2, width=16, hidden=32
)
SETTINGS = TrainingSettings(30, 8, 1e-2, 1e-4, warmup=5, decay_until=25, clip=1.0)


def model(seed=0):
    return GPT(MODEL, torch.Generator().manual_seed(seed))


def batches(iteration):
    return pretraining_batch(WORLD, 8, (0.1, 0.4, 0.4, 0.1), torch.Generator().manual_seed(iteration))


def weights(m):
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def test_schedule_warms_up_decays_by_cosine_and_stays():
    s = TrainingSettings(100, 1, 1.0, 0.1, warmup=10, decay_until=60)
    assert (
        s.rate(0) == pytest.approx(0.1)
        and s.rate(9) == pytest.approx(1.0)
        and s.rate(10) == pytest.approx(1.0)
    )
    assert s.rate(35) == pytest.approx(0.55)  # half way down
    assert s.rate(60) == s.rate(99) == pytest.approx(0.1)


def test_only_matrices_of_linear_layers_decay():
    m = model()
    decayed, free = optimizer(m, SETTINGS).param_groups
    inside = {id(p) for p in decayed["params"]}
    assert decayed["weight_decay"] == 1e-4 and free["weight_decay"] == 0
    assert inside == {id(x.weight) for x in m.modules() if isinstance(x, nn.Linear)}
    assert len(decayed["params"]) + len(free["params"]) == len(list(m.parameters()))


def test_training_is_deterministic_and_lowers_the_loss():
    runs = []
    for _ in range(2):
        m = model()
        history = train(m, language_modelling, batches, SETTINGS)
        runs.append((weights(m), history.loss))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert runs[0][1][-1]["loss"] < runs[0][1][0]["loss"] - 0.5
    assert runs[0][1][-1]["iteration"] == 30


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    whole, broken = model(), model()
    full = train(whole, language_modelling, batches, SETTINGS)
    file = tmp_path / "checkpoint.safetensors"
    pieces = 0
    while True:
        fresh = model(seed=pieces + 5)  # what it starts with must not matter: all comes from the file
        if pieces == 0:
            fresh = broken
        history = train(fresh, language_modelling, batches, SETTINGS, checkpoint=file, stop_after_seconds=0.0)
        pieces += 1
        if history.loss and history.loss[-1]["iteration"] == 30:
            break
        assert file.exists() and pieces < 40
    assert pieces > 5
    assert torch.equal(weights(fresh), weights(whole))
    assert history.loss == full.loss
    assert not list(tmp_path.glob("*.tmp"))


class Tied(nn.Module):
    """Embedding and head are one matrix, under two names."""

    def __init__(self, seed):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("shift", torch.zeros(4))
        with torch.no_grad():
            self.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
            self.shift.normal_(generator=torch.Generator().manual_seed(seed + 1))

    def forward(self, tokens):
        return self.head(self.embedding(tokens) + self.shift)


def test_a_model_with_tied_weights_resumes_too_and_they_stay_tied(tmp_path):
    def tokens(iteration):
        return torch.randint(7, (8, 5), generator=torch.Generator().manual_seed(iteration))

    def objective(m, ids):
        return nn.functional.cross_entropy(m(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    settings = TrainingSettings(6, 8, 1e-2, 1e-3, warmup=1, decay_until=6)
    whole, start, file = Tied(0), Tied(0), tmp_path / "checkpoint.safetensors"
    train(whole, objective, tokens, settings)
    train(start, objective, tokens, settings, checkpoint=file, stop_after_seconds=0.0)
    resumed = Tied(9)  # what it starts with must not matter
    train(resumed, objective, tokens, settings, checkpoint=file)
    assert not torch.equal(start.head.weight, whole.head.weight)
    assert torch.equal(resumed.head.weight, whole.head.weight) and torch.equal(resumed.shift, whole.shift)
    assert resumed.head.weight is resumed.embedding.weight


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    train(model(), language_modelling, batches, SETTINGS, checkpoint=file, stop_after_seconds=0.0)
    with pytest.raises(InputError, match="checkpoint"):
        train(Tied(0), language_modelling, batches, SETTINGS, checkpoint=file)


def test_evaluation_and_transform_are_called_where_they_should():
    transformed = []

    def evaluate(m):
        assert not m.training and not torch.is_grad_enabled()
        return {"x": 1.0}

    def zero_the_head(m):
        transformed.append(float(m.head.weight.grad.norm()))
        m.head.weight.grad.zero_()

    m = model()
    settings = TrainingSettings(6, 8, 1e-2, 1e-2, 0, 6, weight_decay=0.0)
    before = m.head.weight.detach().clone()
    history = train(
        m,
        language_modelling,
        batches,
        settings,
        transform=zero_the_head,
        evaluate=evaluate,
        evaluate_at=(0, 3, 6),
    )
    seen = [point["iteration"] for point in history.evaluations]
    assert seen == [0, 3, 6]
    assert len(transformed) == 6 and min(transformed) > 0
    assert torch.equal(m.head.weight, before)  # the transform's gradient is the one that is applied
    assert not m.training


def test_clipping_bounds_the_step():
    """With plain SGD-like first steps Adam hides clipping, so look at the gradients that reach the optimiser."""
    norms = []

    def blow_up(m):
        for p in m.parameters():
            p.grad.mul_(1e3)

    m = model()
    train(
        m, language_modelling, batches, TrainingSettings(1, 8, 1e-3, 1e-3, 0, 1, clip=1.0), transform=blow_up
    )
    norms.append(torch.stack([p.grad.norm() for p in m.parameters()]).norm())
    assert norms[0] == pytest.approx(1.0, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="iteration"):
        train(model(), lambda m, b: language_modelling(m, b) * math.nan, batches, SETTINGS)


def test_bad_settings_name_the_parameter():
    for options, name in (
        ({"decay_until": 200}, "decay_until"),
        ({"precision": "float8"}, "precision"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ):
        values = {
            "iterations": 100,
            "batch": 8,
            "learning_rate": 1.0,
            "minimum_rate": 0.1,
            "warmup": 1,
            "decay_until": 50,
        }
        with pytest.raises(InputError) as caught:
            TrainingSettings(**(values | options))
        assert caught.value.parameter == name
