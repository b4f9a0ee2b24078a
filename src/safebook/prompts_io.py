"""Prompts and preference pairs of the reader's own, from a file.

`harmful_prompts`, `benign_prompts`: a row is a request.

| column | |
|---|---|
| `prompt` | the user's request; required |
| `answer` | what the model is taught to say, or the right answer; required where a notebook trains on it or checks it |
| `category` | for results by category |
| `system` | system message; none if empty |

`preference_pairs`: `prompt`, `chosen` (the preferred answer), `rejected`, all required; `category`, `system` as above.

CSV has these names in its first line; JSON is a list of objects; JSON Lines (`.jsonl`) one object a line. All UTF-8. A column of
another name is an error, so that no misspelt one is overlooked.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from safebook.errors import InputError


@dataclass(frozen=True)
class Prompt:
    prompt: str
    answer: str = ""
    category: str = ""
    system: str = ""

    def chat(self, answered: bool = False) -> list[dict]:
        """Messages up to the request, or with the answer."""
        turns = [("system", self.system)] if self.system else []
        turns += [("user", self.prompt)] + ([("assistant", self.answer)] if answered else [])
        return [{"role": role, "content": content} for role, content in turns]


@dataclass(frozen=True)
class PreferencePair:
    prompt: str
    chosen: str
    rejected: str
    category: str = ""
    system: str = ""


def read_prompts(path: str, parameter: str = "harmful_prompts", need_answers: bool = False) -> list[Prompt]:
    """Requests of a file. `parameter` is the one that errors name; `need_answers`: each row must have its answer."""
    required = ("prompt", "answer") if need_answers else ("prompt",)
    return _read(path, parameter, Prompt, required)


def read_pairs(path: str, parameter: str = "preference_pairs") -> list[PreferencePair]:
    """Preference pairs of a file."""
    pairs = _read(path, parameter, PreferencePair, ("prompt", "chosen", "rejected"))
    for number, pair in enumerate(pairs, 1):
        if pair.chosen == pair.rejected:
            _fail(parameter, path, "two different answers", number, "rejected", "is the same as chosen")
    return pairs


def _fail(
    parameter: str, path: str, allowed: str, row: int | None = None, column: str | None = None, what=""
):
    """Rows count from 1; the line with the names of a CSV is not a row."""
    where = [f"file {path}"] + [f"row {row}"] * bool(row) + [f"column {column!r}"] * bool(column)
    raise InputError(parameter, f"{', '.join(where)}: {what}", allowed)


def _read(path: str, parameter: str, kind: type, required: tuple[str, ...]) -> list:
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    file = Path(path).expanduser()
    if file.suffix.lower() not in readers:
        _fail(parameter, path, f"a file that ends in {', '.join(readers)}", what="unknown kind of file")
    if not file.is_file():
        _fail(parameter, path, "a file that is there", what="not found")
    known = [field.name for field in fields(kind)]
    columns = f"columns {', '.join(known)}; required: {', '.join(required)}"
    found = []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        _fail(parameter, path, "text in UTF-8", what=str(error))
    for number, row in readers[file.suffix.lower()](text, parameter, path):
        for column in row:
            if column not in known:
                _fail(parameter, path, columns, number, column, "unknown column")
        for column in required:
            if column not in row:
                _fail(parameter, path, columns, number, column, "missing")
        for column, value in row.items():
            if not isinstance(value, str):
                _fail(parameter, path, "a text", number, column, f"is {json.dumps(value)[:40]}")
            if column in required and not value.strip():
                _fail(parameter, path, "a text that is not empty", number, column, "is empty")
        found.append(kind(**row))
    if not found:
        _fail(parameter, path, "at least one row", what="holds none")
    return found


def _csv_rows(text: str, parameter: str, path: str) -> Iterator[tuple[int, dict]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        names = next(rows, [])
        if len(set(names)) < len(names):
            _fail(parameter, path, "every column once", what=f"the first line reads {names}")
        for cells in rows:
            if not cells:  # an empty line
                continue
            number += 1
            if len(cells) != len(names):
                allowed = f"{len(names)} cells, as in the first line; a text with a comma stands in quotes"
                _fail(parameter, path, allowed, number, None, f"has {len(cells)} cells")
            yield number, dict(zip(names, cells))
    except csv.Error as error:
        _fail(parameter, path, "CSV", number + 1, None, str(error))


def _json_rows(text: str, parameter: str, path: str) -> Iterator[tuple[int, dict]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        _fail(parameter, path, "JSON", what=str(error))
    if not isinstance(rows, list):
        _fail(parameter, path, "a list of objects", what=f"holds a {type(rows).__name__}")
    yield from _objects(enumerate(rows, 1), parameter, path)


def _jsonl_rows(text: str, parameter: str, path: str) -> Iterator[tuple[int, dict]]:
    rows = []
    for line in text.split("\n"):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                _fail(parameter, path, "one JSON object a line", len(rows) + 1, None, str(error))
    yield from _objects(enumerate(rows, 1), parameter, path)


def _objects(rows, parameter: str, path: str) -> Iterator[tuple[int, dict]]:
    for number, row in rows:
        if not isinstance(row, dict):
            _fail(parameter, path, "a list of objects", number, None, f"is a {type(row).__name__}")
        yield number, row
