"""The notebook that a run left behind: judged cell by cell, and stored without this machine's paths."""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safebook import paths


@dataclass
class Failure:
    """Why a run failed."""

    name: str  # of the exception, or of the rule that was broken
    message: str
    cell: int | None = None  # from 1, over all cells of the stored notebook
    traceback: str = ""


def judge(path: Path) -> Failure | None:
    """The first cell of the stored notebook that does not count as executed well, None if all do."""
    if not path.is_file():
        return Failure("NotStarted", "the notebook did not start")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] != "code":
            continue
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                traceback = _plain("\n".join(output["traceback"]))
                return Failure(output["ename"], _plain(output["evalue"])[:2000], number, traceback[-8000:])
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        if cell["execution_count"] is None:
            return Failure("CellNotExecuted", f"cell {number} was not executed", number)
        state = cell["metadata"].get("papermill", {})
        if state.get("status") != "completed" or state.get("exception"):
            return Failure(
                "CellNotCompleted", f"cell {number} is {state.get('status')}, not completed", number
            )
    return None


def short_name(path: Path) -> str:
    """The template below notebooks/, or the file's name where it lies elsewhere."""
    path = path.resolve()
    return str(path.relative_to(paths.NOTEBOOKS)) if path.is_relative_to(paths.NOTEBOOKS) else path.name


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def clean(text: str, replace: Mapping[str, str]) -> str:
    """The text without this machine's paths."""
    known = dict(replace) | {
        f"{paths.ROOT}/": "",
        str(paths.ROOT): ".",
        sys.prefix: "<python>",
        sys.base_prefix: "<python>",
    }
    home = str(Path.home())
    if home != "/":
        known[home] = "~"
    for path, short in known.items():
        text = text.replace(path, short)
    return re.sub(r"/\S*/ipykernel_\d+/\d+\.py", "<cell>", text)


def _clean_all(value: object, replace: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return clean(value, replace)
    if isinstance(value, list):
        return [_clean_all(item, replace) for item in value]
    if isinstance(value, dict):
        return {k: v if str(k).startswith("image/png") else _clean_all(v, replace) for k, v in value.items()}
    return value


def keep(partial: Path, output: Path, replace: Mapping[str, str], template: Path) -> None:
    """Store the executed notebook, as far as it came: no paths of this machine, parameters folded."""
    source = partial if partial.is_file() else template
    notebook = json.loads(source.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["metadata"] = _clean_all(cell["metadata"], replace)
        if "outputs" in cell:
            cell["outputs"] = _clean_all(cell["outputs"], replace)
        tags = cell["metadata"].get("tags", [])
        if {"parameters", "injected-parameters"} & set(tags) and "hide-input" not in tags:
            cell["metadata"]["tags"] = [*tags, "hide-input"]
    papermill = notebook["metadata"].get("papermill", {})
    papermill.pop("output_path", None)
    papermill["input_path"] = short_name(template)
    notebook["metadata"] = _clean_all(notebook["metadata"] | {"papermill": papermill}, replace)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, output)
