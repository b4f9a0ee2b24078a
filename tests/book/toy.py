"""A small book with a run of every kind, built with the real runner, in a folder of its own.

    python toy.py ROOT      (SAFEBOOK_ROOT must be ROOT)

The templates are toys; registry, runner, pages, configuration and scripts are the real ones. The runs, in the
registry's order: a good one with figures, numbers in the text and hostile labels; a failed one with a hostile
message; one that was never run here but has a committed record; another good one; many that were never run and have no
record; and last a stale one with a slider.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).resolve().parents[2]
HOSTILE = "</code><script>document.title='broken'</script> {nope}`x` [a](b.md) <b>| $x$ \\n\\n# heading\\n:::"

MEASURE = """import numpy as np
import pandas as pd
from safebook import results
rec = results.new({run!r}, size=size, seeds=seeds, parameters={parameters})
for seed in seeds:
    rec.add("S", 1.0 + seed, seed=seed, n=10, model="<script>alert(1)</script> $x$ `y`", layer=6)
rec.table("tau_per_layer", pd.DataFrame({{"layer": [1, 2], "tau": [0.5, 1.5]}}))
path = rec.save()"""
FIGURE = """import matplotlib.pyplot as plt
from safebook import widgets
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot([0, 1])
widgets.figure(fig, "A line that rises from 0 to 1.")"""
PLAIN = "fig, ax = plt.subplots()\nax.plot([1, 0])\nplt.show()"
GLUE = """from myst_nb import glue
glue("S6", 3.14159, display=False)
pd.DataFrame({f"column {i}": [1.5] for i in range(30)})"""
NOISE = """import sys
for i in range(3):
    print(f"\\r{i} of 3", end="", file=sys.stderr)
print("\\x1b[31mred\\x1b[0m")"""
SLIDER = """import matplotlib.pyplot as plt
from safebook import widgets
figs = []
for layer in range(4):
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.bar([0, 1], [layer, 4 - layer])
    figs.append(fig)
names = [f"layer {i}" for i in range(4)]
alt = [f"Two bars, {i} and {4 - i} high." for i in range(4)]
widgets.slider_figures(figs, names, "Layer", alt, default=2)"""


def code(source: str, *tags: str):
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def annotation(value) -> str:
    """The type that a parameter cell would give to it."""
    kind = type(value).__name__
    return f"list[{type(value[0]).__name__}]" if kind == "list" else kind


def template(run, kind: str):
    """A template with the parameters that the registry's groups of this run ask for."""
    values = {"size": "smoke", "seeds": [0]}
    for group in run.groups.values():
        values |= {name: value for name, value in group.items() if name not in values}
    lines = [f"{name}: {annotation(value)} = {value!r}  # a toy" for name, value in values.items()]
    own = "{" + ", ".join(f'"{name}": {name}' for name in values if name not in ("size", "seeds")) + "}"
    measure = code(MEASURE.format(run=run.id, parameters=own), "measure")
    cells = [new_markdown_cell(f"# {run.title}\n\nA toy question?"), code("\n".join(lines), "parameters")]
    if kind == "failed":
        text = new_markdown_cell(
            "It is {glue:text}`never`.\n\n```{glue:figure} neither\n:name: fig-x\nNo.\n```"
        )
        cells += [
            code(FIGURE),
            text,
            code(f"raise ValueError({HOSTILE!r})", "measure"),
            code("print('after')"),
        ]
    elif kind == "slider":
        cells += [measure, new_markdown_cell("## Layers"), code(SLIDER, "hide-input")]
    else:
        text = new_markdown_cell("S is {glue:text}`S6:.2f`, $\\tau = \\|a\\|_2$ in run.py.")
        cells += [
            measure,
            new_markdown_cell("## A plain figure"),
            code(FIGURE),
            code(PLAIN),
            code(GLUE),
            text,
            code(NOISE),
        ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def kinds(runs) -> list[str]:
    names = ["good", "failed", "recorded", "good"] + ["never"] * len(runs)
    return [*names[: len(runs) - 1], "slider"]


def make(root: Path) -> dict[str, str]:
    """Write and run everything below root, build the book; returns run id -> kind."""
    for name in ("_config.yml", "package.json", "package-lock.json", ".npmrc", "book"):
        source = HERE / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("executed"))
        else:
            shutil.copy(source, root / name)
    if (HERE / "node_modules").exists():
        (root / "node_modules").symlink_to(HERE / "node_modules")
    claims = HERE / "data" / "claims.yaml"
    for kept in ("tuning", "paper"):  # tables that chapters show
        shutil.copytree(HERE / "data" / kept, root / "data" / kept)
    if claims.exists():
        shutil.copy(claims, root / "data" / "claims.yaml")

    from safebook import book, registry, run

    plan = dict(zip([r.id for r in registry.RUNS], kinds(registry.RUNS), strict=True))
    for registered in registry.RUNS:
        registered.path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(template(registered, plan[registered.id]), registered.path)
    for registered in registry.RUNS:
        kind = plan[registered.id]
        if kind == "never":
            continue
        size = "laptop" if kind == "recorded" else "smoke"
        status = run.run_registered(registered, size)
        assert status.state == ("failed" if kind == "failed" else "succeeded"), (registered.id, status)
        if kind == "recorded":
            shutil.move(registered.folder(size), registered.recorded(size))
            for extra in ("notebook.ipynb", "status.json"):
                (registered.recorded(size) / extra).unlink(missing_ok=True)
        if kind == "slider":  # what measures has changed since
            notebook = nbformat.read(registered.path, as_version=4)
            notebook.cells[2].source += "\nchanged = True"
            nbformat.write(notebook, registered.path)
    book.assemble("smoke")
    book.build("smoke", lambda text: print(text, file=sys.stderr))
    return plan


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    assert os.environ.get("SAFEBOOK_ROOT") == str(folder)
    print(json.dumps(make(folder)))
