"""Locks in files: our own, a safetensors file, and the `.safelock` files that the authors of paper 2 released.

Ours holds `heads` (K, 2) layer and head, `directions` (K, head_dim), `sigma` (K,); its metadata, under `lock`, a JSON object of
`format`, `alpha` and `meta` (settings, source, versions). A `.safelock` is a zip archive of torch.save around a pickled
dictionary, layer name -> list of (head, direction in float16, sigma). A pickle can run code, so only the few constructors of
numbers are let through.
"""

import io
import json
import os
import pickletools
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safebook.errors import InputError
from safebook.locks import ALPHA, Lock

FORMAT = "safebook-lock-1"
OURS, RELEASED = ".safetensors", ".safelock"
LARGEST = 64 * 2**20  # bytes; the released ones have up to 30 thousand

#: What pickled numbers are made with. Scalars and arrays by their own account, so that no private module is imported.
_SCALAR, _ARRAY = np.float16(1).__reduce__()[0], np.empty(0).__reduce__()[0]
_NUMPY = {f"numpy.{core}.multiarray.scalar": _SCALAR for core in ("core", "_core")} | {
    f"numpy.{core}.multiarray._reconstruct": _ARRAY for core in ("core", "_core")
}
_NUMPY |= {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_TORCH = {
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{kind}Storage" for kind in ("Half", "BFloat16", "Float", "Double", "Int", "Long")),
}
ALLOWED = {*_NUMPY, *_TORCH, "_codecs.encode", "collections.OrderedDict"}
#: numpy gives every number format a class; an instance is filled in after it is made.
_FORMATS = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8")]


def write_lock(lock: Lock, path: str | Path) -> Path:
    """Write our format, at once or not at all. `path` ends in `.safetensors`; what is there is replaced."""
    file = Path(path).expanduser()
    if file.suffix != OURS:
        raise InputError("path", str(path), f"a file name that ends in {OURS}")
    tensors = {
        "heads": torch.tensor(lock.heads),
        "directions": lock.directions.contiguous(),
        "sigma": lock.sigma.contiguous(),
    }
    # One text: safetensors writes several ones in any order, and the same lock would give different files.
    note = json.dumps({"format": FORMAT, "alpha": lock.alpha, "meta": lock.meta}, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        save_file(tensors, part, {"lock": note})
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return file


def read_lock(path: str | Path) -> Lock:
    """A lock from a file of either format, checked."""
    file = Path(path).expanduser()
    readers = {OURS: _read_ours, RELEASED: _read_released}
    if file.suffix not in readers:
        raise InputError("lock", str(path), f"a file that ends in {' or '.join(readers)}")
    if not file.is_file():
        raise InputError("lock", str(path), "a file that is there")
    try:
        return readers[file.suffix](file)
    except InputError as error:
        if error.parameter == "lock":
            raise
        shown = f"{path}: {error.parameter} {error.value}"
        raise InputError("lock", shown[:200], error.allowed) from error


def _read_ours(file: Path) -> Lock:
    try:
        with safe_open(file, framework="pt") as opened:
            noted = json.loads((opened.metadata() or {}).get("lock", "{}"))
            if noted.get("format") != FORMAT:
                raise InputError("lock", str(file), f"a lock that safebook wrote ({FORMAT})")
            found = {name: opened.get_tensor(name) for name in ("heads", "directions", "sigma")}
        heads, alpha, meta = found["heads"], noted["alpha"], noted["meta"]
    except InputError:
        raise
    except (SafetensorError, KeyError, ValueError, AttributeError, OSError) as error:
        raise InputError("lock", str(file), f"a complete lock file: {error}") from error
    if heads.ndim != 2 or heads.shape[1] != 2 or heads.is_floating_point() or not isinstance(meta, dict):
        raise InputError("lock", f"{file}: heads {tuple(heads.shape)}", "(K, 2) integers, and meta an object")
    return Lock([tuple(head) for head in heads.tolist()], found["directions"], found["sigma"], alpha, meta)


def _read_released(file: Path) -> Lock:
    """Directions are kept as they are, in float16's precision; alpha is the released default."""
    content = _load_numbers(file)
    if not isinstance(content, dict) or not content:
        raise InputError("lock", f"{file}: a {type(content).__name__}", "a dictionary of layers")
    found = []
    for name, entries in content.items():
        numbers = re.findall(r"\d+", name) if isinstance(name, str) else []
        if len(numbers) != 1:
            raise InputError(
                "lock",
                f"{file}: layer {name!r}",
                "a name with one number, as model.layers.3.self_attn.head_out",
            )
        if not isinstance(entries, list):
            raise InputError("lock", f"{file}: layer {name}", "a list of heads")
        found += [_entry(file, int(numbers[0]), entry) for entry in entries]
    widths = {len(direction) for _, direction, _ in found}
    if len(widths) != 1:
        raise InputError("lock", f"{file}: directions of {sorted(widths)} channels", "heads of one width")
    heads, directions, sigma = zip(*sorted(found, key=lambda one: one[0]))
    meta = {"source": file.name, "format": "released .safelock"}
    return Lock(heads, torch.stack(directions), torch.tensor(sigma, dtype=torch.float32), ALPHA, meta)


def _entry(file: Path, layer: int, entry) -> tuple[tuple[int, int], torch.Tensor, float]:
    """((layer, head), direction (head_dim,) float32, sigma) of one pickled triple."""
    allowed = "(head, direction, sigma): an integer, a list of numbers, a number"
    try:
        head, direction, sigma = entry
        index, direction = np.asarray(head), torch.as_tensor(direction)
        fine = index.ndim == 0 and index.dtype.kind in "iu" and direction.ndim == 1
        if not fine or not direction.is_floating_point() or not len(direction):
            raise TypeError("of other types")
        return (layer, int(index)), direction.float(), float(sigma)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("lock", f"{file}: layer {layer}: {error}", allowed) from error


def _load_numbers(file: Path) -> object:
    """What is pickled in the archive, if it is made of numbers alone. Nothing is built before every name has been seen."""
    if file.stat().st_size > LARGEST:
        raise InputError("lock", str(file), f"at most {LARGEST} bytes")
    data = io.BytesIO(file.read_bytes())
    if not zipfile.is_zipfile(data):
        raise InputError("lock", str(file), "a complete zip archive, as torch.save writes")
    try:
        with zipfile.ZipFile(data) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
            pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if sum(sizes) > LARGEST or len(pickles) != 1:
                raise InputError("lock", str(file), f"one data.pkl, and at most {LARGEST} bytes in all")
            steps = list(pickletools.genops(archive.read(pickles[0])))
    except InputError:
        raise
    except Exception as error:  # whatever is wrong with a file that anyone may have made
        raise InputError("lock", str(file), f"a readable archive: {error}") from error
    for step, argument, _ in steps:
        if step.name == "GLOBAL" and argument.replace(" ", ".") not in ALLOWED:
            name = argument.replace(" ", ".")
            raise InputError("lock", f"{file}: its pickle names {name!r}", "numbers of numpy and torch alone")
        if step.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):  # other ways to name something
            raise InputError("lock", f"{file}: its pickle holds {step.name}", "a pickle of protocol 2")
    data.seek(0)
    safe = [*((made, name) for name, made in _NUMPY.items()), *_FORMATS]
    try:
        # torch's own restricted unpickler: builds what is on its list or on this one, and runs nothing else.
        with torch.serialization.safe_globals(safe):
            return torch.load(data, map_location="cpu", weights_only=True)
    except Exception:  # its message advises to load the file without protection, so it is not passed on
        raise InputError("lock", str(file), "a readable archive of numbers of numpy and torch") from None
