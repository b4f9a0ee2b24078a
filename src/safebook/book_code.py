"""The end of the way from a claim to the code: the cell of its page in which its number enters the record."""

import re
from collections.abc import Iterable, Mapping, Sequence

import nbformat

from safebook import claims
from safebook.book_state import RunView

ADDED = re.compile(r"\.add\(\s*f?\"([^\"]+)\"")
BY_NAME = re.compile(r"\.add\(\s*(?!f?\")[a-z]")  # the metric is a variable there


def cell_of(sources: Sequence[str], metric: str) -> int | None:
    """Index of the first cell that adds the metric; None where no cell adds anything.

    A name such as f"{column}_lead" stands for whatever can be filled in.
    """
    for index, source in enumerate(sources):
        for name in ADDED.findall(source):
            if re.fullmatch(re.sub(r"\\\{.*?\\\}", r"\\w+", re.escape(name)), metric):
                return index
    named = [i for i, source in enumerate(sources) if f'"{metric}"' in source]
    adding = [i for i, source in enumerate(sources) if BY_NAME.search(source)]
    after = [i for i in adding if named and i >= named[0]]
    return next(iter([*after, *named, *adding]), None)


def _measuring(notebook) -> list[str]:
    """The sources of all cells, empty for those that measure nothing."""
    return [cell.source if "measure" in cell.metadata.get("tags", []) else "" for cell in notebook.cells]


def anchor(metric: str) -> str:
    """Name of the place on the page."""
    return f"code-{metric.replace('_', '-')}"


def mark(notebook, metrics: Iterable[str]) -> None:
    """Put an anchor before the cell of every metric, once."""
    sources = _measuring(notebook)
    found = {metric: cell_of(sources, metric) for metric in dict.fromkeys(metrics)}
    for metric, index in sorted(
        ((m, i) for m, i in found.items() if i is not None), key=lambda pair: -pair[1]
    ):
        cell = nbformat.v4.new_markdown_cell(f'<span id="{anchor(metric)}"></span>')
        notebook.cells.insert(index, cell)


def by_run() -> dict[str, list[claims.Claim]]:
    """Run -> the claims that it decides, less those that no code measures yet."""
    found: dict[str, list[claims.Claim]] = {}
    for claim in claims.read():
        if claim.implemented:
            found.setdefault(claim.run, []).append(claim)
    return found


def links(views: Sequence[RunView], judged: Mapping[str, Sequence[claims.Claim]]) -> dict[str, str]:
    """Claim -> address of its cell from the book's root, for pages that show their code. judged: of `by_run`."""
    found = {}
    for view in views:
        if view.notebook is None:
            continue
        sources = _measuring(nbformat.read(view.notebook, as_version=4))
        page = f"executed/{view.run.template.removesuffix('.ipynb')}.html"
        for claim in judged.get(view.run.id, ()):
            if cell_of(sources, claim.value.metric) is not None:
                found[claim.id] = f"{page}#{anchor(claim.value.metric)}"
    return found
