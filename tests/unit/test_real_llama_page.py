"""The page on real Llamas says what the code says: columns of files, parameters, sizes computed from shapes."""

import re
from dataclasses import fields

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safebook import parameters, paths, prompts_io, registry

PAGE = (paths.BOOK / "running-on-real-llama.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (Llama-\S+) \| (.+) \|$", PAGE, re.M)


@pytest.mark.parametrize(("name", "cells"), ROWS, ids=[name for name, _ in ROWS])
def test_sizes_are_those_of_the_architecture(name, cells):
    layers, d, f, vocabulary, heads, groups, channels, tied, count, gib = cells.replace(",", "").split(" | ")
    config = LlamaConfig(
        num_hidden_layers=int(layers),
        hidden_size=int(d),
        intermediate_size=int(f),
        vocab_size=int(vocabulary),
        num_attention_heads=int(heads),
        num_key_value_heads=int(groups),
        head_dim=int(channels),
        tie_word_embeddings=tied == "yes",
    )
    with torch.device("meta"):  # shapes without numbers
        model = LlamaForCausalLM(config)
    model.tie_weights()
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == int(count) and f"{2 * found / 2**30:.1f}" == gib


def test_there_are_shapes_and_columns_and_parameters_that_exist():
    assert len(ROWS) >= 3
    for kind in (prompts_io.Prompt, prompts_io.PreferencePair):
        assert all(f"`{field.name}`" in PAGE for field in fields(kind))
    known = {name for run in registry.RUNS for name in parameters.read(run.path)}
    section = PAGE.split("## Commands")[1].split("## The files")[0]
    for row in re.findall(r"^\| (`.+?) \|", section, re.M):
        assert set(re.findall(r"`(\w+)`", row)) <= known, row
    for name in re.findall(r"-p (\w+)=", PAGE):
        assert name in known, name
    for notebook in re.findall(r"safebook (?:params|run) (\S+)", PAGE):
        assert registry.by_template(notebook)
