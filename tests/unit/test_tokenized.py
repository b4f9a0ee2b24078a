"""Chats of any tokenizer as batches: the testbed's own encoding, and what counts as a target."""

import llamas
import pytest
import torch

from safebook import tokenized
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.messages import TokenizedChat
from safebook.spf_arms import rows
from safebook.worlds.chat import ChatWorld
from safebook.worlds.chat_tokens import encode, tokenizer


def test_dialogues_of_the_testbed_are_encoded_as_in_training():
    world, words = ChatWorld(chat_profile("smoke").world), tokenizer(chat_profile("smoke").world)
    chats = rows("harm", world, 0, 3) + rows("sums", world, 0, 3)
    ours, theirs = tokenized.answered(words, chats), encode(words, chats)
    for name in ("tokens", "loss_mask", "lengths"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_only_the_opening_counts():
    words = llamas.tokenizer()
    batch = tokenized.opened(words, llamas.chats(), ["yes ."] * len(llamas.chats()))
    for row in range(len(batch)):
        targets = batch.tokens[row, 1:][batch.loss_mask[row]].tolist()
        assert targets == words("yes .", add_special_tokens=False)["input_ids"]


def test_rows_without_a_target_are_errors():
    with pytest.raises(InputError, match="rows"):
        tokenized.batch_of([TokenizedChat([1, 2, 3], 2, 2)])
    with pytest.raises(InputError, match="rows"):
        tokenized.batch_of([])
