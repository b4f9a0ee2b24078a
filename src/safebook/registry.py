"""The runs of the book, in its order: one template x one parameter group per size.

The Snakefile, the command line, the table of contents, the tests and the scorecard all read this list. The
template's own defaults are the smoke size, so a smoke group is always empty.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safebook import (
    parameters,
    runs_llama,
    runs_pcfg,
    runs_safetylock,
    runs_spf,
    runs_synthesis,
    sources,
)
from safebook.errors import InputError
from safebook.runs import Run

SIZES = ("smoke", "laptop", "paper")
ONLY_SEEDS = "SAFEBOOK_SEEDS"
PACKAGE = Path(__file__).parent
#: Part 1, its testbed of Llamas, parts 2 to 4.
RUNS: tuple[Run, ...] = (
    *runs_pcfg.RUNS,
    *runs_llama.RUNS,
    *runs_safetylock.RUNS,
    *runs_spf.RUNS,
    *runs_synthesis.RUNS,
)


def check_size(size: str) -> str:
    """The size itself; raises InputError if there is no such size."""
    if size not in SIZES:
        raise InputError("size", size, " | ".join(SIZES))
    return size


def get(run_id: str) -> Run:
    """The run of this id; raises InputError with the known ids."""
    for run in RUNS:
        if run.id == run_id:
            return run
    raise InputError("run", run_id, ", ".join(run.id for run in RUNS))


def by_template(name: str) -> Run:
    """The run of a template (`pcfg/04_feature_space`, also with .ipynb or notebooks/) or of a run id."""
    wanted = name.removeprefix("./").removeprefix("notebooks/").removesuffix(".ipynb")
    for run in RUNS:
        if wanted in (run.id, run.template.removesuffix(".ipynb")):
            return run
    raise InputError("notebook", name, ", ".join(run.template.removesuffix(".ipynb") for run in RUNS))


def only_seeds() -> frozenset[int] | None:
    """The seeds that this build is confined to, by the variable SAFEBOOK_SEEDS ("0" or "0,2"); None = those of each run.

    Raises InputError if it is not a list of whole numbers.
    """
    text = os.environ.get(ONLY_SEEDS, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"\d+( *, *\d+)*", text):
        raise InputError("seeds", text, "whole numbers with commas between them, such as 0 or 0,2")
    return frozenset(int(seed) for seed in text.split(","))


def overrides(run: Run, size: str, every_seed: bool = False) -> dict[str, parameters.Value]:
    """What the run's group changes of the template's defaults, with fewer seeds where `only_seeds` says so.

    every_seed: the group as it stands, as committed records have it. Raises InputError if the run has none of the seeds.
    """
    given = dict(run.groups.get(check_size(size), {}))
    only = None if every_seed else only_seeds()
    if only is not None:
        known = given.get("seeds", parameters.read(run.path)["seeds"].default)
        given["seeds"] = [seed for seed in known if seed in only]
        if not given["seeds"]:
            raise InputError(
                "seeds", sorted(only), f"at least one of {known}, those of {run.id} at size {size}"
            )
    return given


def group(run: Run, size: str, every_seed: bool = False) -> dict[str, parameters.Value]:
    """Every parameter of the run at this size: the template's defaults, overridden by the group."""
    return parameters.resolve(run.path, overrides(run, size, every_seed))


def seeds(run: Run, size: str, every_seed: bool = False) -> list[int]:
    """The seeds of the run at this size."""
    return list(overrides(run, size, every_seed).get("seeds", parameters.read(run.path)["seeds"].default))


def fewer_seeds(run: Run, size: str, of_seeds: Iterable[int]) -> bool:
    """Are these some of the run's seeds at this size, and not all? Such a record repeats another and judges no claim."""
    return set(of_seeds) < set(seeds(run, size, every_seed=True))


def check_seeds(size: str) -> None:
    """Raises InputError where this build is confined to seeds of which a run has none, or of which one is no run's."""
    known = {seed for run in RUNS for seed in seeds(run, size)}
    if unknown := (only_seeds() or frozenset()) - known:
        every = sorted({seed for run in RUNS for seed in seeds(run, size, every_seed=True)})
        raise InputError("seeds", sorted(unknown), f"seeds that a run has at size {size}: {every}")


def models(run: Run, size: str, of_seeds: Iterable[int] | None = None) -> list[tuple[str, str, int]]:
    """(name, size, seed) of every trained model that a run needs, as `zoo.build` takes them.

    of_seeds: None = those of the run at this size.
    """
    from safebook.chat_profiles import smaller  # brings NumPy, which a command's help can do without

    chosen = seeds(run, size) if of_seeds is None else list(of_seeds)
    sizes = [size, *(smaller(size) if run.every_shape else ())]
    return [(name, of, seed) for of in sizes for name in run.artifacts for seed in chosen]


def inputs_hash(run: Run, size: str, values: Mapping[str, object] | None = None) -> str:
    """sha256 over all that a record of this run depends on; a record with another hash is stale.

    values: the run's parameters where they are not those of its group. Of profiles.py only the profile of
    this size counts, and so of chat_profiles.py: a laptop setting leaves a paper record as it is.
    """
    from safebook import zoo

    values = group(run, size) if values is None else parameters.resolve(run.path, values)
    keys = [zoo.key(*model) for model in models(run, values["size"], values["seeds"])]
    settings = ""
    if "profiles.py" in run.modules:
        from safebook.profiles import profile

        settings = repr(profile(values["size"]))
    if "chat_profiles.py" in run.modules:
        from safebook.chat_profiles import chat_profile

        settings += repr(chat_profile(values["size"]))
    more = [*keys, settings]
    if run.reads:
        from safebook import ledger

        more.append(ledger.digest(run.reads))
    modules = [name for name in run.modules if name not in ("profiles.py", "chat_profiles.py")]
    return hash_inputs(run.path, values, modules, more)


def current_hash(run: Run, size: str, of_seeds: Iterable[int]) -> str:
    """The `inputs_hash` that a record of these seeds would have if it were made now; seeds that the run has not do not count."""
    every, given = group(run, size, every_seed=True), set(of_seeds)
    return inputs_hash(run, size, every | {"seeds": [seed for seed in every["seeds"] if seed in given]})


def hash_inputs(
    template: Path, values: Mapping, modules: Iterable[str] = (), more: Iterable[str] = ()
) -> str:
    """sha256 over the template's measuring cells, the parameters, the modules' code and more texts."""
    parts = {
        "cells": [sources.essence(cell) for cell in parameters.cells(template, "measure", "parameters")],
        "parameters": dict(values),
        "modules": {name: sources.module(PACKAGE / name) for name in modules},
        "more": list(more),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
