"""SPF in a training loop: accumulation, determinism, the optimiser's update in its place, LoRA, accelerate, processes."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import llamas
import peft
import pytest
import torch
from anchors import ANCHOR, conflicting, draws, language, small_llama, tokens, with_gradients
from torch import nn

from safebook.errors import InputError
from safebook.gradients import block_gradients, blocks, leading_directions
from safebook.settings import TrainingSettings
from safebook.spf import SPF, SPFSettings, projecting_updates
from safebook.training import train

# Place in the step.


def test_accumulated_gradients_make_the_step_of_the_big_batch():
    big, steps = tokens(8, "big"), []
    for parts in (1, 4):
        model = small_llama()
        optimise = torch.optim.SGD(model.parameters(), 0.1)
        spf = SPF(language, ANCHOR, SPFSettings(2, test="always"))
        for part in big.chunk(parts):
            (language(model, part) / parts).backward()
        spf(model)
        optimise.step()
        assert len(spf.records) == 1
        steps.append(model)
    for a, b in zip(*(m.parameters() for m in steps)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


SETTINGS = TrainingSettings(12, 4, 3e-3, 3e-3, 0, 12, betas=(0.5, 0.999), weight_decay=0.01, clip=1.0)


def run(settings=None, model=None, **options):
    model = model or small_llama()
    spf = SPF(language, ANCHOR, settings or SPFSettings(4, test="block"), **options)
    train(model, language, lambda iteration: tokens(4, ("batch", iteration)), SETTINGS, transform=spf)
    return model, spf


@pytest.mark.parametrize(
    "options", [{}, {"method": "low-rank"}, {"subspace": "random"}, {"frozen": True}], ids=str
)
def test_the_same_seed_gives_the_same_run(options):
    settings = SPFSettings(4, test="block", **options)
    one, two = (run(settings, generator=draws("run")) for _ in range(2))
    assert one[1].records == two[1].records and len(one[1].records) == 12
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters()))
    if settings.subspace == "random":
        assert run(settings, generator=draws("other"))[1].records != one[1].records


def test_training_with_it_keeps_the_anchor_better_than_without():
    plain = small_llama()
    train(plain, language, lambda iteration: tokens(4, ("batch", iteration)), SETTINGS)
    kept, spf = run()
    losses = [float(language(m, ANCHOR).detach()) for m in (small_llama(), plain, kept)]
    assert losses[2] < losses[1]
    assert spf.records[0]["safety_loss"] == pytest.approx(losses[0])  # at the weights before the step


# The optimiser's update in place of the gradient.


def test_under_plain_sgd_the_projected_update_is_the_step_of_the_projected_gradient():
    ends = []
    for what in ("gradient", "update"):
        model = small_llama()
        spf = SPF(language, ANCHOR, SPFSettings(2, project=what))
        conflicting(model)  # leaves its gradients
        optimise = torch.optim.SGD(model.parameters(), 0.1)
        spf(model)
        optimise.step()
        if what == "update":
            spf.project_update(model)
        assert spf.records[0]["acted"]
        ends.append((model, spf.records[0]))
    for a, b in zip(*(m.parameters() for m, _ in ends)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    assert ends[0][1]["conflict"] == pytest.approx(ends[1][1]["conflict"])


@pytest.mark.parametrize("project", ["gradient", "update"])
def test_adam_leaves_the_subspace_unless_its_update_is_projected(project):
    """Momentum, scaling and weight decay turn a projected gradient back towards the safety directions."""
    model, moves = small_llama(), []
    _, safety = block_gradients(model, language, ANCHOR)
    spf = SPF(language, ANCHOR, SPFSettings(2, test="always", project=project, frozen=True))
    spf.freeze(model)

    def look(m):
        moves.append({n: p.detach().clone() for n, p in m.named_parameters()})

    def transform(m):
        look(m)
        spf(m)

    with projecting_updates(spf, model) if project == "update" else nullcontext():
        train(model, language, lambda i: tokens(4, ("batch", i)), SETTINGS, transform=transform)
    look(model)
    assert len(spf.records) == 12
    for name in (n for n in moves[0] if "mlp" in n):
        left, _ = leading_directions(safety[name], 2)
        inside = max(float((left.T @ (b[name] - a[name])).norm()) for a, b in pairwise(moves))
        assert inside < 1e-12 if project == "update" else inside > 1e-4


def test_an_update_that_nobody_projects_is_an_error():
    settings = SPFSettings(2, project="update")
    with pytest.raises(InputError, match="projecting_updates"):
        run(settings)
    with pytest.raises(InputError, match="no step"):
        SPF(language, ANCHOR, settings).project_update(small_llama())
    with pytest.raises(InputError, match="project"), projecting_updates(SPF(language, ANCHOR), small_llama()):
        pass
    other = nn.Linear(2, 2)  # another model's optimiser is none of its business; nor is one after the end
    spf, model = SPF(language, ANCHOR, settings), small_llama()
    with projecting_updates(spf, model):
        with_gradients(model, tokens(4, 0))
        spf(model)
        other(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(other.parameters(), 0.1).step()
        assert not spf.records
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not spf.records


# Other libraries.


def test_lora_adapters():
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5)
    torch.manual_seed(0)
    base = llamas.model()
    before = copy.deepcopy(base.state_dict())
    model = peft.get_peft_model(base, config).train()
    spf = SPF(language, ANCHOR, SPFSettings(2, test="always"))
    settings = TrainingSettings(3, 4, 1e-2, 1e-2, 0, 3, weight_decay=0.0)
    train(model, language, lambda iteration: tokens(4, ("lora", iteration)), settings, transform=spf)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in n for n in trainable)
    # B starts at 0, so that A has no gradient of either kind in the first step.
    assert spf.records[0]["directions"] == 2 * len(trainable) // 2
    assert spf.records[1]["directions"] == 2 * len(trainable)
    merged = {
        n.replace("base_model.model.", "").replace(".base_layer", ""): p for n, p in model.named_parameters()
    }
    assert all(torch.equal(before[n], merged[n]) for n in before)
    # What is removed: of B outputs of the layer, of A directions in the adapter's own r dimensions; r of them is all.
    model.zero_grad()
    language(model, tokens(4, 0)).backward()
    SPF(language, ANCHOR, SPFSettings(20, test="always"))(model)
    a, b = ([p.grad for n, p in model.named_parameters() if f"lora_{x}" in n] for x in "AB")
    assert all(float(g.norm()) < 1e-4 for g in a) and any(float(g.norm()) > 1e-3 for g in b)


def test_accelerate_with_accumulation():
    accelerate = pytest.importorskip("accelerate")
    ends = []
    for wrapped in (False, True):
        model = small_llama()
        optimise = torch.optim.SGD(model.parameters(), 0.1)
        spf = SPF(language, ANCHOR, SPFSettings(2, test="always"))
        parts = [part for seed in range(2) for part in tokens(4, ("parts", seed)).chunk(2)]
        if wrapped:
            accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
            model, optimise = accelerator.prepare(model, optimise)
            for part in parts:
                with accelerator.accumulate(model):
                    accelerator.backward(language(model, part))
                    if accelerator.sync_gradients:
                        spf(model)
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimise.step()
                    optimise.zero_grad()
            model = accelerator.unwrap_model(model)
        else:
            for first, second in (parts[:2], parts[2:]):
                ((language(model, first) + language(model, second)) / 2).backward()
                spf(model)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimise.step()
                optimise.zero_grad()
        assert len(spf.records) == 2
        ends.append((model, spf.records))
    for a, b in zip(*(m.parameters() for m, _ in ends)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert ends[0][1][1]["removed"] == pytest.approx(ends[1][1][1]["removed"])


def test_a_data_parallel_wrapper(tmp_path):
    """One process: the wrapper's hooks must not see the safety gradient."""
    file = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    try:
        model = small_llama()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        assert list(blocks(wrapped)) == list(blocks(model))
        for m in (model, wrapped):
            spf = SPF(language, ANCHOR, SPFSettings(2, test="always"))
            for seed in range(2):
                m.zero_grad()
                language(m, tokens(4, seed)).backward()
                spf(m)
        for a, b in zip(model.parameters(), wrapped.module.parameters()):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=0)
    finally:
        torch.distributed.destroy_process_group()
