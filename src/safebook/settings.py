"""What a world, a model and a training run are set to: plain values, checked when they are made, without torch.

The defaults are paper 1's. `profiles` chooses them for each size.
"""

import math
from dataclasses import dataclass

import numpy as np

from safebook.errors import InputError
from safebook.worlds.grammars import PAPER_TERMINALS


@dataclass(frozen=True)
class WorldSettings:
    """Size of the world. The defaults are the paper's."""

    alphabet: int = 30  # text symbols
    terminals: tuple = ()  # (grammars, 6 pre-terminals, 2 alternatives, k) nested tuples; () = the paper's
    operators: int = 10  # O0 (identity) .. O9
    duplicates: int = 5  # never-trained alias tokens of O4..O8
    operand_lengths: tuple[int, int] = (25, 35)  # both inclusive
    sequence_length: int = 160
    # Per grammar: always-unsafe and always-safe operators; the others are safe on safe text alone (context operators).
    always_unsafe: tuple[tuple[int, ...], ...] = ((1, 2), (3, 4), (8, 9), (1, 5))
    always_safe: tuple[tuple[int, ...], ...] = ((0, 3, 4), (0, 1, 2), (0, 6, 7), (0, 4, 7))

    def __post_init__(self):
        low, high = self.operand_lengths
        if not 1 <= low <= high:
            raise InputError("operand_lengths", self.operand_lengths, "(low, high) with 1 <= low <= high")
        if self.sequence_length < 3 * high + 10:
            raise InputError(
                "sequence_length", self.sequence_length, f">= {3 * high + 10} for operands up to {high}"
            )
        if len(self.always_unsafe) != len(self.always_safe):
            raise InputError("always_safe", self.always_safe, "one entry for each entry of always_unsafe")
        for unsafe, safe in zip(self.always_unsafe, self.always_safe):
            if (
                set(unsafe) & set(safe)
                or 0 not in safe
                or not set(unsafe) | set(safe) <= set(range(self.operators))
            ):
                raise InputError(
                    "always_unsafe", self.always_unsafe, "operators that are not always safe; O0 is safe"
                )
        if self.terminal_table.max() >= self.alphabet:
            raise InputError(
                "terminals", int(self.terminal_table.max()), f"symbols below alphabet={self.alphabet}"
            )
        if len(self.terminal_table) != self.grammars:
            raise InputError("terminals", len(self.terminal_table), f"{self.grammars} grammars")

    @property
    def grammars(self) -> int:
        return len(self.always_unsafe)

    @property
    def terminal_table(self) -> np.ndarray:
        """(grammars, 6, 2, k) symbols that each pre-terminal spells out."""
        return np.array(self.terminals) if self.terminals else PAPER_TERMINALS


@dataclass(frozen=True)
class Vocabulary:
    """Token ids in the released order; 59 ids at paper size."""

    alphabet: int
    operators: int
    duplicates: int

    aliases = 6  # two extra names each for O0, O1, O2

    @property
    def end_of_text(self) -> int:  # `>`: the position that predicts the first output token
        return self.operators + self.aliases

    begin = property(lambda self: self.end_of_text + 1)
    end = property(lambda self: self.end_of_text + 2)
    start = property(lambda self: self.end_of_text + 3)
    pad = property(lambda self: self.end_of_text + 4)
    stop = property(lambda self: self.end_of_text + 5)
    text = property(lambda self: self.end_of_text + 6)  # id of text symbol 0
    constant = property(lambda self: self.text + self.alphabet)  # ids of the two null-teaching task tokens
    size = property(lambda self: self.constant + 2 + self.duplicates)
    null = property(lambda self: self.text)  # refusal is text symbol 0, repeated

    def names(self) -> list[str]:
        """A readable name for each id."""
        return (
            [f"O{i}" for i in range(self.operators)]
            + [f"A{i}" for i in range(self.operators, self.end_of_text)]
            + [">", "BEGIN", "END", "START", "PAD", "STOP"]
            + [str(i) for i in range(self.alphabet)]
            + ["ex1", "ex2"]
            + [f"dup{i + 1}" for i in range(self.duplicates)]
        )


@dataclass(frozen=True)
class ModelSettings:
    """The defaults are the paper's: 2.68 M parameters."""

    vocabulary: int = 59
    context: int = 159  # longest input, tokens
    layers: int = 6
    heads: int = 6
    width: int = 192
    hidden: int = 768  # units of the MLP
    embedding_std: float = 0.02  # of the token embedding at initialisation; other matrices: 0.02

    def __post_init__(self):
        if not self.embedding_std > 0:
            raise InputError("embedding_std", self.embedding_std, "> 0")
        for name in ("vocabulary", "context", "layers", "heads", "width", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(name, value, "a positive integer")
        if self.width % self.heads or self.width % 2:
            raise InputError("width", self.width, f"an even multiple of heads={self.heads}")


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser and schedule: linear warm-up, cosine from the end of the warm-up to `decay_until`, then flat."""

    iterations: int
    batch: int  # sequences an iteration
    learning_rate: float
    minimum_rate: float
    warmup: int  # iterations
    decay_until: int  # iteration at which the minimum is reached
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4  # on matrices of linear layers only
    clip: float | None = None  # largest gradient norm; None = no clipping
    precision: str = "float32"  # or "bfloat16": autocast of the forward pass

    def __post_init__(self):
        if not 0 <= self.warmup <= self.decay_until <= self.iterations:
            raise InputError("decay_until", self.decay_until, f"{self.warmup} .. {self.iterations}")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError("precision", self.precision, ["float32", "bfloat16"])
        for name in ("iterations", "batch", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InputError(name, getattr(self, name), "> 0")

    def rate(self, iteration: int) -> float:
        """Learning rate of iteration 0, 1, ..."""
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / self.warmup
        progress = (iteration - self.warmup) / max(1, self.decay_until - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.minimum_rate + (self.learning_rate - self.minimum_rate) * cosine
