"""Part 3's theory, measured: the norm that a projection leaves, what each applied step does to the anchor's loss, and bounds.

Source: paper 3, Sec. 4.3 and A.3: a lemma on the norm left (isotropic directions), the convergence of the utility loss under
SGD with a projection in every step, and a bound on the drift of the safety loss for an ideal projector. Their constants were
not available to us, so that the bounds here are our reconstruction: with theta' = theta - eta P g and smoothness l,

    lemma     |P g|^2 = rho |g|^2, rho = 1 - k / m of each block, weighted by the blocks' energies
    utility   as fast as SGD but for a factor 1 / rho in the number of steps
    safety    L_s(theta_T) - L_s(theta_0) <= l / 2 sum_t |theta_t+1 - theta_t|^2, if no step has a first-order part
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from safebook.baselines import mixed
from safebook.chat_objectives import answer_loss
from safebook.errors import InputError
from safebook.gradients import NOISE, as_matrix, bare, block_gradients, blocks, leading_directions
from safebook.spf import SPF, SPFSettings, projecting_updates
from safebook.spf_arms import BETAS, Fit
from safebook.streams import stream
from safebook.subspaces import random_orthonormal
from safebook.training import Objective, train

CPU = torch.device("cpu")
Gradients = dict[str, Tensor]
ROUNDING = 1e-4  # cosine of a step and the safety gradient below which it is no direction
COMPLETE = 10**6  # directions: all that a gradient has
ARMS = ("sft", "spf", "spf, complete", "spf, update", "random subspace", "mixing")
OPTIMISERS = ("sgd", *BETAS)


def _dot(a: Gradients, b: Gradients) -> float:
    """Over the blocks that both have."""
    return float(sum((a[n].double().flatten() @ b[n].double().flatten()) for n in a if n in b))


# -------------------------------------------------------------------- the lemma


def retained(
    utility: Gradients,
    safety: Gradients,
    shares: Sequence[float],
    generator: torch.Generator,
    control: Gradients | None = None,
    method: str = "exact",
) -> list[dict]:
    """How much of a utility gradient's energy is left when `share` of each block's outputs is removed on the left.

    Rows with `share`, `subspace`: "safety", "random" (as many random directions) or "utility" (those of `control`, another
    utility gradient); `retained`: sum of |P G|^2 over sum of |G|^2; `expected`: 1 - k / m, weighted by the blocks' energies.
    As in `spf`, k is the share of m, at least one, and at most the directions that the safety gradient has; blocks without
    a safety gradient keep all. `generator` on the CPU.
    """
    kinds = ("safety", "random") + (("utility",) if control is not None else ())
    left = {(share, kind): 0.0 for share in shares for kind in kinds}
    expected, total = dict.fromkeys(shares, 0.0), 0.0
    for name, gradient in utility.items():
        matrix = as_matrix(gradient).double()
        energy, outputs = float(matrix.square().sum()), matrix.shape[0]
        total += energy
        most = max(SPFSettings(rank=share).directions(outputs) for share in shares)
        zero = torch.zeros_like(matrix)
        found = leading_directions(safety.get(name, zero), most, NOISE, method, generator)[0]
        count = found.shape[1]
        bases = {"safety": found, "random": found}
        if count:
            bases["random"] = random_orthonormal(outputs, count, generator)
        if control is not None:
            other = leading_directions(control.get(name, zero), most, NOISE, method, generator)[0]
            bases["utility"] = other[:, :count]
        for kind in kinds:
            basis = bases[kind].to(matrix)
            inside = torch.cat([matrix.new_zeros(1), (basis.T @ matrix).square().sum(1).cumsum(0)])
            for share in shares:
                used = min(SPFSettings(rank=share).directions(outputs), count, basis.shape[1])
                left[share, kind] += energy - float(inside[used])
        for share in shares:
            used = min(SPFSettings(rank=share).directions(outputs), count)
            expected[share] += energy * (1 - used / outputs)
    if not total:
        raise InputError("utility", 0.0, "a gradient that is not zero")
    return [
        {"share": s, "subspace": kind, "retained": value / total, "expected": expected[s] / total}
        for (s, kind), value in left.items()
    ]


# -------------------------------------------------------------------- one step


@dataclass
class Watch:
    """Looks at every step of a training run, and at the anchor's loss before and after it.

    `watch` is called between the backward pass and the optimiser's step (and then calls `transform`), `watch.after` after the
    step, `watch.finish` once at the end.

    records: one a step. `anchor_loss` before the step; `conflict`: cosine of utility and safety gradient; `kept`: share of the
    utility gradient's energy after the transform; `first_order`: inner product of the applied change of the weights with the
    safety gradient, nats; `length` of that change; `rise`: of the anchor's loss, nats; `bend`: length of the change of the safety
    gradient over that of the weights, a measurement of the smoothness.
    """

    anchor: object
    transform: Callable[[nn.Module], None] | None = None
    objective: Objective = answer_loss
    records: list[dict] = field(default_factory=list)
    _safety: Gradients = field(default_factory=dict, repr=False)
    _before: Gradients = field(default_factory=dict, repr=False)

    def __call__(self, model: nn.Module) -> None:
        loss, safety = self._settle(model)
        parameters = blocks(bare(model))
        utility = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        norms = [_dot(g, g) ** 0.5 for g in (utility, safety)]
        if self.transform:
            self.transform(model)
        after = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        self.records.append(
            {
                "step": len(self.records),
                "anchor_loss": loss,
                "conflict": _dot(utility, safety) / (norms[0] * norms[1] or 1.0),
                "utility_norm": norms[0],
                "safety_norm": norms[1],
                "kept": _dot(after, after) / (norms[0] ** 2 or 1.0),
            }
        )
        self._safety, self._before = safety, {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def after(self, model: nn.Module, _iteration: int = 0) -> None:
        change = {n: p - self._before[n] for n, p in blocks(bare(model)).items()}
        first = _dot(self._safety, change)
        self.records[-1] |= {"first_order": first, "length": _dot(change, change) ** 0.5}

    def finish(self, model: nn.Module) -> None:
        self._settle(model)

    def _settle(self, model: nn.Module) -> tuple[float, Gradients]:
        """The safety gradient now; what the last step did to it goes into that step's record."""
        loss, safety = block_gradients(model, self.objective, self.anchor)
        if self.records and "rise" not in self.records[-1]:
            last = self.records[-1]
            turned = {n: g - self._safety[n] for n, g in safety.items()}
            last["rise"] = loss - last["anchor_loss"]
            last["bend"] = _dot(turned, turned) ** 0.5 / last["length"] if last["length"] else 0.0
        return loss, safety


def sharpness(
    model: nn.Module,
    batch: object,
    generator: torch.Generator,
    iterations: int = 6,
    objective: Objective = answer_loss,
) -> float:
    """Largest eigenvalue of the loss's Hessian on a batch, by power iteration on differences of gradients.

    The convergence theorem asks for steps of at most 1 over the smoothness, of which this is a lower bound. The weights are
    left as they were.
    """
    if iterations < 1:
        raise InputError("iterations", iterations, ">= 1")
    parameters = blocks(bare(model))
    start = {n: p.detach().clone() for n, p in parameters.items()}
    _, here = block_gradients(model, objective, batch)
    way = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in parameters.items()}
    reach = 1e-3 * _dot(start, start) ** 0.5
    value = 0.0
    for _ in range(iterations):
        length = _dot(way, way) ** 0.5
        if not length:
            break
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(start[n] + reach / length * way[n])
        _, there = block_gradients(model, objective, batch)
        way = {n: ((there[n] - here[n]) / reach).view_as(start[n]) for n in there}
        value = _dot(way, way) ** 0.5
    with torch.no_grad():
        for n, p in parameters.items():
            p.copy_(start[n])
    return value


# -------------------------------------------------------------------- runs


def defence(arm: str, anchor: object, share: float, seed: int) -> tuple[Objective, SPF | None]:
    """Objective and gradient transform of an arm of `ARMS`."""
    if arm not in ARMS:
        raise InputError("arm", arm, ", ".join(ARMS))
    if arm in ("sft", "mixing"):
        return (mixed(answer_loss, anchor) if arm == "mixing" else answer_loss), None
    settings = {
        "spf": SPFSettings(rank=share),
        "spf, complete": SPFSettings(rank=COMPLETE),
        "spf, update": SPFSettings(rank=share, project="update"),
        "random subspace": SPFSettings(rank=share, subspace="random"),
    }[arm]
    return answer_loss, SPF(answer_loss, anchor, settings, stream(CPU, "spf directions", seed))


def follow(
    model: nn.Module,
    arm: str,
    optimiser: str,
    anchor: object,
    task: Callable[[int], object],
    rate: float,
    steps: int,
    batch: int,
    share: float,
    seed: int,
    look: Callable[[nn.Module], dict] | None = None,
    look_at: tuple[int, ...] = (),
) -> tuple[list[dict], list[dict]]:
    """Train in place; records of `Watch`, and what `look` returned after the iterations `look_at`, with "iteration".

    "sgd" has neither momentum nor clipping nor decay, as in the theory; the others are those of `spf_arms.Fit`.
    """
    if optimiser not in OPTIMISERS:
        raise InputError("optimiser", optimiser, ", ".join(OPTIMISERS))
    objective, transform = defence(arm, anchor, share, seed)
    watch = Watch(anchor, transform)
    projects = transform is not None and transform.settings.project == "update"
    with projecting_updates(transform, model) if projects else nullcontext():
        if optimiser == "sgd":
            looks = _sgd(model, objective, task, rate, steps, watch, look, look_at)
        else:
            settings = Fit(steps, batch, rate, optimiser).settings()
            looks = train(
                model, objective, task, settings, transform=watch, evaluate=look, evaluate_at=look_at,
                keep=watch.after, keep_at=tuple(range(1, steps + 1)),
            ).evaluations  # fmt: skip
    watch.finish(model)
    return watch.records, looks


def _sgd(model, objective, task, rate, steps, watch, look, look_at) -> list[dict]:
    """The theory's optimiser; the one training loop knows AdamW alone."""
    optimise, looks = torch.optim.SGD(model.parameters(), lr=rate), []
    for iteration in range(steps + 1):
        if look and iteration in look_at:
            looks.append({"iteration": iteration, **look(model)})
        if iteration < steps:
            optimise.zero_grad(set_to_none=True)
            objective(model, task(iteration)).backward()
            watch(model)
            optimise.step()
            watch.after(model)
    return looks


# -------------------------------------------------------------------- what follows


def against(records: Sequence[dict]) -> dict[str, float]:
    """Shares of steps: `conflicting`; of those, `against`: the applied change raises the anchor's loss to first order (0 where
    none conflicts); of all, `against_all` and `rising`: the loss did rise. What is rounding does not count."""
    hit = [r for r in records if r["conflict"] < 0]

    def raises(r: dict) -> bool:
        return r["first_order"] > ROUNDING * r["length"] * r["safety_norm"]

    return {
        "conflicting": len(hit) / len(records),
        "against": sum(map(raises, hit)) / len(hit) if hit else 0.0,
        "against_all": sum(map(raises, records)) / len(records),
        "rising": sum(r["rise"] > 1e-6 for r in records) / len(records),
    }


def drift(records: Sequence[dict]) -> dict[str, float]:
    """`rise` of the anchor's loss over the run, nats, and its parts to first order in conflicting and in other steps, and beyond
    (`curvature`); `smoothness`: the largest bend of the run; `bound` = smoothness / 2 times the summed squared steps."""
    hit = sum(r["first_order"] for r in records if r["conflict"] < 0)
    free = sum(r["first_order"] for r in records if not r["conflict"] < 0)
    rise, smoothness = sum(r["rise"] for r in records), max(r["bend"] for r in records)
    bound = smoothness / 2 * sum(r["length"] ** 2 for r in records)
    parts = {"first_order_conflict": hit, "first_order_free": free, "curvature": rise - hit - free}
    return {"rise": rise, "bound": bound, "smoothness": smoothness} | parts


def kept(records: Sequence[dict]) -> float:
    """Share of the utility gradients' energy that reached the optimiser, over a run."""
    energy = [r["utility_norm"] ** 2 for r in records]
    return sum(r["kept"] * e for r, e in zip(records, energy)) / (sum(energy) or 1.0)
