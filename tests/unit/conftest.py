"""What several unit tests share."""

import dataclasses
from pathlib import Path

import pytest
import toys

from safebook import paths, registry


@pytest.fixture
def toy_checkout(tmp_path, monkeypatch) -> Path:
    """Templates, results and records of two toy runs in a folder of their own, in this process."""
    for name in ("NOTEBOOKS", "RESULTS", "RECORDED"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    runs = []
    for name in ("01_first", "02_second"):
        run = f"toy-{name.replace('_', '-')}"
        toys.good(paths.NOTEBOOKS / "toy" / f"{name}.ipynb", run)
        groups = {"smoke": {}} | {s: {"size": s, "seeds": [0, 1, 2]} for s in ("laptop", "paper")}
        template = dataclasses.replace(
            registry.RUNS[0],
            id=run,
            template=f"toy/{name}.ipynb",
            title=name,
            modules=(),
            artifacts=(),
            groups=groups,
        )
        runs.append(template)
    monkeypatch.setattr(registry, "RUNS", tuple(runs))
    return tmp_path
