"""Rows laid end to end: nothing lost, nothing mixed, and the same losses and gradients as row by row."""

import llamas
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from safebook.chat_objectives import token_losses
from safebook.packing import lines, pack
from safebook.worlds.chat_tokens import ChatBatch


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_rows_never_overlap_and_never_leave_their_line(lengths):
    capacity = max(lengths)
    line, start, used = lines(lengths, capacity)
    taken = [(n, s + i) for n, s, k in zip(line, start, lengths) for i in range(k)]
    assert len(set(taken)) == sum(lengths)
    assert all(0 <= column < capacity for _, column in taken)
    assert sorted(set(line)) == list(range(used)) and used * capacity < 2 * sum(lengths) + capacity


def batch(lengths, seed=0):
    """Rows of random words; every second target counts, the last one too."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    tokens = torch.randint(5, 20, (len(lengths), longest), generator=generator)
    columns, lengths = torch.arange(longest), torch.tensor(lengths)
    mask = (columns[1:] < lengths[:, None]) & ((lengths[:, None] - columns[1:]) % 2 == 1)
    return ChatBatch(tokens * (columns < lengths[:, None]), mask, lengths)


LENGTHS = [17, 4, 9, 2, 11, 6, 3, 17]


def test_every_token_lies_where_it_is_said_to_lie_with_its_own_position():
    rows = batch(LENGTHS)
    packed = pack(rows.tokens, rows.lengths)
    assert packed.tokens.shape[0] < len(LENGTHS)
    for row, length in enumerate(LENGTHS):
        places = packed.places[row, :length]
        assert torch.equal(packed.tokens.flatten()[places], rows.tokens[row, :length])
        assert torch.equal(packed.positions.flatten()[places], torch.arange(length))


def test_rows_of_one_length_stay_as_they_are_without_a_mask():
    rows = batch([7, 7, 7])
    packed = pack(rows.tokens, rows.lengths)
    assert packed.positions is None and torch.equal(packed.tokens, rows.tokens)
    assert torch.equal(packed.tokens.flatten()[packed.places], rows.tokens)


def row_by_row(model, rows):
    """The same losses by the plain definition: each row alone, no padding."""
    found = []
    for tokens, mask, length in zip(rows.tokens, rows.loss_mask, rows.lengths):
        logits = model(input_ids=tokens[None, : length - 1]).logits[0].float()
        found.append(F.cross_entropy(logits, tokens[1:length], reduction="none")[mask[: length - 1]])
    return torch.cat(found)


@pytest.mark.parametrize("shape", ["plain", "grouped"])
def test_losses_and_gradients_are_those_of_each_row_alone(shape):
    model, rows = llamas.model(shape, seed=1).requires_grad_(True), batch(LENGTHS)
    expected = row_by_row(model, rows)
    wanted = torch.autograd.grad(expected.mean(), list(model.parameters()))
    losses = token_losses(model, rows)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(losses.mean(), list(model.parameters()))
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_row_does_not_read_its_neighbours():
    model, rows = llamas.model("plain", seed=1), batch(LENGTHS)
    before = token_losses(model, rows)
    rows.tokens[2] = (rows.tokens[2] + 1) * (rows.tokens[2] > 0)  # another text in row 2 alone
    changed = (token_losses(model, rows) != before).split(rows.loss_mask.sum(1).tolist())
    assert [bool(part.any()) for part in changed] == [row == 2 for row in range(len(LENGTHS))]
