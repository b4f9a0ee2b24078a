"""What every template must be; that it runs is nbmake's part (`pytest --nbmake notebooks`)."""

import ast
import re

import nbformat
import pytest

from safebook import parameters, paths, registry

TEMPLATES = sorted(p for p in paths.NOTEBOOKS.rglob("*.ipynb") if not any(x.startswith(".") for x in p.parts))


@pytest.fixture(params=TEMPLATES, ids=lambda p: p.stem)
def template(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_every_template_has_a_run_and_the_other_way_round():
    assert {str(p.relative_to(paths.NOTEBOOKS)) for p in TEMPLATES} == {run.template for run in registry.RUNS}


def test_no_outputs_and_the_right_tags(template):
    _, book = template
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert "measure" in tags  # what decides whether a record is stale
    assert set(tags) <= {"parameters", "measure", "hide-input"}
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert "?*" in book.cells[0].source  # the page opens with its question
    assert book.metadata.kernelspec.name == "python3"


def test_cells_are_short_and_defaults_are_the_smoke_size(template):
    path, book = template
    assert max(len(cell.source.splitlines()) for cell in book.cells if cell.cell_type == "code") <= 40
    values = parameters.read(path)
    assert values["size"].default == "smoke" and values["seeds"].default == [0]


def test_the_measuring_half_comes_first_and_drawing_reads_the_record_alone(template):
    """After the last measuring cell no model is loaded: every figure can be drawn again from the record."""
    _, book = template
    measuring = [i for i, cell in enumerate(book.cells) if "measure" in cell.metadata.get("tags", [])]
    after = [c.source for c in book.cells[measuring[-1] + 1 :] if c.cell_type == "code"]
    names = {
        node.id for source in after for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)
    }
    assert after and not names & {"zoo", "world", "stream", "answers", "hits", "mlp_hidden", "measured"}


def test_prose_holds_no_measured_number(template):
    """Digits in prose belong to names (O0, 98 % bar, MathJax), never to results: those come from the record."""
    _, book = template
    allowed = {"1", "98"}  # paper 1, the bar of 98 %
    for cell in book.cells:
        if cell.cell_type == "markdown":
            words = re.sub(r"\$[^$]*\$|[Cc]laims? \d(?: and \d)?", "", cell.source)
            found = set(re.findall(r"(?<![\w$\\])\d+(?:\.\d+)?", words))
            assert found <= allowed, (cell.source[:60], found - allowed)
