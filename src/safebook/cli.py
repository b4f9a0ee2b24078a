"""The command line. Nothing heavy is imported here, so that `safebook --help` answers at once."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from safebook import lock_cli, parameters, registry
from safebook.errors import InputError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ONE_THREAD = "OMP_NUM_THREADS, or 1 as in the book: two jobs with all threads slow each other many times over"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 well, 1 something failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except InputError as error:
        print(f"safebook: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nsafebook: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `safebook list | head`
        sys.stderr.close()
        return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safebook", description="Run the book's experiments, see their claims, build it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    def add_size(command: argparse.ArgumentParser, default: str | None = "smoke", text: str = "") -> None:
        words = text or f"{' | '.join(registry.SIZES)} (default: {default})"
        command.add_argument("--size", default=default, type=str, help=words)

    def add_threads(command: argparse.ArgumentParser, default: str) -> None:
        command.add_argument("--threads", type=int, help=f"(default: {default})")

    command = add("list", _list, "Show every run: its size, how it stands on this machine, how long it took.")
    add_size(command, None, "only this size (default: all)")

    command = add(
        "params", _params, "Show a notebook's parameters: name, type, default, meaning, what is allowed."
    )
    command.add_argument("notebook", help="such as pcfg/04_feature_space, or a run's id")

    command = add("run", _run, "Run one notebook with parameters of your own.")
    command.add_argument("notebook", help="such as pcfg/04_feature_space, or a run's id")
    command.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", dest="parameters"
    )
    command.add_argument(
        "-o", "--output", required=True, help="executed notebook; its record goes into a folder beside it"
    )
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="per cell")
    add_threads(command, "what the machine has; the book's runs take 1, and numbers depend on it")

    command = add("claims", _claims, "Show every claim with its verdict.")
    command.add_argument("--json", action="store_true", help="as JSON")
    add_size(command, None, "judge at this size (default: the largest size there is a record of, per claim)")

    command = add("book", _book, "Run what is not up to date, then build the book.")
    add_size(command)
    seeds = "only these, such as 0 or 0,2: a shorter run, set beside the committed records (default: all)"
    command.add_argument("--seeds", help=seeds)
    command.add_argument("--no-run", action="store_true", help="build from what there is")
    command.add_argument("--jobs", type=int, help="jobs at a time (default: one per CPU core)")
    command.add_argument("--threads", type=int, default=1, help="threads per job (default: 1)")

    command = add("record", _record, "Copy succeeded local records into data/results/ for committing.")
    add_size(command)

    command = add("bench", _bench, "Measure this machine: sampler, training loop, matrix peak.")
    command.add_argument("--json", action="store_true", help="as JSON")

    command = add("build", _build, "Train one model, if it is not there yet.")
    command.add_argument("name")
    add_size(command)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--log", type=Path, help="keep what is printed here too")
    add_threads(command, ONE_THREAD)

    command = add("run-registered", _run_registered, "Run one registered run into results/<size>/<run>/.")
    command.add_argument("run")
    add_size(command)
    add_threads(command, ONE_THREAD)

    lock_cli.add(commands)
    return parser


def _set_threads(given: int | None, default: int | None = None) -> None:
    """Of the libraries that this process and its notebooks load from here on. The default does not overrule the environment."""
    if given is not None and given < 1:
        raise InputError("--threads", given, "1 or more")
    for name in THREAD_VARIABLES:
        if given is not None:
            os.environ[name] = str(given)
        elif default is not None:
            os.environ.setdefault(name, str(default))


def _list(options: argparse.Namespace) -> int:
    from safebook import run
    from safebook.terminal import clock, table

    sizes = [registry.check_size(options.size)] if options.size else registry.SIZES
    rows = []
    for size in sizes:
        for registered in registry.RUNS:
            state, status = run.state(registered, size)
            rows.append(
                (registered.id, size, state, clock(status.duration_s) if status else "-", registered.title)
            )
    print(table(("run", "size", "state", "took", "title"), rows))
    return OK


def _params(options: argparse.Namespace) -> int:
    from safebook.terminal import table

    run = registry.by_template(options.notebook)
    known = parameters.read(run.path).values()
    rows = [(p.name, p.type, json.dumps(p.default), p.help, p.limits or "any") for p in known]
    print(table(("name", "type", "default", "meaning", "allowed"), rows))
    return OK


def _run(options: argparse.Namespace) -> int:
    registered = registry.by_template(options.notebook)
    given = parameters.parse(registered.path, options.parameters)
    values = parameters.resolve(registered.path, given)
    output = Path(options.output).resolve()
    if output.suffix != ".ipynb":
        raise InputError("-o", options.output, "a file name that ends in .ipynb")
    from safebook import paths, run

    if output.is_relative_to(paths.NOTEBOOKS):
        raise InputError("-o", options.output, "a place outside notebooks/, which holds the templates")
    if options.timeout is not None and not options.timeout > 0:
        raise InputError("--timeout", options.timeout, "seconds, more than 0")
    _set_threads(options.threads)
    status = run.run_notebook(
        registered.path,
        given,
        output,
        output.with_suffix(""),
        registered.id,
        values["size"],
        options.timeout,
        inputs_hash=registry.inputs_hash(registered, values["size"], values),
    )
    print(f"notebook: {output}")
    if status.error is None:
        print(f"record:   {output.with_suffix('')}")
    return _report(status)


def _report(status) -> int:
    """Say in one line on stderr why a run failed; the exit code."""
    if status.error is None:
        return OK
    where = f" in cell {status.error.cell}" if status.error.cell else ""
    print(f"FAILED{where}: {status.error.name}: {status.error.message}", file=sys.stderr)
    return FAILED


def _claims(options: argparse.Namespace) -> int:
    from safebook import claims

    rows = claims.scorecard(registry.check_size(options.size) if options.size else None)
    print(json.dumps(rows, indent=1, allow_nan=False) if options.json else claims.as_text(rows))
    return OK


def _book(options: argparse.Namespace) -> int:
    from safebook import make

    registry.check_size(options.size)
    for name in ("jobs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}", value, "1 or more")
    if options.seeds is not None:
        os.environ[registry.ONLY_SEEDS] = options.seeds  # of the jobs, too
    return make.book(options.size, execute=not options.no_run, jobs=options.jobs, threads=options.threads)


def _record(options: argparse.Namespace) -> int:
    from safebook import make

    return make.record(registry.check_size(options.size))


def _bench(options: argparse.Namespace) -> int:
    from safebook import bench

    measured = bench.measure()
    if options.json:
        print(json.dumps(measured, indent=1, sort_keys=True))
    else:
        for name, value in measured.items():
            number = isinstance(value, int | float)
            shown = f"{value:,.0f}" if number and value >= 1000 else f"{value:.4g}" if number else value
            print(f"{name:28} {shown}")
    return OK


def _build(options: argparse.Namespace) -> int:
    from safebook import zoo
    from safebook.terminal import clock, job

    if options.name not in zoo.ARTIFACTS:
        raise InputError("artefact", options.name, ", ".join(zoo.ARTIFACTS))
    if options.seed < 0:
        raise InputError("--seed", options.seed, "0 or more")
    zoo.key(options.name, options.size, options.seed)  # refuses an unknown size
    _set_threads(options.threads, default=1)
    with job(f"{options.name} seed {options.seed}", options.log):
        start = time.monotonic()
        zoo.build(options.name, options.size, options.seed)
        print(f"built in {clock(time.monotonic() - start)}", file=sys.stderr)
    return OK


def _run_registered(options: argparse.Namespace) -> int:
    registered = registry.get(options.run)
    registry.check_size(options.size)
    _set_threads(options.threads, default=1)
    from safebook import run
    from safebook.terminal import clock, job

    with job(registered.id):
        status = run.run_registered(registered, options.size, name="")
        if status.error is None:
            print(f"succeeded in {clock(status.duration_s)}", file=sys.stderr)
        return _report(status)
