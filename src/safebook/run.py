"""Run one notebook through papermill, and judge honestly whether it succeeded.

papermill's own verdict is not enough: it marks a cell that timed out, and all cells after a killed kernel, as
completed, and a notebook that calls SystemExit(0) as fine. Here a run has succeeded only if every code cell
was executed, completed and showed no error, and a valid record of this very run and its parameters exists.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from safebook import executed, parameters, paths, registry

STATUS = "status.json"
NOTEBOOK = "notebook.ipynb"
TIMEOUT_S = {"smoke": 900, "laptop": 3 * 3600, "paper": 24 * 3600}  # seconds per cell
SUCCEEDED, FAILED, STALE, FEWER = "succeeded", "failed", "stale", "fewer seeds"


@dataclass
class Status:
    """How a run went; stored as status.json beside its record."""

    state: str  # succeeded | failed
    run: str
    size: str
    template: str
    parameters: dict[str, parameters.Value]
    started: str  # UTC, ISO 8601
    duration_s: float
    error: executed.Failure | None = None

    def write(self, folder: Path) -> None:
        """Store it as <folder>/status.json, atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{STATUS}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self), sort_keys=True, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / STATUS)

    @classmethod
    def read(cls, folder: Path) -> "Status | None":
        """The status in this folder, None if there is none that can be read."""
        try:
            data = json.loads((folder / STATUS).read_text(encoding="utf-8"))
            return cls(**data | {"error": executed.Failure(**data["error"]) if data["error"] else None})
        except (OSError, ValueError, KeyError, TypeError):
            return None


def run_notebook(
    template: Path,
    values: Mapping[str, object],
    output_ipynb: Path,
    record_dir: Path,
    run_id: str,
    size: str,
    timeout_s: float | None = None,
    progress: bool | str = True,
    inputs_hash: str | None = None,
) -> Status:
    """Execute the template with these parameter overrides; a record lands in record_dir only if all is well.

    The notebook is kept either way, also a partial one, and status.json says how it went. An old record in
    record_dir is deleted when the run starts. Raises InputError before anything is written.
    timeout_s: per cell; progress: show cells (a text: by this name); inputs_hash: of registry.inputs_hash.
    """
    from safebook import results
    from safebook.terminal import Cells

    values = parameters.resolve(template, values)
    inputs_hash = inputs_hash or registry.hash_inputs(template, values)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()

    def status(state: str, error: executed.Failure | None = None) -> Status:
        spent = round(time.perf_counter() - clock, 3)
        return Status(state, run_id, size, executed.short_name(template), values, started, spent, error)

    record_dir.mkdir(parents=True, exist_ok=True)
    output_ipynb.parent.mkdir(parents=True, exist_ok=True)
    results.remove(record_dir)
    output_ipynb.unlink(missing_ok=True)
    # what is read if this process is killed
    status(
        FAILED, executed.Failure("Interrupted", f"the run that started at {started} was ended from outside")
    ).write(record_dir)

    # hidden sibling: same file system, so that moving is renaming; leftovers of killed runs go now
    for old in record_dir.parent.glob(f".{record_dir.name}.staging-*"):
        shutil.rmtree(old, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{record_dir.name}.staging-", dir=record_dir.parent))
    partial = staging / NOTEBOOK
    environment = {
        "SAFEBOOK_ROOT": str(paths.ROOT),
        "SAFEBOOK_RUN": run_id,
        "SAFEBOOK_RECORD_DIR": str(staging),
        "SAFEBOOK_INPUTS_HASH": inputs_hash,
    }
    error: executed.Failure | None = None
    try:
        with (
            _environment(environment),
            Cells(progress if isinstance(progress, str) else run_id, progress is not False) as bar,
        ):
            _execute(template, values, partial, timeout_s or TIMEOUT_S[size], bar)
    except KeyboardInterrupt:
        error = executed.Failure("KeyboardInterrupt", "the run was interrupted")
        raise
    except Exception as problem:  # whatever ends a run is its result, not the end of the program
        error = executed.Failure(type(problem).__name__, _first_line(problem))
    finally:
        replace = {str(staging): "<record>"}
        broken = executed.judge(partial)
        if broken is not None and (error is None or error.name == "PapermillExecutionError"):
            error = broken  # the cell's own error says more than papermill's summary of it
        elif broken is not None:
            error.cell = error.cell or broken.cell
        error = error or _judge_record(staging, run_id, size, values)
        if error is not None:
            error.message, error.traceback = (
                executed.clean(text, replace) for text in (error.message, error.traceback)
            )
        executed.keep(partial, output_ipynb, replace, template)
        if error is None:
            _move_record(staging, record_dir)
        shutil.rmtree(staging, ignore_errors=True)
        final = status(FAILED if error else SUCCEEDED, error)
        final.write(record_dir)
    return final


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0][:500] if lines else ""


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables set for kernels started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _execute(template: Path, values: Mapping, output: Path, timeout_s: float, bar) -> None:
    """papermill, with a progress call before each cell; raises what ended the notebook."""
    import logging

    import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("traitlets").setLevel(logging.ERROR)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            bar.start(len(nb_man.nb.cells))
            begin = nb_man.cell_start

            def cell_start(cell, cell_index=None, **more):
                begin(cell, cell_index=cell_index, **more)
                bar.at(cell_index + 1)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    papermill_engines.register("safebook", Engine)
    # papermill reads both paths as format strings
    source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (template, output))
    # sockets in files, not TCP ports: nothing listens on the network, and ipykernel does not warn about it;
    # their folder must be given, else all kernels that are started in one place share the same files
    with tempfile.TemporaryDirectory(prefix="sb-") as sockets:
        papermill.execute_notebook(
            source,
            target,
            parameters=dict(values),
            engine_name="safebook",
            kernel_name="python3",
            progress_bar=False,
            cwd=str(template.parent),
            execution_timeout=timeout_s,
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}}),
        )


def _judge_record(folder: Path, run_id: str, size: str, values: Mapping) -> executed.Failure | None:
    """What is wrong with the record in this folder; None if it is valid, of this run and its parameters."""
    from safebook import results

    try:
        record = results.load(folder)
    except results.RecordError as error:
        return executed.Failure("RecordError", str(error))
    for name, wanted, got in (
        ("run", run_id, record.run),
        ("size", size, record.size),
        ("parameters", dict(values), record.parameters),
    ):
        if wanted != got:
            return executed.Failure(
                "RecordError", f"{results.FILE}: {name} is {got!r}, but the run's is {wanted!r}"
            )
    return None


def _move_record(staging: Path, record_dir: Path) -> None:
    """Tables first, results.json last: where it is, all of the record is."""
    from safebook import results

    for name in results.load(staging).tables:
        os.replace(staging / f"{name}.csv", record_dir / f"{name}.csv")
    os.replace(staging / results.FILE, record_dir / results.FILE)


def run_registered(run: registry.Run, size: str, name: str | None = None) -> Status:
    """One registered run at this size, into results/<size>/<run-id>/. name: begins its progress lines."""
    overrides, folder = registry.overrides(run, size), run.folder(size)
    return run_notebook(
        run.path,
        overrides,
        folder / NOTEBOOK,
        folder,
        run.id,
        size,
        progress=True if name is None else name,
        inputs_hash=registry.inputs_hash(run, size),
    )


def failed_before_start(run: registry.Run, size: str, error: executed.Failure) -> Status:
    """The status of a run that could not even start."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Status(FAILED, run.id, size, run.template, registry.group(run, size), now, 0.0, error)


def state(run: registry.Run, size: str) -> tuple[str, Status | None]:
    """How this run stands on this machine: "not run", "failed", "stale", "fewer seeds" or "succeeded"; and its last status.

    Stale: what the record depends on (see registry.inputs_hash) is no longer what it was. Fewer seeds: it lacks some of those
    that the run has, or that this build is confined to.
    """
    from safebook import results

    folder = run.folder(size)
    status = Status.read(folder)
    if status is None:
        return "not run", None
    if status.state != SUCCEEDED:
        return FAILED, status
    try:
        record = results.load(folder)
    except results.RecordError as error:
        status.state, status.error = FAILED, executed.Failure("RecordError", str(error))
        return FAILED, status
    if record.inputs_hash != registry.current_hash(run, size, record.seeds):
        return STALE, status
    every, only = set(registry.seeds(run, size, every_seed=True)), registry.only_seeds()
    wanted = every if only is None else every & only
    return (SUCCEEDED if wanted <= set(record.seeds) else FEWER), status


def planned_seeds(run: registry.Run, size: str) -> list[int]:
    """The seeds that a build measures this run with; of a record that has all of them and more, its own."""
    from safebook import results

    if registry.only_seeds() is not None and state(run, size)[0] == SUCCEEDED:
        return results.load(run.folder(size)).seeds
    return registry.seeds(run, size)
