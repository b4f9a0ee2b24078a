"""What a lock costs: equal work is timed, the model ends as it was, training stops where it should."""

import llamas
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from safebook import lock_cost
from safebook.errors import InputError
from safebook.lock_apply import bias_edit
from safebook.settings import TrainingSettings
from safebook.training import Recipe

HEADS = [(0, 1), (1, 2), (1, 3)]


def lock(seed=0):
    return lock_cost.random_lock(HEADS, 8, 0.5, torch.Generator().manual_seed(seed))


def test_distribution_leaves_the_model_as_it_was():
    model = llamas.model()
    taken = lock_cost.distribution(model, lock(), 3)
    assert len(taken) == 3 and min(taken) > 0
    assert all(layer.self_attn.o_proj.bias is None for layer in model.model.layers)
    with lock_cost.biased(model, lock()):
        assert model.model.layers[0].self_attn.o_proj.bias is not None
    assert model.model.layers[0].self_attn.o_proj.bias is None


def test_every_answer_is_written_to_the_same_length(monkeypatch):
    """Also where the model would end it: the number of tokens that pass is the same with and without a lock."""
    model, seen = llamas.model(), []
    forward = model.forward

    def counted(**named):
        seen.append(tuple(named["input_ids"].shape))
        return forward(**named)

    monkeypatch.setattr(model, "forward", counted)
    tokens = torch.randint(30, (3, 5), generator=torch.Generator().manual_seed(0))
    table = lock_cost.rates(model, lock(), tokens, 7, 2)
    once = [(3, 5)] + [(3, 1)] * 6
    assert seen == once * 4 * 3
    assert len(table) == 8 and (table["tokens_per_second"] > 0).all()
    assert table.groupby("version").size().to_dict() == {"none": 2, "bias": 2, "hook": 2, "none again": 2}


def test_slowdown_is_the_median_of_paired_ratios():
    rows = [
        ("none", 1, 100.0),
        ("bias", 1, 50.0),
        ("none", 2, 90.0),
        ("bias", 2, 90.0),
        ("none", 3, 110.0),
        ("bias", 3, 100.0),
    ]
    table = pd.DataFrame(rows, columns=["version", "round", "tokens_per_second"])
    assert lock_cost.slowdown(table, "bias") == pytest.approx(0.1)
    assert lock_cost.slowdown(table, "none") == 0


def recipe(steps):
    tokens = torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(1))

    def loss(model, batch):
        logits = model(batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    settings = TrainingSettings(steps, 4, 1e-3, 1e-3, 0, steps, weight_decay=0.0, clip=1.0)
    return Recipe(loss, lambda iteration: tokens, settings, lambda model: {})


def test_training_stops_at_the_first_check_that_reaches_the_target():
    harms = iter([0.9, 0.6, 0.2, 0.1, 0.0])
    points = lock_cost.train_until(llamas.model(), recipe(16), lambda model: next(harms), 0.25)
    assert [p.step for p in points] == [1, 2, 4] and [p.harm for p in points] == [0.9, 0.6, 0.2]
    assert 0 < points[0].seconds < points[1].seconds < points[2].seconds
    assert lock_cost.first(points, 0.6) == (points[1], True)
    assert lock_cost.first(points, 0.1) == (points[2], False)
    never = lock_cost.train_until(llamas.model(), recipe(5), lambda model: 1.0, 0.25)
    assert [p.step for p in never] == [1, 2, 4, 5]


def test_checks_do_not_count_as_training():
    import time

    def slow(model):
        time.sleep(0.5)
        return 1.0

    points = lock_cost.train_until(llamas.model(), recipe(4), slow, 0.0)
    pause = points[-1].seconds - points[0].seconds
    assert pause < 1.0  # two checks of half a second lie between


def test_an_edit_trains_one_matrix_alone():
    model, before = llamas.model(), llamas.model().state_dict()
    lock_cost.train_until(model, recipe(2), lambda model: 1.0, 0.0, "layers.1.mlp.down_proj")
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
    assert lock_cost.training_memory(model, "layers.1.mlp.down_proj") == 3 * 4 * 32 * 40
    with pytest.raises(InputError):
        lock_cost.train_until(model, recipe(2), lambda model: 1.0, 0.0, "nowhere")


def test_memory_of_a_lock_is_that_of_the_biases_it_writes():
    model = llamas.model()
    expected = lock_cost.lock_memory(model, lock())
    before = {name for name, _ in model.named_parameters()}
    bias_edit(model, lock())
    added = [p for name, p in model.named_parameters() if name not in before]
    assert sum(p.numel() * p.element_size() for p in added) == expected == 2 * 32 * 4


def test_the_most_distant_layer_is_told_by_the_relative_gap():
    chosen, rejected = torch.ones(3, 4, 5), torch.ones(3, 4, 5)
    chosen[0] *= 10  # long, and a little apart
    rejected[0] = chosen[0] - 1
    rejected[2] -= 0.5
    assert lock_cost.most_distant_layer(chosen, rejected) == 2


def test_true_shapes_in_small():
    small = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "hidden_size": 32, "intermediate_size": 40}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    found = lock_cost.true_shapes(HEADS, 0.4, generator, 3, 1, 2, "cpu", torch.float32, small)
    assert len(found["warm"]) == 3 and found["cold"] > 0 and found["forward"] > 0
    assert len(found["rates"]) == 4 and found["extra"] == 0
    assert torch.get_default_dtype() == torch.float32
