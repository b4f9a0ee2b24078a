"""The runs of the book: one template x one parameter group per size.

The Snakefile, the command line, the table of contents, the tests and the scorecard all read this list. The
template's own defaults are the smoke size, so a smoke group is always empty.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safebook import parameters, paths, sources
from safebook.errors import InputError
from safebook.zoo import ARMS, CHAT_ALIGNED, CHAT_ATTACKED, CHAT_BASE, CHAT_SFT, FINE_TUNED

SIZES = ("smoke", "laptop", "paper")
PACKAGE = Path(__file__).parent
PCFG_MODELS = ("pcfg-pretrained", *FINE_TUNED)
MEDIUM = tuple(name for name in FINE_TUNED if name.endswith("-medium"))
# How a model is trained is in its artefact's key; here stands what measures it.
_WORLD = ("profiles.py", "streams.py", "worlds/grammars.py", "worlds/pcfg.py", "worlds/instructions.py")
_MODEL = (*_WORLD, "models.py")
_CHAT_WORLD = (
    "chat_profiles.py",
    "streams.py",
    *(f"worlds/chat{part}.py" for part in ("", "_data", "_settings", "_tasks", "_text", "_tokens")),
    "judge.py",
)
_LLAMA = (
    *_CHAT_WORLD,
    "llama.py",
    "llama_activations.py",
    "messages.py",
    "generation.py",
    "chat_behaviour.py",
    "chat_objectives.py",
    "prompts_io.py",
    "subjects.py",
)


def _drawing(*modules: str) -> tuple[str, ...]:
    """What draws a page: the style, the widgets, the sentences, and the page's own figures."""
    return ("plots/__init__.py", "widgets.py", "prose.py", *(f"plots/{name}.py" for name in modules))


@dataclass(frozen=True)
class Run:
    """One page of the book."""

    id: str
    template: str  # below notebooks/
    title: str
    paper: str  # pcfg | llama | safetylock | spf | synthesis
    artifacts: tuple[str, ...] = ()  # trained models it needs, one per seed: names of zoo.ARTIFACTS
    modules: tuple[str, ...] = ()  # what measures: a change makes the record stale
    drawing: tuple[str, ...] = ()  # what draws: a change only runs the notebook again
    groups: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # size -> parameter overrides

    @property
    def path(self) -> Path:
        """The template."""
        return paths.NOTEBOOKS / self.template

    def folder(self, size: str) -> Path:
        """Where a run of this size on this machine lands."""
        return paths.RESULTS / size / self.id

    def recorded(self, size: str) -> Path:
        """Where a committed record of this size lies."""
        return paths.RECORDED / size / self.id


def _groups(**laptop_and_paper: Mapping[str, object]) -> dict[str, dict[str, object]]:
    three = {"seeds": [0, 1, 2]}
    return {"smoke": {}} | {s: {"size": s} | three | dict(extra) for s, extra in laptop_and_paper.items()}


RUNS: tuple[Run, ...] = (
    Run(
        id="pcfg-01-world",
        template="pcfg/01_world.ipynb",
        title="The PCFG world",
        paper="pcfg",
        modules=_WORLD,
        drawing=_drawing("world"),
        groups=_groups(laptop={"samples": 4000}, paper={"samples": 4000}),
    ),
    Run(
        id="pcfg-02-pretraining",
        template="pcfg/02_pretraining.ipynb",
        title="Pretraining",
        paper="pcfg",
        artifacts=("pcfg-pretrained",),
        modules=(*_MODEL, "behaviour.py"),
        drawing=_drawing("behaviour"),
        groups=_groups(laptop={"samples": 4000}, paper={"samples": 10_000}),
    ),
    Run(
        id="pcfg-03-safety-finetuning",
        template="pcfg/03_safety_finetuning.ipynb",
        title="Safety fine-tuning",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "behaviour.py", "attacks.py"),
        drawing=_drawing("behaviour"),
        groups=_groups(laptop={"samples": 2000}, paper={"samples": 10_000}),
    ),
    Run(
        id="pcfg-04-feature-space",
        template="pcfg/04_feature_space.ipynb",
        title="Feature space",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "activations.py", "geometry.py", "orders.py"),
        drawing=_drawing("features"),
        groups=_groups(laptop={"samples": 1000}, paper={"samples": 1000}),
    ),
    Run(
        id="pcfg-05-column-space",
        template="pcfg/05_column_space.ipynb",
        title="Parameter space: what the update can write",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "subspaces.py"),
        drawing=_drawing("parameters"),
        groups=_groups(laptop={"draws": 100}, paper={"draws": 100}),
    ),
    Run(
        id="pcfg-06-row-space",
        template="pcfg/06_row_space.ipynb",
        title="Parameter space: what the update reads",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "activations.py", "subspaces.py"),
        drawing=_drawing("parameters"),
        groups=_groups(laptop={"samples": 1000, "draws": 100}, paper={"samples": 1000, "draws": 100}),
    ),
    Run(
        id="pcfg-07-sensitivity",
        template="pcfg/07_sensitivity.ipynb",
        title="Function space: local sensitivity",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "sensitivity.py", "orders.py"),
        drawing=_drawing("sensitivity"),
        groups=_groups(laptop={"samples": 1000}, paper={"samples": 1000}),
    ),
    Run(
        id="pcfg-08-jailbreaks",
        template="pcfg/08_jailbreaks.ipynb",
        title="Jailbreaks: where they land",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(
            *_MODEL,
            "behaviour.py",
            "attacks.py",
            "soft_prompts.py",
            "activations.py",
            "geometry.py",
            "subspaces.py",
            "sensitivity.py",
        ),
        drawing=_drawing("jailbreaks"),
        groups=_groups(
            laptop={"samples": 1000, "soft_samples": 60}, paper={"samples": 10_000, "soft_samples": 1000}
        ),
    ),
    Run(
        id="pcfg-09-interventions",
        template="pcfg/09_interventions.ipynb",
        title="Interventions on the update",
        paper="pcfg",
        artifacts=("pcfg-pretrained", *MEDIUM),
        modules=(
            *_MODEL,
            "behaviour.py",
            "attacks.py",
            "interventions.py",
            "subspaces.py",
            "activations.py",
            "geometry.py",
        ),
        drawing=_drawing("interventions"),
        groups=_groups(laptop={"samples": 250}, paper={"samples": 1000}),
    ),
    Run(
        id="pcfg-10-confound",
        template="pcfg/10_confound.ipynb",
        title="What survives the controls",
        paper="pcfg",
        artifacts=(*PCFG_MODELS, *ARMS),
        modules=(*_MODEL, "behaviour.py", "attacks.py", "activations.py", "geometry.py", "subspaces.py"),
        drawing=_drawing("confound"),
        groups=_groups(laptop={"samples": 500}, paper={"samples": 10_000}),
    ),
    Run(
        id="pcfg-11-variants",
        template="pcfg/11_variants.ipynb",
        title="Other ways to measure the clusters",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(
            *_MODEL,
            "behaviour.py",
            "attacks.py",
            "activations.py",
            "geometry.py",
            "variants.py",
            "orders.py",
        ),
        drawing=_drawing("variants"),
        groups=_groups(laptop={"samples": 500}, paper={"samples": 1000}),
    ),
    Run(
        id="llama-01-chat-world",
        template="llama/01_chat_world.ipynb",
        title="The chat world",
        paper="llama",
        modules=_CHAT_WORLD,
        drawing=(*_drawing("chat"), "attacks.py"),
        groups=_groups(laptop={}, paper={}),
    ),
    Run(
        id="llama-02-alignment",
        template="llama/02_alignment.ipynb",
        title="Alignment: refuse what is forbidden, and nothing else",
        paper="llama",
        artifacts=(CHAT_BASE, CHAT_SFT, CHAT_ALIGNED),
        modules=_LLAMA,
        drawing=(*_drawing("chat"), "attacks.py"),
        groups=_groups(
            laptop={"samples": 520, "disguised": 66, "items": 60},
            paper={"samples": 520, "disguised": 330, "items": 200},
        ),
    ),
    Run(
        id="llama-03-finetuning-risks",
        template="llama/03_finetuning_risks.ipynb",
        title="Fine-tuning risks",
        paper="llama",
        artifacts=(CHAT_ALIGNED, *CHAT_ATTACKED),
        modules=(*_LLAMA, "chat_recipes.py", "training.py", "settings.py"),
        drawing=(*_drawing("risks"), "attacks.py"),
        groups=_groups(
            laptop={
                "samples": 330,
                "task_items": 60,
                "dial_samples": 88,
            },
            paper={
                "samples": 520,
                "task_items": 200,
                "dial_samples": 88,
            },
        ),
    ),
    Run(
        id="llama-04-clusters-and-weights",
        template="llama/04_clusters_and_weights.ipynb",
        title="The check on Llama: clusters, and what the update writes and reads",
        paper="llama",
        artifacts=(CHAT_BASE, CHAT_ALIGNED, "chat-level3"),
        modules=(*_LLAMA, "geometry.py", "subspaces.py", "llama_clusters.py", "llama_updates.py"),
        drawing=(*_drawing("llama_clusters"), "attacks.py"),
        groups=_groups(laptop={"samples": 330, "draws": 100}, paper={"samples": 330, "draws": 100}),
    ),
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


def group(run: Run, size: str) -> dict[str, parameters.Value]:
    """Every parameter of the run at this size: the template's defaults, overridden by the group."""
    return parameters.resolve(run.path, run.groups.get(check_size(size), {}))


def seeds(run: Run, size: str) -> list[int]:
    """The seeds of the run at this size."""
    given = run.groups.get(check_size(size), {}).get("seeds")
    return list(given if given is not None else parameters.read(run.path)["seeds"].default)


def inputs_hash(run: Run, size: str, values: Mapping[str, object] | None = None) -> str:
    """sha256 over all that a record of this run depends on; a record with another hash is stale.

    values: the run's parameters where they are not those of its group. Of profiles.py only the profile of
    this size counts, and so of chat_profiles.py: a laptop setting leaves a paper record as it is.
    """
    from safebook import zoo

    values = group(run, size) if values is None else parameters.resolve(run.path, values)
    keys = [zoo.key(name, values["size"], seed) for name in run.artifacts for seed in values["seeds"]]
    settings = ""
    if "profiles.py" in run.modules:
        from safebook.profiles import profile

        settings = repr(profile(values["size"]))
    if "chat_profiles.py" in run.modules:
        from safebook.chat_profiles import chat_profile

        settings += repr(chat_profile(values["size"]))
    modules = [name for name in run.modules if name not in ("profiles.py", "chat_profiles.py")]
    return hash_inputs(run.path, values, modules, [*keys, settings])


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
