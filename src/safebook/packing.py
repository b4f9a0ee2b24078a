"""Rows of different lengths laid end to end, so that no matrix product is spent on padding.

Dialogues differ much in length: padded to the longest, two in five tokens of a batch are padding. Packed rows share a line,
each with positions of its own; transformers reads from positions that start anew that attention must stay within a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Packed:
    """A batch as fewer lines, none longer than its longest row."""

    tokens: Tensor  # (lines, capacity) int64
    positions: (
        Tensor | None
    )  # (lines, capacity) int64, 0, 1, ... from each row's first token; None = a row a line
    places: Tensor  # (n, length) int64 where each token of a row lies in the flattened lines


def lines(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int], int]:
    """Line of each row, its first column there, and how many lines: each row, the longest first, where it fits best.

    lengths: tokens of each row, at most `capacity`.
    """
    free: list[int] = []  # columns left on each line
    line, start = [0] * len(lengths), [0] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(left, number) for number, left in enumerate(free) if left >= lengths[row]]
        if not fitting:
            free.append(capacity)
        line[row] = min(fitting)[1] if fitting else len(free) - 1
        start[row] = capacity - free[line[row]]
        free[line[row]] -= lengths[row]
    return line, start, len(free)


def pack(tokens: Tensor, lengths: Tensor) -> Packed:
    """Lay the rows of a batch, padded on the right, end to end.

    tokens: (n, length) int64; lengths: (n,) tokens of each row that are no padding, the longest `length` or less.
    Where no two rows fit on one line, the batch stays as it is: plain causal attention is faster than a mask.
    """
    n, capacity = len(tokens), int(lengths.max())
    tokens, columns = tokens[:, :capacity], torch.arange(capacity, device=tokens.device)
    line, start, used = lines(lengths.tolist(), capacity)
    if used == n:
        return Packed(tokens, None, torch.arange(n, device=tokens.device)[:, None] * capacity + columns)
    first = torch.tensor(line, device=tokens.device) * capacity + torch.tensor(start, device=tokens.device)
    places = first[:, None] + columns
    real = columns < lengths.to(tokens.device)[:, None]
    packed = torch.zeros(used * capacity, dtype=torch.long, device=tokens.device)
    positions = torch.zeros_like(packed)  # padding stays at 0: a row of its own, token by token
    packed[places[real]] = tokens[real]
    positions[places[real]] = columns.expand_as(real)[real]
    return Packed(packed.view(used, capacity), positions.view(used, capacity), places)
