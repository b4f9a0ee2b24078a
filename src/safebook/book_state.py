"""What is known about each run at one size: the facts that the book's pages are made from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safebook import paths

STATES = ("ok", "stale", "failed", "not run")


@dataclass(frozen=True)
class RunView:
    """One run at one size. `record` is the valid results.json, None unless state is ok or stale."""

    run: Any  # registry.Run
    size: str
    state: str  # one of STATES
    folder: Path | None = None  # where the record lies
    local: bool = True  # this machine's run, or a committed record
    record: dict | None = None
    notebook: Path | None = None  # the executed notebook; partial after a failure
    status: dict = field(default_factory=dict)
    error: dict | None = None  # name, message, cell, traceback
    some_seeds: list[int] | None = None  # the record's, where this machine's run has fewer than the book's

    @property
    def facts(self) -> dict:
        """Provenance of the record; of a failed run what its status file knows."""
        if self.record is None:
            return {key: value for key, value in self.status.items() if not isinstance(value, dict)}
        return {**self.record, **self.record["provenance"]}


def view(run: Any, size: str) -> RunView:
    """The run's own last attempt on this machine if there is one, else the committed record of this size."""
    local, recorded = paths.RESULTS / size / run.id, paths.RECORDED / size / run.id
    status = _read_json(local / "status.json") or {}
    notebook = local / "notebook.ipynb"
    if status.get("state") == "failed":
        error = status.get("error") or {"name": "RunFailed", "message": "no reason was recorded"}
        return RunView(run, size, "failed", local, True, None, _existing(notebook), status, error)
    for folder, is_local in ((local, True), (recorded, False)):
        if (folder / "results.json").exists():
            return _recorded(run, size, folder, is_local, status if is_local else {})
    return RunView(run, size, "not run")


def elsewhere(run: Any, size: str) -> list[RunView]:
    """The run's other records, on this machine or committed, smallest size first.

    That is those of the other sizes; also the committed one of this size where this machine's own run failed, or has
    fewer seeds.
    """
    from safebook import registry

    found = []
    for other in registry.SIZES:
        known = view(run, other)
        committed = paths.RECORDED / other / run.id
        lacking = known.record is None or known.some_seeds
        if lacking and (committed / "results.json").exists():
            known = _recorded(run, other, committed, False, {})
        elif other == size:
            continue
        if known.record is not None:
            found.append(known)
    return found


def _recorded(run: Any, size: str, folder: Path, local: bool, status: dict) -> RunView:
    from safebook import registry

    record, error = _load(folder)
    notebook = _existing(folder / "notebook.ipynb")
    if record is None:
        return RunView(run, size, "failed", folder, local, None, notebook, status, error)
    # committed records have every seed
    seeds = record["seeds"] if local else registry.seeds(run, size, every_seed=True)
    state = (
        "ok" if record["provenance"]["inputs_hash"] == registry.current_hash(run, size, seeds) else "stale"
    )
    some = seeds if registry.fewer_seeds(run, size, seeds) else None
    return RunView(run, size, state, folder, local, record, notebook, status, some_seeds=some)


def files(view: RunView) -> list[Path]:
    """The record and the tables it names, for download."""
    if view.record is None or view.folder is None:
        return []
    return [
        view.folder / "results.json",
        *(view.folder / f"{name}.csv" for name in sorted(view.record["tables"])),
    ]


def _load(folder: Path) -> tuple[dict, None] | tuple[None, dict]:
    from safebook import results

    try:
        results.load(folder)
    except (results.RecordError, OSError) as error:
        return None, {"name": type(error).__name__, "message": f"the record is not valid: {error}"}
    return _read_json(folder / "results.json") or {}, None


def _read_json(path: Path) -> dict | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
