"""`safebook book`: run what is not up to date through Snakemake, build the book, say what was done.

Interrupted at any point, the next call goes on where it stopped: models, records and pages are written by
rename, Snakemake reruns what is incomplete, and the system frees the lock with the process that holds it.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from safebook import executed, paths, registry, run
from safebook.errors import InputError
from safebook.terminal import clock, table

# Not `code`: a comment in the Snakefile must not retrain anything.
RERUN = ("params", "input", "mtime")
LOCK_WAIT_S = 20  # an interrupted call's last job needs a moment to end


def book(size: str, execute: bool = True, jobs: int | None = None, threads: int = 1) -> int:
    """All runs of this size, then the book; with fewer seeds where SAFEBOOK_SEEDS names them.

    Returns the exit code: 1 if a run or the book failed.
    """
    from safebook import book as pages

    for registered in registry.RUNS:
        registry.group(registered, size)  # raises InputError before anything is started
    registry.check_seeds(size)
    if (only := registry.only_seeds()) is not None:
        print(f"only seeds {', '.join(map(str, sorted(only)))}", file=sys.stderr)
    lock = _lock()
    if lock is None:
        print("safebook: another `safebook book` is at work in this checkout", file=sys.stderr)
        return 1
    with lock:
        start = time.monotonic()
        finished = _snakemake(size, jobs, threads, lock) if execute else True
        if execute:
            _mark_runs_without_models(size)
        states = {registered.id: run.state(registered, size) for registered in registry.RUNS}
        good = finished and not any(state == run.FAILED for state, _ in states.values())
        try:
            pages.assemble(size)
            index: Path | None = pages.build(size, lambda text: print(text, file=sys.stderr, flush=True))
        except pages.BookError as error:
            print(f"safebook: {error}", file=sys.stderr)
            good, index = False, None
        print(summary(size, states))
        for name, (state, status) in states.items():
            if state == run.FAILED:
                print(f"FAILED {name}: {status.error.name}: {status.error.message}")
        print(f"all in all: {clock(time.monotonic() - start)}")
        if index is not None:
            print(f"the book: {index}")
        return 0 if good else 1


def summary(size: str, states: dict[str, tuple[str, run.Status | None]]) -> str:
    """How long each model and each run took when it was made, as a table."""
    from safebook import zoo

    rows = []
    for model in dict.fromkeys(model for r in registry.RUNS for model in registry.models(r, size)):
        file = zoo.path(*model) / "meta.json"
        took = json.loads(file.read_text(encoding="utf-8")).get("duration_s") if file.is_file() else None
        state = "succeeded" if file.is_file() else "not built"
        name, of, seed = model
        shape = of.removeprefix(size).replace("-", " ")  # of a smaller Llama
        rows.append((f"{name}{shape} seed {seed}", state, "-" if took is None else clock(took)))
    for name, (state, status) in states.items():
        rows.append((name, state, clock(status.duration_s) if status else "-"))
    return table((f"model or run ({size})", "state", "took"), rows)


def _lock() -> IO | None:
    """The checkout's lock, freed when the last process with it ends, in any way; None if it is taken."""
    folder = paths.ROOT / ".snakemake"
    folder.mkdir(exist_ok=True)
    file = (folder / "safebook.lock").open("w")
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.2)


def _snakemake(size: str, jobs: int | None, threads: int, lock: IO) -> bool:
    """Run the graph; True if all of it succeeded. Jobs print their own progress on stderr."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or max(1, cores // threads)
    command = [
        *(sys.executable, "-m", "snakemake"),
        *("--snakefile", str(paths.ROOT / "Snakefile"), "--directory", str(paths.ROOT)),
        *("--cores", str(jobs * threads), "--config", f"size={size}", f"threads={threads}"),
        *("--keep-going", "--rerun-incomplete", "--rerun-triggers", *RERUN),
        "--nolock",  # the lock is ours: Snakemake's own outlives a kill -9
        *("--scheduler", "greedy", "--nocolor"),
        *_forced(size),
    ]
    with tempfile.TemporaryDirectory(prefix="safebook-") as folder:
        counter = Path(folder) / "jobs"
        counter.touch()
        environment = os.environ | {
            "SAFEBOOK_JOBS": str(jobs),
            "SAFEBOOK_PARENT": f"{socket.gethostname()}:{os.getpid()}",
            "SAFEBOOK_COUNTER": str(counter),
        }
        quiet = [*command, "--quiet", "all"]  # jobs speak for themselves
        process = subprocess.Popen(quiet, cwd=paths.ROOT, env=environment, pass_fds=(lock.fileno(),))
        try:
            code = process.wait()
        except KeyboardInterrupt:
            counter.unlink()  # tells the jobs to stop, also where a terminal's Ctrl-C did not reach them
            _end(process)
            raise
        started = counter.stat().st_size
    if code == 0 and not started:
        print("all runs are up to date", file=sys.stderr)
    if code != 0 and not started:  # the graph itself is broken, and only a dry run says how
        subprocess.run(
            [*command, "--dry-run", "--quiet", "rules", "host", "reason"], check=False, cwd=paths.ROOT
        )
    return code == 0


def _end(process: subprocess.Popen) -> None:
    """Wait for Snakemake, whose jobs are stopping; make it stop if it does not."""
    for stop in (process.terminate, process.kill):
        try:
            process.wait(timeout=15)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            stop()


def _forced(size: str) -> list[str]:
    """Options that run again what is stale or broken in ways that Snakemake's own notes miss."""
    from safebook import results

    files = [
        os.path.relpath(registered.folder(size) / results.FILE, paths.ROOT)
        for registered in registry.RUNS
        if (registered.folder(size) / results.FILE).is_file()
        and run.state(registered, size)[0] != run.SUCCEEDED
    ]
    return ["--forcerun", *files] if files else []


def _mark_runs_without_models(size: str) -> None:
    """A run that could not start, since a model it needs could not be built, has failed: say so."""
    from safebook import results, zoo

    for registered in registry.RUNS:
        state, _ = run.state(registered, size)
        needed = registry.models(registered, size)
        missing = [model for model in needed if not (zoo.path(*model) / "meta.json").is_file()]
        if state == run.SUCCEEDED or not missing:
            continue
        name, _, seed = missing[0]
        built = zoo.path(*missing[0])
        log = built.parent / "logs" / f"{built.name}.log"
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
        why = lines[-1] if lines else "it was not tried"
        error = executed.Failure(
            "ModelMissing",
            executed.clean(f"the model {name} (seed {seed}) could not be built: {why}", {}),
            traceback=executed.clean("\n".join(lines[-40:]), {}),
        )
        folder = registered.folder(size)
        folder.mkdir(parents=True, exist_ok=True)
        results.remove(folder)
        (folder / run.NOTEBOOK).unlink(missing_ok=True)
        run.failed_before_start(registered, size, error).write(folder)


def record(size: str) -> int:
    """Copy the succeeded records of this size to data/results/<size>/; returns 1 if a run has none."""
    from safebook import readme, results

    if registry.only_seeds() is not None:
        raise InputError("seeds", sorted(registry.only_seeds()), "none: what is committed has every seed")
    refused = 0
    for registered in registry.RUNS:
        state, _ = run.state(registered, size)
        if state == run.STALE and registered.reads:  # the committed records that it reads have just changed
            state = run.run_registered(registered, size).state
        if state != run.SUCCEEDED:
            print(f"refused {registered.id}: {state} at size {size}", file=sys.stderr)
            refused += 1
            continue
        source, target = registered.folder(size), registered.recorded(size)
        loaded = results.load(source)
        fresh = target.with_name(f".{target.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in (results.FILE, *(f"{name}.csv" for name in loaded.tables)):
            shutil.copyfile(source / name, fresh / name)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        note = " (made from sources that are not committed)" if loaded.provenance.dirty else ""
        print(f"recorded {target.relative_to(paths.ROOT)}{note}")
    if size == "laptop" and not refused:  # the size of the published book
        readme.update(size)
        print("updated the results in README.md")
    return 1 if refused else 0
