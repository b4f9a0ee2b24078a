"""`safebook lock`: take, apply and look into a lock on small checkpoints, as a user would; and what is refused."""

import argparse
import json
from hashlib import sha256

import llamas
import numpy as np
import pytest
import torch

from safebook import lock_cli
from safebook.errors import InputError
from safebook.generation import greedy
from safebook.llama import load
from safebook.lock_apply import NOTE, locked
from safebook.lock_files import read_lock
from safebook.prompts_io import read_pairs
from safebook.safetylock import LockSettings, extract
from safebook.streams import stream

WORDS = llamas.words()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, preference pairs, harmful and benign requests."""
    folder = tmp_path_factory.mktemp("lock")
    llamas.checkpoint(folder / "model", "grouped")
    rows = [
        {"prompt": f"{WORDS[i]} w1", "chosen": " ".join(WORDS[i : i + 6]), "rejected": " ".join(WORDS[23 - i : 9 : -1])}
        for i in range(10)
    ]  # fmt: skip
    rows[3]["system"] = "w5 w6"
    (folder / "pairs.json").write_text(json.dumps(rows))
    for name, start in (("harmful", 0), ("benign", 12)):
        rows = [f"{WORDS[start + i]} {WORDS[start + i + 1]}" for i in range(8)]
        (folder / f"{name}.csv").write_text("\n".join(["prompt", *rows]) + "\n")
    return folder


def call(*arguments) -> int:
    parser = argparse.ArgumentParser()
    lock_cli.add(parser.add_subparsers(required=True))
    options = parser.parse_args(["lock", *map(str, arguments)])
    return options.command(options)


def test_extract_apply_and_inspect(place, tmp_path, capsys):
    model, pairs, out = place / "model", place / "pairs.json", tmp_path / "own.safetensors"
    common = ("--device", "cpu")
    assert (
        call("extract", "--model", model, "--pairs", pairs, "--heads", 3, "--alpha", 4, "--out", out, *common)
        == 0
    )
    assert "heads 3 of 8" in capsys.readouterr().out
    lock = read_lock(out)
    source = lock.meta["source"]
    assert source["model"] == str(model) and source["seed"] == 0 and source["versions"]["torch"]
    assert source["files"] == {"pairs.json": sha256(pairs.read_bytes()).hexdigest()}
    # The same through the package, chats written out by hand.
    network, tokenizer = load(str(model), device="cpu")
    chats = {"chosen": [], "rejected": []}
    for pair in read_pairs(str(pairs)):
        system = [{"role": "system", "content": pair.system}] if pair.system else []
        for side, found in chats.items():
            answer = {"role": "assistant", "content": getattr(pair, side)}
            found.append([*system, {"role": "user", "content": pair.prompt}, answer])
    expected, _ = extract(
        network, tokenizer, **chats, heads=3, generator=stream(torch.device("cpu"), "lock", 0)
    )
    assert lock.heads == expected.heads and lock.alpha == 4.0
    assert torch.equal(lock.directions, expected.directions) and torch.equal(lock.sigma, expected.sigma)

    made = tmp_path / "locked"
    assert call("apply", "--model", model, "--lock", out, "--alpha", 8, "--out", made, *common) == 0
    assert "alpha 8" in capsys.readouterr().out
    assert json.loads((made / NOTE).read_text())["alpha"] == 8
    with locked(network, lock, 8.0):
        online = greedy(network, tokenizer, llamas.chats(), 8)
    assert greedy(*load(str(made), device="cpu"), llamas.chats(), 8) == online

    assert call("inspect", out) == 0
    shown = capsys.readouterr().out
    assert "heads 3, channels of a head 8, alpha 4" in shown and "pairs.json" in shown
    assert call("inspect", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [tuple(h) for h in found["heads"]] == list(lock.heads)
    assert found["displacement"] == pytest.approx(4 * float(lock.sigma.double().norm()), rel=1e-5)


def test_the_prompt_position_and_the_default_number_of_heads(place, tmp_path):
    out = tmp_path / "own.safetensors"
    files = ("--harmful-prompts", place / "harmful.csv", "--benign-prompts", place / "benign.csv")
    arguments = ("--model", place / "model", "--device", "cpu", "--out", out)
    assert call("extract", "--position", "prompt", *files, *arguments, "--seed", 5) == 0
    lock = read_lock(out)
    assert len(lock.heads) == 1 and lock.alpha == 6.0 and lock.meta["settings"]["position"] == "prompt"
    network, tokenizer = load(str(place / "model"), device="cpu")
    asked = [
        [
            [{"role": "user", "content": line}]
            for line in (place / f"{name}.csv").read_text().split("\n")[1:-1]
        ]
        for name in ("harmful", "benign")
    ]
    generator = stream(torch.device("cpu"), "lock", 5)
    expected, _ = extract(network, tokenizer, *asked, LockSettings(position="prompt"), generator=generator)
    assert lock.heads == expected.heads and torch.equal(lock.directions, expected.directions)


def test_a_released_lock_is_applied_and_shown(place, tmp_path, capsys):
    direction = np.full(8, 8**-0.5).astype(np.float16)
    path = tmp_path / "authors.safelock"
    torch.save({"model.layers.1.self_attn.head_out": [(np.int64(2), direction, np.float64(0.5))]}, path)
    assert call("inspect", path) == 0
    assert "heads 1, channels of a head 8, alpha 6" in capsys.readouterr().out
    made = tmp_path / "locked"
    arguments = ("--model", place / "model", "--device", "cpu", "--lock", path, "--out", made)
    assert call("apply", *arguments) == 0
    projection = load(str(made), device="cpu")[0].model.layers[1].self_attn.o_proj
    expected = 3.0 * projection.weight[:, 16:24].sum(1) * 8**-0.5
    torch.testing.assert_close(projection.bias, expected, rtol=1e-3, atol=1e-4)


def refused() -> dict:
    extract = ("extract", "--model", "MODEL")
    out = ("--out", "OUT.safetensors")
    pairs = ("--pairs", "PLACE/pairs.json")
    apply = ("apply", "--model", "MODEL")
    return {
        "no pairs": ((*extract, *out), "--pairs"),
        "pairs for prompts": ((*extract, *pairs, "--position", "prompt", *out), "--pairs"),
        "one file of two": (
            (*extract, "--position", "prompt", "--harmful-prompts", "PLACE/harmful.csv", *out),
            "--benign-prompts",
        ),
        "unknown position": ((*extract, *pairs, "--position", "last", *out), "--position"),
        "missing file": ((*extract, "--pairs", "PLACE/none.json", *out), "--pairs"),
        "not a lock's name": ((*extract, *pairs, "--out", "OUT.safelock"), "--out"),
        "no heads": ((*extract, *pairs, "--heads", "0", *out), "--heads"),
        "too many heads": ((*extract, *pairs, "--heads", "9", "--device", "cpu", *out), "heads"),
        "alpha": ((*extract, *pairs, "--alpha", "nan", *out), "alpha"),
        "missing model": (("extract", "--model", "PLACE/none", *pairs, *out), "model"),
        "missing lock": ((*apply, "--lock", "PLACE/none.safelock", "--out", "OUT"), "lock"),
        "not a lock": ((*apply, "--lock", "PLACE/pairs.json", "--out", "OUT"), "lock"),
        "over a folder": ((*apply, "--lock", "PLACE/none.safelock", "--out", "MODEL"), "--out"),
        "infinite alpha": (
            (*apply, "--lock", "PLACE/none.safelock", "--alpha", "inf", "--out", "OUT"),
            "alpha",
        ),
        "inspect nothing": (("inspect", "PLACE/none.safelock"), "lock"),
    }


@pytest.mark.parametrize(("arguments", "parameter"), refused().values(), ids=refused())
def test_bad_input_names_the_option_and_writes_nothing(place, tmp_path, arguments, parameter):
    names = {"MODEL": str(place / "model"), "PLACE": str(place), "OUT": str(tmp_path / "out")}
    for name, value in names.items():
        arguments = [a.replace(name, value) for a in arguments]
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert caught.value.parameter == parameter
    assert not list(tmp_path.iterdir())
