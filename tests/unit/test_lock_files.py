"""Lock files: ours there and back, and released ones, which are written here as torch.save writes them. None may run code."""

import json
import os
import zipfile
from pathlib import Path

import llamas
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from safebook.errors import InputError
from safebook.lock_apply import bias_edit, locked
from safebook.lock_files import FORMAT, read_lock, write_lock
from safebook.locks import Lock, unit

NAME = "model.layers.{}.self_attn.head_out"
HEADS = {0: [2], 1: [3, 0]}


def unit16(width: int = 8, seed: int = 0) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=width)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def content(width: int = 8, heads: dict = HEADS, number=np.int64, sigma=np.float64, tensor=False) -> dict:
    """What a released file pickles: layer name -> list of (head, direction, sigma)."""
    found = {}
    for layer, own in heads.items():
        entries = [(number(h), unit16(width, 10 * layer + h), sigma(0.25 * (h + 1))) for h in own]
        found[NAME.format(layer)] = [(h, torch.tensor(u) if tensor else u, s) for h, u, s in entries]
    return found


def released(path: Path, data: object) -> Path:
    torch.save(data, path)
    return path


def repacked(path: Path, change) -> Path:
    """The same archive with its pickle changed: bytes -> bytes."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


# ours


def test_our_format_there_and_back(tmp_path):
    directions = unit(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    lock = Lock(
        [(1, 3), (0, 2), (1, 0)], directions, torch.tensor([0.1, 0.7, 1 / 3]), 4.5, {"source": {"seed": 1}}
    )
    path = write_lock(lock, tmp_path / "new" / "a.safetensors")
    again = read_lock(path)
    assert again.heads == lock.heads and again.alpha == 4.5 and again.meta == lock.meta
    assert torch.equal(again.directions, directions) and torch.equal(again.sigma, lock.sigma)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    first = path.read_bytes()
    assert write_lock(lock, path).read_bytes() == first  # the same lock, the same file


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    lock = Lock([(0, 0)], torch.tensor([[1.0, 0.0]]), torch.ones(1))
    path = write_lock(lock, tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="space"):
        write_lock(lock, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


GOOD = {"heads": torch.tensor([[0, 1]]), "directions": torch.tensor([[0.6, 0.8]]), "sigma": torch.ones(1)}
NOTED = {"format": FORMAT, "alpha": 6.0, "meta": {}}


@pytest.mark.parametrize(
    ("tensors", "noted", "words"),
    [
        ({}, {"format": "other"}, "safebook wrote"),
        ({"sigma": None}, {}, "complete"),
        ({"sigma": torch.ones(2)}, {}, "sigma"),
        ({"sigma": torch.tensor([float("inf")])}, {}, "sigma"),
        ({"heads": torch.tensor([[0.5, 1.0]])}, {}, "integers"),
        ({"heads": torch.tensor([0, 1])}, {}, "integers"),
        ({"heads": torch.tensor([[0, -1]])}, {}, "counted from 0"),
        ({"directions": torch.tensor([[2.0, 0.0]])}, {}, "length 1"),
        ({"directions": torch.tensor([[0.6, 0.8]]).half()}, {}, "float32"),
        ({}, {"alpha": "strong"}, "finite"),
        ({}, {"alpha": float("nan")}, "finite"),
        ({}, {"meta": []}, "object"),
        ({}, None, "safebook wrote"),
        ({}, "[", "complete"),
        ({}, "[]", "complete"),
    ],
)
def test_a_damaged_file_of_ours_is_refused(tmp_path, tensors, noted, words):
    path = tmp_path / "a.safetensors"
    kept = {name: value for name, value in (GOOD | tensors).items() if value is not None}
    if isinstance(noted, dict):
        noted = json.dumps(NOTED | noted)
    save_file(kept, path, noted and {"lock": noted})
    with pytest.raises(InputError, match=words) as caught:
        read_lock(path)
    assert caught.value.parameter == "lock"


def test_half_a_file_of_ours_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(GOOD, path, {"lock": json.dumps(NOTED)})
    assert read_lock(path).heads == ((0, 1),)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="complete"):
        read_lock(path)


def test_names_of_files(tmp_path):
    lock = Lock([(0, 0)], torch.tensor([[1.0, 0.0]]), torch.ones(1))
    with pytest.raises(InputError, match="safetensors"):
        write_lock(lock, tmp_path / "a.pt")
    for name, words in [("a.pt", "ends in"), ("a.safelock", "is there"), ("a.safetensors", "is there")]:
        with pytest.raises(InputError, match=words):
            read_lock(tmp_path / name)
    assert not list(tmp_path.iterdir())


# released ones


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tensor": True},
        {"number": np.int32, "sigma": np.float16},
        {"number": int, "sigma": float},
        {"sigma": np.float32},
        {"sigma": lambda x: torch.tensor(x)},
    ],
    ids=["numpy", "tensors", "small numbers", "plain numbers", "float32", "a tensor as sigma"],
)
def test_a_released_file_is_read(tmp_path, given):
    lock = read_lock(released(tmp_path / "a.safelock", content(**given)))
    assert lock.heads == ((0, 2), (1, 0), (1, 3)) and lock.alpha == 6.0
    assert lock.directions.dtype == torch.float32 and lock.directions.shape == (3, 8)
    expected = torch.stack([torch.tensor(unit16(8, 10 * layer + head)).float() for layer, head in lock.heads])
    assert torch.equal(lock.directions, expected)
    assert lock.sigma.tolist() == [0.75, 0.25, 1.0]
    assert lock.meta["source"] == "a.safelock"


def test_a_file_written_with_numpy_1_names_its_modules_otherwise(tmp_path):
    path = released(tmp_path / "a.safelock", content())
    seen = []

    def change(data: bytes) -> bytes:
        seen.append(b"cnumpy._core.multiarray\n" in data)
        return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")

    expected = read_lock(path)
    found = read_lock(repacked(path, change))
    assert seen == [True] and found.heads == expected.heads
    assert torch.equal(found.directions, expected.directions) and torch.equal(found.sigma, expected.sigma)


def test_any_name_with_one_number_is_a_layer(tmp_path):
    entry = [(np.int64(1), unit16(), np.float64(1.0))]
    lock = read_lock(released(tmp_path / "a.safelock", {"layers_31": entry, "x.7": entry}))
    assert lock.heads == ((7, 1), (31, 1))
    for name in ("layers", "model2.layers.3", 3):
        with pytest.raises(InputError, match="one number"):
            read_lock(released(tmp_path / "a.safelock", {name: entry}))


def test_a_released_lock_does_what_its_numbers_say(tmp_path):
    """Of the size of the released ones: 24 heads of 128 channels, about 14 KB."""
    path = released(tmp_path / "a.safelock", content(128, {layer: [1, 5] for layer in range(12)}))
    assert 10_000 < path.stat().st_size < 20_000
    lock = read_lock(path)
    assert len(lock.heads) == 24 and lock.directions.shape == (24, 128)
    model = llamas.model("grouped")
    small = read_lock(released(tmp_path / "b.safelock", content()))
    bias_edit(model, small)
    projection = model.model.layers[0].self_attn.o_proj
    vector = torch.zeros(32, dtype=torch.float64)
    vector[2 * 8 : 3 * 8] = 6 * 0.75 * torch.tensor(unit16(8, 2)).double()
    expected = projection.weight.double() @ vector
    torch.testing.assert_close(projection.bias.double(), expected, rtol=0, atol=1e-5)


def test_a_lock_of_another_models_shape_is_refused_when_it_is_applied(tmp_path):
    model = llamas.model()
    for data, words in [
        (content(16), "16 channels"),
        (content(heads={0: [4]}), "head 4"),
        (content(heads={2: [0]}), "layer 2"),
    ]:
        lock = read_lock(released(tmp_path / "a.safelock", data))
        for use in (bias_edit, lambda m, one: locked(m, one).__enter__()):
            with pytest.raises(InputError, match=words):
                use(model, lock)


class Runs:
    """Pickled as a call that would create a file."""

    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


def _mark(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("call", ["system", "eval", "own", "getattr", "in an entry", "as a storage"])
def test_an_archive_that_would_run_code_does_not(tmp_path, call):
    mark = tmp_path / "ran"
    touch = Runs(os.system, f"touch {mark}")
    data = {
        "system": touch,
        "eval": Runs(eval, f"open({str(mark)!r}, 'w')"),
        "own": Runs(_mark, str(mark)),
        "getattr": Runs(getattr, np.ndarray, "tofile"),
        "in an entry": {NAME.format(0): [(touch, unit16(), 1.0)]},
        "as a storage": {NAME.format(0): [(np.int64(0), Runs(torch.load, str(mark)), 1.0)]},
    }[call]
    path = released(tmp_path / "a.safelock", data)
    with pytest.raises(InputError, match="numbers of numpy and torch alone") as caught:
        read_lock(path)
    assert caught.value.parameter == "lock" and not mark.exists()
    names = {"system": "posix.system", "getattr": "getattr", "own": "_mark"}  # the error tells what it was
    assert names.get(call, "") in str(caught.value)
    torch.load(path, weights_only=False) if call == "system" else None
    assert mark.exists() == (call == "system")  # the attack is real: an ordinary load runs it


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_is_not_run_whatever_the_pickles_protocol(tmp_path, protocol):
    mark, path = tmp_path / "ran", tmp_path / "a.safelock"
    torch.save(Runs(os.system, f"touch {mark}"), path, pickle_protocol=protocol)
    with pytest.raises(InputError, match=r"protocol 2|numbers of numpy"):
        read_lock(path)
    assert not mark.exists()


def test_code_in_an_archive_of_the_old_kind_is_not_run(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "a.safelock"
    torch.save(Runs(os.system, f"touch {mark}"), path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="zip archive"):
        read_lock(path)
    assert not mark.exists()


def test_a_second_pickle_in_the_archive_is_refused(tmp_path):
    path = released(tmp_path / "a.safelock", content())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", b"\x80\x02N.")
    with pytest.raises(InputError, match=r"one data\.pkl"):
        read_lock(path)


def test_damaged_archives_are_refused(tmp_path):
    path = released(tmp_path / "a.safelock", content(tensor=True))
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="archive") as caught:
            read_lock(path)
        assert caught.value.parameter == "lock"
    path.write_bytes(whole)
    for change in (lambda data: data[:-40], lambda _: b"", lambda _: b"\x80\x02K\x01", lambda _: b"\xff\xff"):
        path.write_bytes(whole)
        with pytest.raises(InputError):
            read_lock(repacked(path, change))


def test_an_archive_that_grows_is_refused(tmp_path):
    """100 MB of zeros, packed into 100 KB."""
    path = tmp_path / "a.safelock"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(100 * 2**20))
    with pytest.raises(InputError, match="at most"):
        read_lock(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "dictionary"),
        ({}, "dictionary"),
        (content() | {NAME.format(5): 3}, "list of heads"),
        ({NAME.format(0): []}, "one width"),
        ({NAME.format(0): [(0, unit16(8), 1.0), (1, unit16(16), 1.0)]}, "one width"),
        ({NAME.format(0): [(0, unit16())]}, "head, direction, sigma"),
        ({NAME.format(0): [3]}, "head, direction, sigma"),
        ({NAME.format(0): [(0.5, unit16(), 1.0)]}, "head, direction, sigma"),
        ({NAME.format(0): [(0, unit16().reshape(2, 4), 1.0)]}, "head, direction, sigma"),
        ({NAME.format(0): [(0, np.arange(8), 1.0)]}, "head, direction, sigma"),
        ({NAME.format(0): [(0, np.array([None] * 8), 1.0)]}, "numbers of numpy"),
        ({NAME.format(0): [(0, "abc", 1.0)]}, "head, direction, sigma"),
        ({NAME.format(0): [(0, unit16(), "1 m")]}, "head, direction, sigma"),
        ({NAME.format(0): [(0, unit16(), -1.0)]}, "0 or more"),
        ({NAME.format(0): [(0, unit16(), float("nan"))]}, "finite"),
        ({NAME.format(0): [(0, 2 * unit16(), 1.0)]}, "length 1"),
        ({NAME.format(0): [(np.int64(1), unit16(), 1.0), (1, unit16(), 1.0)]}, "every one once"),
        ({NAME.format(0): [(-1, unit16(), 1.0)]}, "counted from 0"),
    ],
)
def test_released_files_of_other_content_are_refused(tmp_path, data, words):
    with pytest.raises(InputError, match=words) as caught:
        read_lock(released(tmp_path / "a.safelock", data))
    assert caught.value.parameter == "lock" and "a.safelock" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to load it without protection


def test_a_read_lock_can_be_written_in_our_format(tmp_path):
    lock = read_lock(released(tmp_path / "a.safelock", content()))
    again = read_lock(write_lock(lock, tmp_path / "a.safetensors"))
    assert again.heads == lock.heads and torch.equal(again.directions, lock.directions)
    assert json.loads(json.dumps(again.meta)) == lock.meta
