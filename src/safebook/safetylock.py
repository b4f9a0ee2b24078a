"""SafetyLock: directions that tell safe from unsafe chats, read from single attention heads of an aligned model.

A lock is a few heads, each with a unit direction u and the spread sigma of the activations along it. Applied to a model
fine-tuned from the aligned one (`lock_apply`), it adds alpha * sigma * u to the outputs of these heads.

Source: paper 2 and its released code. Where the two differ, `LockSettings` has both; its defaults follow the paper, and
split by pair: the code splits by token, so that validation sees tokens of the responses it was trained on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook.errors import InputError
from safebook.llama_activations import head_outputs
from safebook.locks import ALPHA, Lock, check_count, strength, unit
from safebook.messages import TokenizedChat, dialogues, prompts

CHOICES = {
    "position": ("response", "prompt"),
    "split": ("pair", "token"),
    "score": ("validation", "mean"),
    "direction": ("mean", "probe"),
    "sigma": ("pooled", "within"),
}
SHARE = 24 / 1024  # of all heads: what the paper locks of Llama-3-8B
TAIL = 5  # ids that the released code cuts off every chat: the end of the mid-2024 Llama 3 template


@dataclass(frozen=True)
class LockSettings:
    """How a lock is extracted."""

    position: str = "response"  # "prompt": the last token before the answer
    tokens: int = 5  # last tokens of a response, each a sample; "prompt" reads one
    cut_tail: bool = (
        False  # as released: not the response's last tokens, but the chat's without its last five ids
    )
    split: str = "pair"  # "token": as released
    train_share: float = 0.6  # of the pairs (or tokens); the rest validates
    score: str = "validation"  # accuracy by which heads are ranked; "mean" of it and the training accuracy: as released
    direction: str = "mean"  # difference of the class means; "probe": the probe's weights
    sigma: str = (
        "pooled"  # spread over all samples, the gap between the classes included; "within" the classes
    )

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(name, getattr(self, name), " | ".join(allowed))
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 1:
            raise InputError("tokens", self.tokens, "a positive integer")
        if not 0 < self.train_share < 1:
            raise InputError("train_share", self.train_share, "between 0 and 1, exclusive")
        if self.cut_tail and self.position != "response":
            raise InputError("cut_tail", True, 'False, unless position is "response"')


DEFAULT = LockSettings()


def released() -> LockSettings:
    """As the released code does it."""
    return LockSettings(cut_tail=True, split="token", score="mean")


@dataclass(frozen=True, eq=False)
class Samples:
    """Head outputs of the two classes."""

    values: Tensor  # (layers, samples, heads, head_dim) float32
    chosen: Tensor  # (samples,) bool: of a chosen chat, or of a rejected one?
    pairs: Tensor  # (samples,) which pair each comes from


@dataclass(frozen=True, eq=False)
class Probes:
    """What is known of every head. All tensors on the CPU."""

    train_accuracy: Tensor  # (layers, heads) float64
    validation_accuracy: Tensor  # (layers, heads) float64
    validation_loss: Tensor  # (layers, heads) float64, mean log-loss in nats
    scores: Tensor  # (layers, heads) float64, by which heads are ranked
    directions: Tensor  # (layers, heads, head_dim) float32 unit, towards the chosen class; 0 if the classes do not differ
    gaps: Tensor  # (layers, heads) float32, distance of the class means
    sigma: Tensor  # (layers, heads) float32, standard deviation of the samples along the direction


def samples(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Sequence[dict]],
    rejected: Sequence[Sequence[dict]],
    settings: LockSettings = DEFAULT,
    batch: int = 16,
) -> Samples:
    """Head outputs of both classes, at the tokens that the settings name.

    Parameters
    ----------
    chosen, rejected : chats (lists of messages). Position "response": answered, the safe and the unsafe answer to the same
        request at the same place of both lists. Position "prompt": up to the request, `chosen` holding those that should
        be refused and `rejected` benign ones, since the lock pushes towards `chosen`. The lists may differ in length.
    batch : chats a forward pass.

    A response shorter than `tokens` gives as many samples as it has tokens. Its tokens are those of its text, without the end
    of turn.
    """
    if settings.position == "response" and len(chosen) != len(rejected):
        raise InputError(
            "rejected", f"{len(rejected)} chats", f"{len(chosen)}, as many as chosen ones: they are pairs"
        )
    if not len(chosen) or not len(rejected):
        raise InputError("chosen" if not len(chosen) else "rejected", [], "at least one chat")
    read = dialogues if settings.position == "response" else prompts
    found = read(tokenizer, [*chosen, *rejected])
    index, real = _positions(found, settings)
    values = head_outputs(
        model, [d.tokens for d in found], index, batch
    )  # (layers, chats, r, heads, head_dim)
    pairs = torch.cat([torch.arange(len(chosen)), torch.arange(len(rejected))])
    first = torch.arange(len(found)) < len(chosen)
    tokens = index.shape[1]
    return Samples(
        values.flatten(1, 2)[:, real.flatten()],
        first.repeat_interleave(tokens)[real.flatten()],
        pairs.repeat_interleave(tokens)[real.flatten()],
    )


def _positions(found: list[TokenizedChat], settings: LockSettings) -> tuple[Tensor, Tensor]:
    """(chats, r) indices of tokens, and which of them are to be used; the others only fill up the rectangle."""
    lengths, starts, stops = (
        torch.tensor(column) for column in zip(*((len(d.tokens), d.start, d.stop) for d in found))
    )
    if settings.position == "prompt":
        return lengths[:, None] - 1, torch.ones(len(found), 1, dtype=torch.bool)
    if settings.cut_tail:
        starts, stops = torch.zeros_like(starts), lengths - TAIL
    short = ((stops - starts) < (settings.tokens if settings.cut_tail else 1)).nonzero()
    if len(short):
        needed = f"{settings.tokens + TAIL} tokens or more" if settings.cut_tail else "an answer with a text"
        raise InputError("chosen, rejected", f"chat {int(short[0])} of the joined lists", needed)
    index = stops[:, None] + torch.arange(-settings.tokens, 0)
    real = index >= starts[:, None]
    return torch.maximum(index, starts[:, None]), real


def probe(found: Samples, settings: LockSettings, generator: torch.Generator, jobs: int | None = 1) -> Probes:
    """A logistic probe (L2, C = 1) of every head, its accuracies, and every head's direction and spread.

    `generator` (on the CPU) draws the split, which all heads share; `jobs` processes fit the probes, with the same result.
    Directions and spreads use all samples, of both parts, as the released code does. Accumulated in float64.
    """
    from sklearn.utils.parallel import Parallel, delayed

    train = _split(found, settings, generator)
    labels, mask = found.chosen.numpy(), train.numpy()
    layers, _, heads, _ = found.values.shape
    fits = Parallel(n_jobs=jobs)(
        delayed(_fit)(found.values[layer, :, head].numpy(), labels, mask)
        for layer in range(layers)
        for head in range(heads)
    )
    *measured, weights = (
        torch.tensor(np.stack(column)).unflatten(0, (layers, heads)) for column in zip(*fits)
    )
    trained, validated, loss = measured
    means = torch.stack([found.values[:, found.chosen == side].double().mean(1) for side in (True, False)])
    gap = means[0] - means[1]
    directions = unit(gap if settings.direction == "mean" else weights).float()
    return Probes(
        train_accuracy=trained,
        validation_accuracy=validated,
        validation_loss=loss,
        scores=validated if settings.score == "validation" else (trained + validated) / 2,
        directions=directions,
        gaps=gap.norm(dim=-1).float(),
        sigma=_spread(projections(found, directions), found.chosen, settings.sigma).float(),
    )


def _split(found: Samples, settings: LockSettings, generator: torch.Generator) -> Tensor:
    """(samples,) which of them train."""
    units = torch.arange(len(found.chosen)) if settings.split == "token" else found.pairs
    count = int(units.max()) + 1
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: round(settings.train_share * count)]] = True
    train = chosen[units]
    for part in (train, ~train):
        if len(found.chosen[part].unique()) < 2:
            raise InputError(
                "chosen, rejected", f"{count} pairs or tokens", "enough for both classes on both sides"
            )
    return train


def _fit(values: np.ndarray, labels: np.ndarray, train: np.ndarray) -> tuple:
    """Training accuracy, validation accuracy, validation log-loss, weights (head_dim,) of one head's probe."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    values = values.astype(np.float64)
    fitted = LogisticRegression(C=1.0, solver="lbfgs", max_iter=1000).fit(values[train], labels[train])
    return (
        fitted.score(values[train], labels[train]),
        fitted.score(values[~train], labels[~train]),
        log_loss(labels[~train], fitted.predict_proba(values[~train])),
        fitted.coef_[0],
    )


def projections(found: Samples, directions: Tensor) -> Tensor:
    """(layers, heads, samples) float64: every sample along every head's direction (layers, heads, head_dim).

    With another model's directions: how far its lock fits these activations (Figure 2's densities).
    """
    rows = zip(found.values, directions, strict=True)
    return torch.stack([torch.einsum("nhd,hd->hn", x.double(), u.double()) for x, u in rows])


def _spread(along: Tensor, chosen: Tensor, kind: str) -> Tensor:
    """(layers, heads) population standard deviation of (layers, heads, samples)."""
    if kind == "within":
        means = [along[..., chosen == side].mean(-1, keepdim=True) for side in (True, False)]
        along = along - torch.where(chosen, *means)
    return along.std(-1, correction=0)


def cosines(first: Probes, second: Probes) -> Tensor:
    """(layers, heads) cosine between the directions of two models, say before and after fine-tuning."""
    return (first.directions.double() * second.directions.double()).sum(-1)


def default_count(layers: int, heads: int) -> int:
    """K: the share of the heads that the paper locks of Llama-3-8B, 24 of 1,024; at least one."""
    return max(1, round(SHARE * layers * heads))


def top_heads(probes: Probes, count: int) -> list[tuple[int, int]]:
    """(layer, head) of the `count` highest scores. Of equal ones the lower validation loss first, then the earlier head."""
    total = check_count(probes.scores.numel(), count)
    order = np.lexsort((np.arange(total), probes.validation_loss.flatten(), -probes.scores.flatten()))[:count]
    return [divmod(int(i), probes.scores.shape[1]) for i in order]


def make_lock(
    probes: Probes, heads: Sequence[tuple[int, int]], alpha: float = ALPHA, meta: dict | None = None
) -> Lock:
    """The lock of these heads."""
    shape = tuple(probes.sigma.shape)
    for head in heads:
        if len(head) != 2 or not all(0 <= i < n for i, n in zip(head, shape)):
            raise InputError("heads", head, f"(layer, head) below {shape}")
        if not probes.directions[tuple(head)].any():
            raise InputError("heads", head, "a head whose output differs between the classes")
    layer, head = (torch.tensor(column) for column in zip(*heads)) if len(heads) else ([], [])
    return Lock(list(heads), probes.directions[layer, head], probes.sigma[layer, head], alpha, meta or {})


def extract(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Sequence[dict]],
    rejected: Sequence[Sequence[dict]],
    settings: LockSettings = DEFAULT,
    heads: int | Sequence[tuple[int, int]] | None = None,
    alpha: float = ALPHA,
    *,
    generator: torch.Generator,
    batch: int = 16,
    jobs: int | None = 1,
    meta: dict | None = None,
) -> tuple[Lock, Probes]:
    """The lock of a model and the probes behind it: `samples`, `probe`, `top_heads`, `make_lock` in a row.

    `heads`: how many of the best ones (None: `default_count`), or given ones; `meta` joins what is noted anyway.
    """
    strength(alpha)
    layers, width = model.config.num_hidden_layers, model.config.num_attention_heads
    count = default_count(layers, width) if heads is None else heads
    if isinstance(count, int):
        check_count(layers * width, count)
    probes = probe(samples(model, tokenizer, chosen, rejected, settings, batch), settings, generator, jobs)
    picked = top_heads(probes, count) if isinstance(count, int) else list(count)
    noted = {
        "settings": asdict(settings),
        "chats": [len(chosen), len(rejected)],
        "shape": [layers, width],
        "validation_accuracy": [float(probes.validation_accuracy[h]) for h in picked],
    }
    return make_lock(probes, picked, alpha, noted | (meta or {})), probes
