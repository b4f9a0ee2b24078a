"""Baseline defences on finished weights: each takes models or state dicts and returns a new state dict.

A state dict is name -> tensor, as `model.state_dict()` gives it; "base" is the model before alignment, "aligned" the one that
was fine-tuned, "tuned" the result. Nothing that is passed in is changed. Definitions and own settings are those
of papers 2 and 3 and of the papers that they compare with; what these leave open is said with each.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safebook.errors import InputError
from safebook.llama_activations import decoder, evaluating, input_device, watching
from safebook.messages import by_length, left_padded
from safebook.settings import TrainingSettings
from safebook.training import Objective, train

State = dict[str, Tensor]
#: Endings of the names of a Llama's matrices, but for the embedding and the head, whose outputs are the vocabulary.
PROJECTIONS = ("_proj.weight",)


def _copy(state: State) -> State:
    return {name: value.detach().clone() for name, value in state.items()}


def _check_alike(**states: State) -> None:
    """All have the names and the shapes of the first one; the error names the one that has not."""
    (first, expected), *others = states.items()
    for name, state in others:
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
            raise InputError(name, f"{len(state)} tensors", f"the names and shapes of {first}")


def _matrices(state: State, endings: tuple[str, ...]) -> list[str]:
    names = [n for n, v in state.items() if n.endswith(tuple(endings)) and v.ndim == 2]
    if not names:
        raise InputError("endings", endings, "endings of names of matrices")
    return names


# -------------------------------------------------------------------- along the alignment direction


def alignment_maps(
    base: State, aligned: State, endings: tuple[str, ...] = PROJECTIONS, exact: bool = False
) -> State:
    """Name -> C (outputs, outputs), float64. V = W_aligned - W_base; C = V V^T / ||V||_F, as Safe LoRA and AsFT use it.

    This C is no projector: its size grows with V's. `exact`: V (V^T V)^+ V^T, the projector on V's columns that it stands
    for; it is the identity, and the defence without effect, wherever V has full row rank.

    Raises InputError when alignment left a matrix as it was.
    """
    _check_alike(base=base, aligned=aligned)
    maps = {}
    for name in _matrices(aligned, endings):
        v = aligned[name].double() - base[name].double()
        size = v.norm()
        if not size > 0:
            raise InputError("aligned", name, "other weights than base's: alignment must have changed them")
        maps[name] = v @ torch.linalg.pinv(v) if exact else v @ v.T / size
    return maps


def safe_lora_similarities(
    base: State, aligned: State, tuned: State, endings=PROJECTIONS, exact=False
) -> dict:
    """Name -> cosine of C dW and dW as long vectors, dW = W_tuned - W_aligned; 1 where fine-tuning changed nothing.

    C has no negative eigenvalue, so that it is never below 0; V and dW drawn at random, independently, with m outputs and n
    inputs have about 1 / sqrt(1 + m / n): 0.71 for square matrices. That is the null of a high value.
    """
    _check_alike(aligned=aligned, tuned=tuned)
    found = {}
    for name, across in alignment_maps(base, aligned, endings, exact).items():
        update = tuned[name].double() - aligned[name].double()
        projected = across @ update
        length = float(projected.norm() * update.norm())
        found[name] = float((projected * update).sum()) / length if length else float(not update.any())
    return found


def safe_lora(
    base: State,
    aligned: State,
    tuned: State,
    threshold: float | None = 0.5,
    layers: int | None = None,
    endings: tuple[str, ...] = PROJECTIONS,
    exact: bool = False,
) -> State:
    """W_aligned + C dW instead of W_tuned, for the matrices whose update is least similar to its image C dW.

    Source: Safe LoRA (Hsu et al. 2024). There dW = B A of adapters; C B A is C dW, so that merged adapters give the same.

    Parameters
    ----------
    threshold : matrices with a similarity of at most this much; or
    layers : this many with the lowest similarity, with threshold=None. Own code: 0.5, or 10.
    exact : see `alignment_maps`.

    Unknown: which of the two rules paper 3's sister ran, and on which matrices.
    """
    if (threshold is None) == (layers is None):
        raise InputError("threshold", threshold, "one of threshold and layers, the other None")
    similarity = safe_lora_similarities(base, aligned, tuned, endings, exact)
    if layers is None:
        chosen = [name for name, value in similarity.items() if value <= threshold]
    elif isinstance(layers, int) and 0 <= layers <= len(similarity):
        chosen = sorted(similarity, key=similarity.get)[:layers]
    else:
        raise InputError("layers", layers, f"0 .. {len(similarity)}")
    maps, new = alignment_maps(base, aligned, endings, exact), _copy(tuned)
    for name in chosen:
        start = aligned[name].double()
        new[name] = (start + maps[name] @ (tuned[name].double() - start)).to(tuned[name].dtype)
    return new


# -------------------------------------------------------------------- pruning


def wanda_scores(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    endings: tuple[str, ...] = PROJECTIONS,
    batch: int = 16,
) -> State:
    """Name -> |W_ij| ||x_j||_2 (outputs, inputs), float64: the norm of input j over all tokens of `sequences` (ids).

    Source: Wanda (Sun et al. 2024), as commonly described.
    """
    modules = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight".endswith(tuple(endings))
    }
    if not modules:
        raise InputError("endings", endings, "endings of names of matrices")
    if not len(sequences):
        raise InputError("sequences", 0, "at least one sequence")
    squares = [
        torch.zeros(m.in_features, dtype=torch.float64, device=m.weight.device) for m in modules.values()
    ]
    real = None  # (batch, time) bool: tokens that are no padding

    def see(index: int, inputs: Tensor) -> None:
        squares[index] += inputs[real.to(inputs.device)].double().square().sum(0)

    with evaluating(model), watching(list(modules.values()), see, inputs=True):
        for rows in by_length(sequences, batch):
            padded = left_padded([sequences[i] for i in rows], 0, input_device(model))
            real = padded.mask.bool()
            decoder(model)(
                input_ids=padded.tokens,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                use_cache=False,
            )
    return {
        name: m.weight.detach().double().abs() * square.sqrt()
        for (name, m), square in zip(modules.items(), squares)
    }


def antidote(
    model: nn.Module,
    harmful: Sequence[Sequence[int]],
    ratio: float = 0.05,
    endings: tuple[str, ...] = PROJECTIONS,
    batch: int = 16,
) -> State:
    """The tuned model's weights, the share `ratio` of each matrix that matters most on harmful dialogues set to zero.

    `harmful`: token ids of harmful requests with their answers. Source: Antidote (Huang et al. 2024): dense ratio 0.05, 2,000
    harmful rows. The score is Wanda's, as commonly described. Unknown: whether scores compete within a row, a matrix or the
    model (here: a matrix, rounded down), and on which matrices and tokens (all projections, all tokens).
    """
    if not 0 <= ratio <= 1:
        raise InputError("ratio", ratio, "0 .. 1")
    new = _copy(model.state_dict())
    for name, score in wanda_scores(model, harmful, endings, batch).items():
        largest = score.flatten().topk(int(ratio * score.numel())).indices
        pruned = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        pruned[largest] = True
        new[name][pruned.view_as(score)] = 0
    return new


# -------------------------------------------------------------------- a little more training


#: 10 epochs on the one row. Betas and clipping are those of paper 3's base code; no decay.
ONE_SHOT = TrainingSettings(
    10, 1, 2e-5, 2e-5, warmup=0, decay_until=10, betas=(0.5, 0.999), weight_decay=0.0, clip=1.0
)


def one_shot_repair(
    model: nn.Module, objective: Objective, anchor: object, settings: TrainingSettings = ONE_SHOT
) -> State:
    """The tuned model's weights after `settings.iterations` more steps on one safety row, all parameters trained.

    Source: paper 3's sister paper (Safety at One Shot, 2026): 10 epochs at 2e-5 on the one anchor. Unknown: its schedule.
    """
    repaired = copy.deepcopy(model).requires_grad_(True)
    train(repaired, objective, lambda iteration: anchor, settings)
    return _copy(repaired.state_dict())


# -------------------------------------------------------------------- arithmetic with weights


def add_task_vector(tuned: State, start: State, end: State, scale: float, keep: float = 1.0) -> State:
    """W_tuned + scale (W_end - W_start), of the difference only the share `keep` of largest size, over all tensors."""
    _check_alike(tuned=tuned, start=start, end=end)
    if not 0 < keep <= 1:
        raise InputError("keep", keep, "above 0, at most 1")
    vector = {n: end[n].double() - start[n].double() for n, v in tuned.items() if v.is_floating_point()}
    if keep < 1:
        sizes = torch.cat([v.abs().flatten() for v in vector.values()])
        least = sizes.kthvalue(len(sizes) - max(1, round(keep * len(sizes))) + 1).values
        vector = {n: v * (v.abs() >= least) for n, v in vector.items()}
    new = _copy(tuned)
    for name, change in vector.items():
        new[name] = (tuned[name].double() + scale * change).to(tuned[name].dtype)
    return new


def safety_vector(unaligned: State, aligned: State, tuned: State, scale: float = 1.0) -> State:
    """W_tuned + scale (W_aligned - W_unaligned).

    Source: RESTA (Bhardwaj et al. 2024), as commonly described: the unaligned model is the aligned one after harmful
    fine-tuning; the base model is another choice. Unknown: scale. Its drop-and-rescale step (DARE) is left out.
    """
    return add_task_vector(tuned, unaligned, aligned, scale)


def subtract_harm(base: State, harmful: State, tuned: State, scale: float = 1.0, keep: float = 0.1) -> State:
    """W_tuned - scale * top_keep(W_harmful - W_base): the harm vector, trimmed to its largest entries, is taken away.

    Source: the first half of Safety Arithmetic (2024), a baseline of paper 2; its second half, a vector added to the
    activations, is a lock of another kind and not here. Unknown: scale and keep, also whether tensors are trimmed apart.
    """
    return add_task_vector(tuned, base, harmful, -scale, keep)
