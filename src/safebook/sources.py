"""What a piece of code does, as text: without comments, docstrings and blank lines.

Hashes of code are taken over this, so that better words make no record stale and retrain no model. It is cut
out of the source, not printed from a syntax tree, which differs from one Python version to the next.
"""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path


def essence(source: str) -> str:
    """The source without comments, docstrings and blank lines; unchanged where it is no plain Python."""
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return source
    lines: list[str | None] = list(source.splitlines())
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        own_line = first is not None and first.lineno > getattr(node, "lineno", 0)
        if own_line and isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
            lines[first.lineno - 1 : first.end_lineno] = [None] * (first.end_lineno - first.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line and line.strip())


@cache
def module(path: Path) -> str:
    """The essence of a module's file."""
    return essence(path.read_text(encoding="utf-8"))
