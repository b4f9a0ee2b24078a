"""A template's parameters: read from the cell tagged `parameters`, checked before any compute.

Each line of that cell is a typed assignment with a trailing comment that says what it is; square brackets at
the comment's end say what is allowed: `[a | b]` is a choice, `[0 .. 9]` a closed range, `[0 ..]` an open one.
For a list they hold for each element.

    seeds: list[int] = [0]  # one model per seed [0 .. 999]
"""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safebook.errors import InputError

Value = bool | int | float | str | list
_SCALARS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
TYPES = (*_SCALARS, "list[int]", "list[float]", "list[str]")
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a template, and what it may be."""

    name: str
    type: str  # one of TYPES
    default: Value
    help: str  # meaning, without the brackets
    choices: tuple[Value, ...] = ()  # empty: any
    low: float | None = None
    high: float | None = None

    @property
    def element(self) -> str:
        """Type of one element: "int" for both `int` and `list[int]`."""
        return self.type.removeprefix("list[").removesuffix("]")

    @property
    def limits(self) -> str:
        """What is allowed beyond the type, as in the comment; empty if anything is."""
        if self.choices:
            return " | ".join(str(c) for c in self.choices)
        if self.low is None and self.high is None:
            return ""
        return " .. ".join("" if end is None else f"{end:.15g}" for end in (self.low, self.high)).strip()

    @property
    def allowed(self) -> str:
        """Type and limits, in words."""
        each = ", each" if self.type.startswith("list") else ""
        return f"{self.type}{each} in [{self.limits}]" if self.limits else self.type

    def check(self, value: object) -> Value:
        """The value in its own type (an int may stand for a float); raises InputError otherwise."""
        if not self.type.startswith("list"):
            return self._check_one(value, value)
        if not isinstance(value, (list, tuple)) or not value:
            raise InputError(self.name, value, f"{self.allowed}, at least one")
        checked = [self._check_one(item, value) for item in value]
        if len(set(checked)) != len(checked):
            raise InputError(self.name, value, f"{self.allowed}, none twice")
        return checked

    def _check_one(self, item: object, whole: object) -> bool | int | float | str:
        kind = _SCALARS[self.element]
        if kind is float and isinstance(item, int) and not isinstance(item, bool):
            item = float(item)
        # a bool is an int in Python; here it is a mistake
        good = isinstance(item, kind) and (kind is bool or not isinstance(item, bool))
        if good and kind is float:
            good = math.isfinite(item)
        if good and self.choices:
            good = item in self.choices
        if good and self.low is not None:
            good = item >= self.low
        if good and self.high is not None:
            good = item <= self.high
        if not good:
            raise InputError(self.name, whole, self.allowed)
        return item

    def parse(self, text: str) -> Value:
        """The value that a command-line text means: `0,1,2` and `[0, 1, 2]` are both lists."""
        if not self.type.startswith("list"):
            return self.check(_literal(text, self.element))
        inner = text.strip()
        if inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
        items = [part.strip() for part in inner.split(",")] if inner.strip() else []
        try:
            return self.check([_literal(part, self.element) for part in items])
        except InputError as error:
            raise InputError(self.name, text, error.allowed) from None


def _literal(text: str, element: str) -> object:
    """A scalar of the wanted type, or the text itself where it is none (the check then refuses it)."""
    text = text.strip()
    if element == "str":
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if element == "bool":
        return _WORDS.get(text.lower(), text)
    try:
        return int(text) if element == "int" else float(text)
    except ValueError:
        return text


def cells(template: Path, *tags: str) -> list[str]:
    """Sources of the template's code cells that carry one of the tags, in order."""
    notebook = json.loads(template.read_text(encoding="utf-8"))
    return [
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and set(tags) & set(cell["metadata"].get("tags", []))
    ]


def read(template: Path) -> dict[str, Parameter]:
    """The template's parameters by name, in order; raises InputError where the cell is malformed."""
    found = cells(template, "parameters")
    if len(found) != 1:
        raise InputError(f"{template.name}: cells tagged parameters", len(found), "exactly 1")
    source = found[0]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}
    return {p.name: p for p in (_parameter(node, comments, template.name) for node in ast.parse(source).body)}


def _parameter(node: ast.stmt, comments: dict[int, str], where: str) -> Parameter:
    form = "name: type = value  # meaning [allowed]"
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
        raise InputError(f"{where}: parameters cell", ast.unparse(node), form)
    name, kind = node.target.id, ast.unparse(node.annotation)
    # a formatter may have wrapped a long line in parentheses
    comment = next((comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments), "")
    if kind not in TYPES:
        raise InputError(f"{where}: type of {name}", kind, " | ".join(TYPES))
    if not comment:
        raise InputError(f"{where}: comment of {name}", comment, form)
    bracket = re.search(r"\[([^\[\]]*)\]$", comment)
    words = comment[: bracket.start()].rstrip() if bracket else comment
    default = ast.literal_eval(node.value)
    parameter = Parameter(name, kind, default, words, **_limits(bracket.group(1) if bracket else "", kind))
    parameter.check(default)
    return parameter


def _limits(text: str, kind: str) -> dict:
    element = kind.removeprefix("list[").removesuffix("]")
    if ".." in text:
        low, _, high = (part.strip() for part in text.partition(".."))
        return {"low": float(low) if low else None, "high": float(high) if high else None}
    if text.strip():
        return {"choices": tuple(_literal(part, element) for part in text.split("|"))}
    return {}


def resolve(template: Path, given: Mapping[str, object]) -> dict[str, Value]:
    """All parameters of the template, the given ones over its defaults; raises InputError on a bad one."""
    known = read(template)
    for name, value in given.items():
        if name not in known:
            raise InputError(name, value, f"a parameter of {template.name}: {', '.join(known)}")
    return {name: p.check(given.get(name, p.default)) for name, p in known.items()}


def parse(template: Path, assignments: list[str]) -> dict[str, Value]:
    """Overrides from `name=value` texts; raises InputError on an unknown name or a value not allowed."""
    known, given = read(template), {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise InputError(name, text, "name=value")
        if name not in known:
            raise InputError(name, value, f"a parameter of {template.name}: {', '.join(known)}")
        if name in given:
            raise InputError(name, value, "given once")
        given[name] = known[name].parse(value)
    return given
