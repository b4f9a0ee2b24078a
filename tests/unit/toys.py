"""Toy templates for the tests of the runner, the command line and the Snakefile."""

import json
from pathlib import Path

PARAMETERS = """size: str = "smoke"  # which profile to run [smoke | laptop | paper]
seeds: list[int] = [0]  # one model per seed [0 .. 999]
samples: int = 20  # samples per cell of the table [10 .. 1000]
rate: float = 0.5  # share of unsafe prompts [0 .. 1]
kind: str = "null"  # kind of prompt [null | direct]
"""
MEASURE = """from safebook import results
rec = results.new(RUN, size=size, seeds=seeds, parameters={"samples": samples, "rate": rate, "kind": kind})
for seed in seeds:
    rec.add("value", 1.5 + seed, seed=seed, n=samples, unit="1", layer=1)
"""
SAVE = "rec.save()"


def cell(source: str, *tags: str) -> dict:
    """A code cell of a template."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": f"cell-{abs(hash((source, tags))) % 10**8}",
        "metadata": {"tags": list(tags)},
        "outputs": [],
        "source": source,
    }


def template(path: Path, *cells: dict) -> Path:
    """A notebook of these cells, at this path."""
    notebook = {
        "cells": list(cells),
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, indent=1) + "\n")
    return path


def good(path: Path, run: str, *extra: dict) -> Path:
    """A template that measures something and saves a record; extra cells come between."""
    measure = cell(MEASURE.replace("RUN", repr(run)), "measure")
    return template(path, cell(PARAMETERS, "parameters"), measure, *extra, cell(SAVE, "measure"))
