"""Part 4: directions of three papers' objects, layer by layer, in the spaces where they can be compared.

An object (a gradient, an update, a difference of means, a lock) becomes a basis per layer: orthonormal columns in one of the
`SPACES`. Two objects are compared only within a space. Each safety object has counterparts: the same object of a skill that
has nothing to do with safety. Source: our own; the objects are those of papers 1 (dW), 2 (lock) and 3 (safety gradient).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from safebook.errors import InputError
from safebook.gradient_tables import layer_of, matrix_of, overlaps
from safebook.gradients import leading_directions, principal_angles
from safebook.llama_activations import decoder, head_outputs, mlp_inputs, residuals
from safebook.locks import Lock, unit
from safebook.messages import prompts

Bases = dict[int, Tensor]  # layer -> (dimensions, k) orthonormal columns, the leading one first
Object = tuple[str, str]  # kind, skill


@dataclass(frozen=True)
class Space:
    """Where directions live: the outputs or the inputs of one matrix of every layer."""

    matrix: str
    side: int  # 0 = outputs (left singular vectors), 1 = inputs (right ones)
    view: str  # what the page calls it; spaces of one view are averaged


SPACES = {
    "attention": Space("o_proj", 0, "written"),  # the residual stream, as the attention writes it
    "mlp": Space("down_proj", 0, "written"),  # the residual stream, as the MLP writes it
    "read": Space("gate_proj", 1, "read"),  # the normed stream, as the MLP reads it
    "heads": Space("o_proj", 1, "heads"),  # all heads' outputs side by side: where a lock acts
}
VIEWS = tuple(dict.fromkeys(space.view for space in SPACES.values()))
SAFETY = "safety"
#: Kinds of objects. The last three are no matrix's own.
KINDS = ("gradient", "update", "direction", "lock, response", "lock, prompt")
MATRIX_KINDS = KINDS[:2]


def weights(model: nn.Module, every: int = 1) -> dict[str, Tensor]:
    """Name -> matrix (on the CPU, in its own precision) of the spaces' matrices in each `every`-th layer."""
    wanted = {space.matrix for space in SPACES.values()}
    layers = len(decoder(model).layers)
    found = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(name, layers)
        inside = 0 <= layer < layers and layer % every == 0
        if inside and name.endswith(".weight") and matrix_of(name) in wanted:
            found[name] = parameter.detach().cpu().clone()
    return found


def change(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """dW of every matrix, float64. Raises InputError if nothing changed or the names differ."""
    if set(after) != set(before):
        raise InputError("base", sorted(set(after) ^ set(before))[:3], "a checkpoint with the same matrices")
    found = {name: after[name].double() - before[name].double() for name in after}
    if not any(x.any() for x in found.values()):
        raise InputError("base", "equal weights", "a checkpoint whose weights differ")
    return found


def matrix_bases(matrices: Mapping[str, Tensor], rank: int) -> dict[str, Bases]:
    """Space -> leading `rank` directions of every layer's matrix, of a gradient or an update. Fewer where it has fewer."""
    found: dict[str, Bases] = {name: {} for name in SPACES}
    for name, matrix in matrices.items():
        here = [s for s, space in SPACES.items() if space.matrix == matrix_of(name)]
        layer = layer_of(name, 10**9)
        if here and layer < 10**9:
            pair = leading_directions(matrix.double().cpu(), rank)
            for s in here:
                found[s][layer] = pair[SPACES[s].side]
    return found


def direction_bases(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[list[dict]],
    second: Sequence[list[dict]],
    every: int = 1,
    batch: int = 16,
) -> dict[str, Bases]:
    """Space -> unit difference of the means of two classes of prompts at the last token, one column a layer.

    "attention" and "mlp" are one stream: the residual stream that leaves the layer. With forbidden against allowed requests
    it is the refusal direction of Arditi et al. (2024), up to the choice of requests.
    """
    asked = prompts(tokenizer, [*first, *second])
    sequences, cut = [p.tokens for p in asked], len(first)

    def gaps(points: Tensor) -> Bases:
        points = points.double()
        means = points[:, :cut].mean(1) - points[:, cut:].mean(1)
        return {layer: unit(x)[:, None] for layer, x in enumerate(means) if layer % every == 0}

    stream = gaps(residuals(model, sequences, batch=batch))
    heads = gaps(head_outputs(model, sequences, batch=batch).flatten(-2))
    read = gaps(mlp_inputs(model, sequences, batch=batch))
    return {"attention": stream, "mlp": stream, "read": read, "heads": heads}


def lock_columns(lock: Lock, outputs: Mapping[int, Tensor]) -> dict[str, dict[int, Tensor]]:
    """Space -> layer -> a column a locked head: its shift among the heads' outputs, and mapped by W_O into the stream.

    `outputs`: layer -> W_O (width, heads * head_dim). Layers without a locked head, or not among `outputs`, are absent. The
    sum of the columns is what the lock adds there.
    """
    head_dim = lock.directions.shape[1]
    found: dict[str, dict[int, list[Tensor]]] = {"heads": {}, "attention": {}}
    for (layer, head), shift in zip(lock.heads, lock.shifts().double()):
        if layer not in outputs:
            continue
        whole = torch.zeros(outputs[layer].shape[1], dtype=torch.float64)
        whole[head * head_dim : (head + 1) * head_dim] = shift
        found["heads"].setdefault(layer, []).append(whole)
        found["attention"].setdefault(layer, []).append(outputs[layer].double() @ whole)
    return {space: {n: torch.stack(c, 1) for n, c in part.items()} for space, part in found.items()}


def lock_bases(lock: Lock, outputs: Mapping[int, Tensor], rank: int) -> dict[str, Bases]:
    """Space -> the directions that a lock's shifts span in each layer, the longest first; the stream is one for both writers."""
    found = {
        space: {n: leading_directions(x, rank)[0] for n, x in part.items()}
        for space, part in lock_columns(lock, outputs).items()
    }
    return found | {"mlp": found["attention"], "read": {}}


def with_directions(lock: Lock, directions: Tensor) -> Lock:
    """The same heads, spreads and strength with other directions, (layers, heads, head_dim): a lock of another contrast."""
    return replace(lock, directions=torch.stack([directions[head] for head in lock.heads]))


# -------------------------------------------------------------------- pairs


def shared(space: str, first: str, second: str) -> bool:
    """Is this pair of kinds compared in this space? Two objects that are no matrix's own meet once in the stream."""
    both_free = first not in MATRIX_KINDS and second not in MATRIX_KINDS
    return first != second and not (both_free and space == "mlp")


def compare(objects: Mapping[Object, dict[str, Bases]], ranks: Sequence[int]) -> pd.DataFrame:
    """A row a pair of objects of different kinds, space, layer and rank k: `overlap`, `chance`, `above` = their difference.

    Overlap: mean squared cosine of the principal angles, 1 = the smaller subspace lies in the larger. k cuts both; an object with
    fewer directions keeps what it has. Source: paper 3, Sec. 4.1 (see `gradients.overlap`).
    """
    rows = []
    for a, b in combinations(sorted(objects, key=lambda o: KINDS.index(o[0])), 2):
        for space in SPACES:
            layers = sorted(objects[a][space].keys() & objects[b][space].keys())
            if not shared(space, a[0], b[0]) or not layers:
                continue
            pair = ({n: o[space][n] for n in layers} for o in (objects[a], objects[b]))
            found, chance = overlaps(*pair, ranks)
            where = {"first": a[0], "first_skill": a[1], "second": b[0], "second_skill": b[1], "space": space}
            for i, layer in enumerate(layers):
                for j, k in enumerate(ranks):
                    numbers = {"overlap": float(found[i, j]), "chance": float(chance[i, j])}
                    rows.append(where | {"layer": layer, "k": k} | numbers)
    frame = pd.DataFrame(rows)
    frame["above"] = frame["overlap"] - frame["chance"]
    frame["view"] = frame["space"].map({name: space.view for name, space in SPACES.items()})
    return frame.dropna(subset=["overlap"]).reset_index(drop=True)


def by_view(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over layers and over the spaces of a view."""
    keys = ["view", "first", "first_skill", "second", "second_skill", "k"]
    return frame.groupby(keys, sort=False)[["overlap", "chance", "above"]].mean().reset_index()


def group_of(first_skill: str, second_skill: str) -> str:
    """ "safety": both objects are; "swapped": one of them is of another skill, the control that decides; "other skills"."""
    safe = (first_skill == SAFETY) + (second_skill == SAFETY)
    return {2: "safety", 1: "swapped", 0: "other skills"}[safe]


#: Columns of `highest` that stand for groups of pairs.
GROUPS = ("safety", "swapped", "other skills", "swapped, mean")


def highest(frame: pd.DataFrame, columns: Iterable[str] = ("view", "first", "second", "k")) -> pd.DataFrame:
    """A row a pair of kinds: `above` of the safety pair, the highest of each group of controls, and the mean of the swapped ones.

    NaN where there is no control.
    """
    groups = [group_of(*skills) for skills in zip(frame["first_skill"], frame["second_skill"])]
    found = frame.assign(group=groups).groupby([*columns, "group"], sort=False)["above"]
    wide, mean = found.max().unstack("group"), found.mean().unstack("group")
    wide["swapped, mean"] = mean["swapped"] if "swapped" in mean else float("nan")
    wide = wide.reindex(columns=list(GROUPS))
    return wide[wide["safety"].notna()].reset_index()


def by_layer(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a pair of kinds, space, layer and k: `above` of the safety pair, `rival` = the highest swapped pair's *in that
    layer*, and `rivals` = how many there are. Pairs without a swapped one are left out.

    The null that decides, layer by layer: the highest may be another pair in every layer, which a mean over layers hides.
    """
    keys = ["space", "layer", "first", "second", "k"]
    swapped = frame[(frame["first_skill"] == SAFETY) != (frame["second_skill"] == SAFETY)]
    found = highest(frame, keys).rename(columns={"safety": "above", "swapped": "rival"})
    found = found.dropna(subset=["rival"])[[*keys, "above", "rival"]]
    return found.merge(swapped.groupby(keys).size().rename("rivals"), on=keys)


def nearest_rival(
    objects: Mapping[Object, dict[str, Bases]], first: str, second: str, space: str, layer: int, rank: int
) -> float:
    """Smallest principal angle, in degrees, of the swapped pairs of two kinds in one layer; nan where there is none."""
    swapped = [
        (a, b)
        for a, b in product(objects, objects)
        if (a[0], b[0]) == (first, second) and group_of(a[1], b[1]) == "swapped"
    ]
    bases = [(objects[a][space].get(layer), objects[b][space].get(layer)) for a, b in swapped]
    angles = [smallest_angle(a[:, :rank], b[:, :rank]) for a, b in bases if a is not None and b is not None]
    return min(angles, default=float("nan"))


def in_depth(objects: Mapping[Object, dict[str, Bases]], frame: pd.DataFrame) -> pd.DataFrame:
    """`by_layer` with the smallest principal `angle` of the safety pair and `rival_angle`, that of the nearest swapped pair."""
    found = by_layer(frame)
    own, others = [], []
    for row in found.itertuples():
        a, b = (objects[kind, SAFETY][row.space][row.layer][:, : row.k] for kind in (row.first, row.second))
        own.append(smallest_angle(a, b))
        others.append(nearest_rival(objects, row.first, row.second, row.space, row.layer, row.k))
    return found.assign(layer=found["layer"] + 1, angle=own, rival_angle=others)


def smallest_angle(a: Tensor, b: Tensor) -> float:
    """Degrees between the nearest directions of two subspaces (dimensions, k); 90 = orthogonal."""
    return float(principal_angles(a, b, max(a.shape[1], b.shape[1])).min().rad2deg())


def random_pairs(
    dimensions: int, first: int, second: int, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(draws,) overlap and (draws,) smallest angle in degrees of two independent uniformly random subspaces.

    One of them may be held fixed, since the other is turned uniformly. The mean overlap is the larger dimension's share.
    """
    if not 1 <= min(first, second) <= max(first, second) <= dimensions:
        raise InputError("rank", (first, second), f"1 .. {dimensions}")
    few, many = sorted((first, second))
    drawn = torch.randn(draws, dimensions, few, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(drawn)[0][:, :many]
    cosines = torch.linalg.svdvals(basis).clamp(max=1)
    return cosines.square().sum(1) / few, cosines.max(1).values.arccos().rad2deg()
