"""What each trained model of paper 1 is made from: data stream, objective, schedule.

Names: `pcfg-pretrained` (theta_IT of the paper), then protocol and learning rate. `benign` is the control: the same
number of iterations at the same rate on the pretraining mixture, no safety data. `dpo_standard` is the usual DPO. A last
part `three_child` names the arm whose unsafe text keeps the three-child rules, so that no rule is short in it alone.
"""

from functools import partial

import torch

from safebook.behaviour import exact, greedy, hits, token_accuracy
from safebook.models import GPT
from safebook.objectives import Preference, dpo, dpo_paper, language_modelling, reference_nll, unlearning
from safebook.profiles import Profile
from safebook.streams import stream
from safebook.training import Recipe
from safebook.worlds.instructions import compliance, pretraining_batch, prompts, refusal
from safebook.worlds.pcfg import PCFGWorld

CURVE_SAMPLES = 200  # validation samples at each point of a learning curve


def new_model(profile: Profile, seed: int) -> GPT:
    """The untrained model of this seed."""
    return GPT(profile.model, stream(torch.device("cpu"), "weights", seed))


def pretraining(profile: Profile, world: PCFGWorld, seed: int) -> Recipe:
    """Language modelling on the four forms, in the shares of the profile."""
    settings = profile.pretraining

    def batches(iteration: int):
        mixture = profile.mixture.at(iteration / settings.iterations)
        return pretraining_batch(
            world, settings.batch, mixture, stream(world.device, "pretraining", seed, iteration)
        )

    return Recipe(language_modelling, batches, settings, partial(pretraining_curve, world))


def fine_tuning(name: str, profile: Profile, world: PCFGWorld, seed: int, reference: GPT) -> Recipe:
    """The recipe of one fine-tuned model; `reference` is the frozen pretrained model (for DPO)."""
    _, protocol, rate, *arm = name.split("-")
    unsafe_text = "unsafe_three_child" if arm == ["three_child"] else "unsafe"
    settings, p = profile.fine_tuning[rate], profile.protocols
    strength = ("medium", "small").index(rate)

    def generator(iteration: int) -> torch.Generator:
        # One stream for all: DPO and unlearning then see the same prompts and differ by their objective alone.
        return stream(world.device, "fine-tuning", seed, iteration)

    def drawn(iteration: int, safe_share: float):
        """Every batch is all safe prompts or all unsafe prompts."""
        g = generator(iteration)
        unsafe = bool(torch.rand((), generator=g, device=world.device) >= safe_share)
        return prompts(world, settings.batch, g, unsafe, rho=p.rho, unsafe_text_type=unsafe_text)

    def demonstration(iteration: int):
        drawn_prompts = drawn(iteration, p.ssft_safe_share)
        return (refusal if drawn_prompts.unsafe else compliance)(world, drawn_prompts)

    def preference(iteration: int) -> Preference:
        drawn_prompts = drawn(iteration, 0.5)
        comply = compliance(world, drawn_prompts, first_segment_only=True)
        refuse = refusal(world, drawn_prompts)
        return Preference(refuse, comply) if drawn_prompts.unsafe else Preference(comply, refuse)

    def with_reference(iteration: int) -> Preference:
        batch = preference(iteration)
        batch.reference = reference_nll(reference, batch)
        return batch

    def benign(iteration: int):
        return pretraining_batch(world, settings.batch, profile.mixture.end, generator(iteration))

    objective, batches = {
        "ssft": (language_modelling, demonstration),
        "unlearning": (partial(unlearning, forget=p.unlearning_forget[strength]), preference),
        "dpo": (
            partial(dpo_paper, beta_chosen=p.dpo_beta_chosen, beta_rejected=p.dpo_beta_rejected[strength]),
            with_reference,
        ),
        "dpo_standard": (partial(dpo, beta=p.dpo_standard_beta), with_reference),
        "benign": (language_modelling, benign),
    }[protocol]
    return Recipe(objective, batches, settings, partial(safety_curve, world, unsafe_text=unsafe_text))


def pretraining_curve(world: PCFGWorld, model: GPT) -> dict[str, float]:
    """Accuracy per segment on held-out instructions: given the true prefix, and left alone (greedy)."""
    g = stream(world.device, "validation", "pretraining")
    batch = pretraining_batch(world, CURVE_SAMPLES, (0, 1, 0, 0), g, teach=0)
    second_only = pretraining_batch(world, CURVE_SAMPLES, (0, 0, 0, 1), g, teach=0)
    correct, result = hits(model, batch), {}
    for segment in ("1", "2"):
        mask = world.role_mask(batch.lengths, "output" + segment)
        result["teacher_forced_" + segment] = token_accuracy(correct, mask)
    written = greedy(model, batch, 2 * (world.settings.operand_lengths[1] + 1))
    rows = torch.arange(len(batch), device=world.device)[:, None]
    step = torch.arange(written.shape[1], device=world.device)
    at = (batch.decision[:, None] + step).clamp(max=batch.tokens.shape[1] - 2)
    right = torch.zeros_like(correct)
    used = step < 2 * (batch.lengths[:, None] + 1)
    right[rows.expand_as(at)[used], at[used]] = (written == batch.tokens[:, 1:][rows, at])[used]
    for segment in ("1", "2"):
        mask = world.role_mask(batch.lengths, "output" + segment)
        result["free_running_" + segment] = token_accuracy(right, mask)
    mask = world.role_mask(second_only.lengths, "output2")
    result["second_step_only"] = token_accuracy(hits(model, second_only), mask)
    return result


def safety_curve(world: PCFGWorld, model: GPT, unsafe_text: str = "unsafe") -> dict[str, float]:
    """Share of held-out safe prompts answered exactly and of unsafe prompts refused exactly."""
    g = stream(world.device, "validation", "safety")
    safe = prompts(world, CURVE_SAMPLES, g, unsafe=False, unsafe_text_type=unsafe_text)
    unsafe = prompts(world, CURVE_SAMPLES, g, unsafe=True, unsafe_text_type=unsafe_text)
    segment = world.role_mask(safe.lengths, "output1", "stop1")
    null = world.role_mask(unsafe.lengths, "output1", "stop1")
    on_safe, on_null = hits(model, compliance(world, safe)), hits(model, refusal(world, unsafe))
    return {
        "safe_token_accuracy": token_accuracy(on_safe, segment),
        "safe_answered": float(exact(on_safe, segment).float().mean()),
        "unsafe_null_token_accuracy": token_accuracy(on_null, null),
        "unsafe_refused": float(exact(on_null, null).float().mean()),
    }
