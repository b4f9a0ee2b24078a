"""The record that a run writes: numbers per seed, tables, and where they come from.

    rec = results.new("pcfg-04-feature-space", size=size, seeds=seeds, parameters={"samples": samples})
    rec.add("tau", 3.2, seed=0, n=200, unit="1", model="ssft-medium", layer=6)
    rec.table("tau_per_layer", frame)
    rec.save()

A record is one `results.json` plus one CSV per table, in one folder. Nothing enters it that is missing, NaN,
infinite or of the wrong type: the call that tries raises RecordError at once.
"""

import hashlib
import io
import json
import math
import numbers
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from safebook import paths, provenance, registry
from safebook.schema import (
    SCHEMA_VERSION,
    AbsentError,
    Content,
    Label,
    Provenance,
    RecordError,
    Scalar,
    checked,
)

if TYPE_CHECKING:
    import pandas

FILE = "results.json"


class Tables(Mapping):
    """The record's tables by name, each read from its CSV text: in a fresh record as in a loaded one."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}

    def __getitem__(self, name: str) -> "pandas.DataFrame":
        import pandas

        if name not in self.text:
            raise RecordError(f"no table {name!r}; there are: {', '.join(self.text) or 'none'}")
        # "null" is a kind of answer in this book, not a missing value
        return pandas.read_csv(io.StringIO(self.text[name]), keep_default_na=False, na_values=[])

    def __contains__(self, name: object) -> bool:
        return name in self.text

    def __iter__(self) -> Iterator[str]:
        return iter(self.text)

    def __len__(self) -> int:
        return len(self.text)


class Record:
    """Numbers and tables of one run. Made by `new` or `load`."""

    def __init__(self, run: str, size: str, seeds: list[int], values: dict, folder: Path, inputs_hash: str):
        self.run, self.size, self.seeds, self.parameters = run, size, seeds, values
        self.folder, self.inputs_hash = folder, inputs_hash
        self.tables = Tables()
        self.provenance: Provenance | None = None  # known once saved
        self._scalars: dict[tuple, Scalar] = {}
        self._described: dict[str, dict] = {}
        self._clock, self._date = time.perf_counter(), datetime.now(UTC)

    @property
    def path(self) -> Path:
        """The record's file."""
        return self.folder / FILE

    def add(
        self, metric: str, value: float, seed: int | None = None, n: int = 1, unit: str = "", **labels: Label
    ) -> None:
        """Add one number. unit: "" for a pure number; n: samples behind it; labels: all else."""
        where = f"metric {metric!r} {labels or ''}".strip()
        if hasattr(value, "item") and getattr(value, "size", None) in (1, None):
            value = value.item()  # a numpy scalar
        elif hasattr(value, "numel") and value.numel() == 1:
            value = value.item()  # a torch scalar
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise RecordError(f"{where}: value is {value!r:.80}, not a number")
        if not math.isfinite(value):
            raise RecordError(f"{where}: value is {value!r}, not finite")
        if seed is not None and seed not in self.seeds:
            raise RecordError(f"{where}: seed {seed!r} is not among the run's seeds {self.seeds}")
        labels = {k: v.item() if hasattr(v, "item") else v for k, v in labels.items()}
        scalar = checked(
            Scalar,
            {"metric": metric, "value": float(value), "unit": unit, "seed": seed, "n": n, "labels": labels},
            where,
        )
        key = (metric, seed, tuple(sorted(labels.items())))
        if key in self._scalars:
            raise RecordError(f"{where}: added twice for seed {seed}")
        self._scalars[key] = scalar

    def table(self, name: str, frame: "pandas.DataFrame") -> None:
        """Add a tidy table; it becomes `<name>.csv` beside results.json and a download on the run's page."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise RecordError(f"table {name!r}: letters, digits, - and _ only")
        if not len(frame):
            raise RecordError(f"table {name!r}: no rows")
        for column in frame.columns:
            cells = frame[column]
            bad = cells.isna() | cells.map(lambda c: isinstance(c, float) and not math.isfinite(c)).astype(
                bool
            )
            if bad.any():
                row = int(bad.to_numpy().argmax())
                raise RecordError(f"table {name!r}: column {column!r}, row {row} is missing or not finite")
        self.tables.text[name] = text = frame.to_csv(index=False, lineterminator="\n")
        self._described[name] = {
            "sha256": _sha256(text.encode()),
            "rows": len(frame),
            "columns": [str(column) for column in frame.columns],
        }

    def scalars(self, metric: str, **labels: Label) -> dict[int | None, float]:
        """seed -> value of the one series with this metric and these labels; else RecordError."""
        found: dict[int | None, float] = {}
        for scalar in self._scalars.values():
            if scalar.metric == metric and labels.items() <= scalar.labels.items():
                if scalar.seed in found:
                    raise RecordError(
                        f"metric {metric!r} {labels}: several values for seed {scalar.seed}; add labels"
                    )
                found[scalar.seed] = scalar.value
        if not found:
            known = sorted({s.metric for s in self._scalars.values()})
            raise AbsentError(
                f"{self.run}: no metric {metric!r} with labels {labels}; metrics: {', '.join(known)}"
            )
        return found

    def frame(self, metric: str | None = None) -> "pandas.DataFrame":
        """The scalars as a frame: metric, value, unit, seed, n and one column per label."""
        import pandas

        rows = [s for s in self._sorted() if metric in (None, s.metric)]
        if not rows:
            raise RecordError(f"{self.run}: no metric {metric!r}")
        return pandas.DataFrame([{**s.model_dump(exclude={"labels"}), **s.labels} for s in rows])

    def _sorted(self) -> list[Scalar]:
        def order(s: Scalar) -> tuple:
            return (
                s.metric,
                [(k, str(v)) for k, v in sorted(s.labels.items())],
                -1 if s.seed is None else s.seed,
            )

        return sorted(self._scalars.values(), key=order)

    def save(self) -> Path:
        """Check and write all of it, after removing an old record; results.json comes last, by rename."""
        content = checked(
            Content,
            {
                "schema_version": SCHEMA_VERSION,
                "run": self.run,
                "size": self.size,
                "seeds": self.seeds,
                "parameters": self.parameters,
                "scalars": [s.model_dump() for s in self._sorted()],
                "tables": self._described,
                "provenance": provenance.collect()
                | {
                    "inputs_hash": self.inputs_hash,
                    "date": self._date.isoformat(timespec="seconds"),
                    "duration_s": round(time.perf_counter() - self._clock, 3),
                },
            },
            self.run,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        remove(self.folder)
        for name, text in self.tables.text.items():
            _write(self.folder / f"{name}.csv", text)
        _write(self.path, _dump(content))
        self.provenance = content.provenance
        return self.path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _dump(content: Content) -> str:
    """JSON with sorted keys and one scalar per line: a re-run shows as a short diff."""
    data = content.model_dump()
    lines = ",\n".join("  " + json.dumps(s, sort_keys=True, allow_nan=False) for s in data["scalars"])
    text = json.dumps(data | {"scalars": []}, sort_keys=True, indent=1, allow_nan=False)
    return text.replace('"scalars": []', f'"scalars": [\n{lines}\n ]' if lines else '"scalars": []') + "\n"


def new(
    run_id: str, *, size: str, seeds: list[int], parameters: Mapping[str, object] | None = None
) -> Record:
    """Start a record and its clock; parameters: the notebook's other parameters, by name.

    It lands in results/<size>/<run-id>/, or where the runner says (SAFEBOOK_RECORD_DIR).
    """
    registry.check_size(size)
    values = {"size": size, "seeds": list(seeds)} | dict(parameters or {})
    expected = os.environ.get("SAFEBOOK_RUN", run_id)
    if run_id != expected:
        raise RecordError(f"this notebook records run {run_id!r}, but is run as {expected!r}")
    folder = os.environ.get("SAFEBOOK_RECORD_DIR")
    folder = Path(folder) if folder else registry.get(run_id).folder(size)
    inputs_hash = os.environ.get("SAFEBOOK_INPUTS_HASH") or registry.inputs_hash(
        registry.get(run_id), size, values
    )
    return Record(run_id, size, list(seeds), values, folder, inputs_hash)


def load(folder: Path) -> Record:
    """Read and check the record in this folder; RecordError names what is wrong, also a changed CSV."""
    folder = Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise RecordError(f"{_short(path)}: there is no such file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{_short(path)}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise RecordError(f"{_short(path)}: not an object")
    content = checked(Content, data, _short(path))
    record = Record(
        content.run, content.size, content.seeds, content.parameters, folder, content.provenance.inputs_hash
    )
    record.provenance = content.provenance
    for scalar in content.scalars:
        record.add(scalar.metric, scalar.value, scalar.seed, scalar.n, scalar.unit, **scalar.labels)
    for name, table in content.tables.items():
        csv = folder / f"{name}.csv"
        if not csv.is_file():
            raise RecordError(f"{_short(path)}: table {name!r}: its CSV is missing")
        raw = csv.read_bytes()
        if _sha256(raw) != table.sha256:
            raise RecordError(f"{_short(path)}: table {name!r}: its CSV was changed (sha256 differs)")
        record.tables.text[name] = raw.decode("utf-8")
    return record


def _short(path: Path) -> str:
    return str(path.relative_to(paths.ROOT)) if path.is_relative_to(paths.ROOT) else path.name


def committed(run_id: str, above: str = "smoke") -> Record | None:
    """The best committed record of a size strictly larger than `above`; None if there is none."""
    run, floor = registry.get(run_id), registry.SIZES.index(registry.check_size(above))
    for size in reversed(registry.SIZES[floor + 1 :]):
        if (run.recorded(size) / FILE).is_file():
            return load(run.recorded(size))
    return None


def of_seed(record: Record, seed: int) -> Record:
    """The part of a record that one of its seeds measured, for the same figures. Raises RecordError for another seed."""
    if seed not in record.seeds:
        raise RecordError(f"seed {seed!r} is not among the run's seeds {record.seeds}")
    part = Record(record.run, record.size, [seed], record.parameters, record.folder, record.inputs_hash)
    part.provenance = record.provenance
    part._scalars = {key: s for key, s in record._scalars.items() if s.seed in (seed, None)}
    for name, frame in record.tables.items():
        if "seed" in frame:
            frame = frame[frame["seed"] == seed]
        part.tables.text[name] = frame.to_csv(index=False, lineterminator="\n")
    return part


def remove(folder: Path) -> None:
    """Delete the record in this folder, if any: results.json, then the tables it names, nothing else."""
    path = folder / FILE
    if not path.is_file():
        return
    try:
        names = list(json.loads(path.read_text(encoding="utf-8"))["tables"])
    except (ValueError, KeyError, TypeError):
        names = []
    path.unlink()
    for name in names:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)):
            (folder / f"{name}.csv").unlink(missing_ok=True)
