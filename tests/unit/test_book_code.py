"""From a claim to the cell of its page that records its number."""

import nbformat
import pytest

from safebook import book_code, claims, registry

CELLS = [
    'values = {"other": 1}',
    'record.add("tau", 1.0, seed=0)\nrecord.add(\n    "gap", 2.0)',
    'record.add(f"{column}_lead", 0.1, at="end")',
    'for metric, value in {"harm": 1.0}.items():\n    record.add(metric, value)',
]


@pytest.mark.parametrize(
    ("metric", "index"), [("tau", 1), ("gap", 1), ("harm_lead", 2), ("harm", 3), ("not named", 3)]
)
def test_the_cell_that_adds_the_metric(metric, index):
    assert book_code.cell_of(CELLS, metric) == index


def test_a_page_that_adds_nothing_has_no_cell():
    assert book_code.cell_of(CELLS[:1], "tau") is None


def test_the_anchors_stand_before_their_cells():
    cells = [nbformat.v4.new_code_cell(c, metadata={"tags": ["measure"]}) for c in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    book_code.mark(notebook, ["harm", "tau", "gap", "tau"])
    sources = [cell.source for cell in notebook.cells]
    assert [s for s in sources if not s.startswith("<span")] == CELLS
    for metric, index in (("tau", 1), ("gap", 1), ("harm", 3)):
        place = sources.index(f'<span id="{book_code.anchor(metric)}"></span>')
        assert next(s for s in sources[place:] if not s.startswith("<span")) == CELLS[index]


@pytest.mark.parametrize("claim", [c for c in claims.read() if c.implemented], ids=lambda c: c.id)
def test_every_claim_has_its_cell(claim):
    notebook = nbformat.read(registry.get(claim.run).path, as_version=4)
    index = book_code.cell_of(book_code._measuring(notebook), claim.value.metric)
    assert index is not None and ".add(" in notebook.cells[index].source
