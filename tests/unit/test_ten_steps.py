"""The page "Add an experiment" is followed literally, in a copy of the repository: what it says works, and all of it is needed."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from safebook import paths

pytestmark = pytest.mark.xdist_group("ten-steps")  # one copy, followed once
PAGE = paths.BOOK / "add-an-experiment.md"
RUN, TEMPLATE, CLAIM = "pcfg-99-usual-dpo", "pcfg/99_usual_dpo", "pcfg-99a"
BLOCK = re.compile(r'^```\{code-block\} \w+\n:caption: "?(.+?)"?\n(.*?)^```$', re.M | re.S)
# The tests that watch over the files which the steps change.
GUARDS = (
    "tests/notebooks/test_templates.py",
    "tests/unit/test_registry.py",
    "tests/unit/test_findings.py",
    "tests/unit/test_book.py::test_contents_name_the_runs",
    "tests/unit/test_zoo.py::test_every_recipe_draws_the_same_batch_twice_and_has_a_finite_loss",
)


def blocks() -> dict[str, str]:
    """The page's code blocks by caption: a file, and where in it."""
    return dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def files() -> list[str]:
    """What git tracks or would track, as far as it is there."""
    if not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (paths.ROOT / name).is_file()]


def below(text: str, line: int, new: str) -> str:
    """The text with `new` after this line, the first being 1."""
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:line], new, *lines[line:]])


def assigned(text: str, name: str) -> ast.Assign | ast.AnnAssign:
    """The statement of a module that assigns to this name."""
    for node in ast.parse(text).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
    raise AssertionError(f"nothing assigns {name}")


def add_model(text: str, new: str) -> str:
    return below(text, assigned(text, "ARMS").value.elts[-1].end_lineno, new)


def add_run(text: str, new: str) -> str:
    return below(text, assigned(text, "RUNS").value.elts[-1].end_lineno, new)


def add_page(text: str, new: str) -> str:
    last = max(
        i for i, line in enumerate(text.splitlines(), 1) if "executed/pcfg/" in line and "file:" in line
    )
    return below(text, last, new)


CHANGES = {
    "src/safebook/zoo.py, in ARMS, at the end": add_model,
    "src/safebook/runs_pcfg.py, in RUNS, at the end": add_run,
    "book/_toc.yml, behind the last page of the same paper": add_page,
    "data/claims.yaml, at the end": lambda text, new: text.rstrip("\n") + "\n" + new,
    "data/findings.yaml, at the end": lambda text, new: text.rstrip("\n") + "\n" + new,
}
CELLS = {
    "first cell": new_markdown_cell,
    "cell tagged parameters": lambda source: new_code_cell(source, metadata={"tags": ["parameters"]}),
    "cell tagged measure": lambda source: new_code_cell(source, metadata={"tags": ["measure"]}),
    "last cell": new_code_cell,
}


def follow(root: Path) -> None:
    """Steps 1 to 8 in the copy at `root`."""
    cells = []
    for caption, source in blocks().items():
        file, _, where = caption.partition(", ")
        path = root / file
        if file.endswith(".ipynb"):
            cells.append(CELLS[where](source.rstrip("\n")))
            cells[-1]["id"] = f"99-usual-dpo-{len(cells):02}"
        elif caption in CHANGES:
            path.write_text(CHANGES[caption](path.read_text(encoding="utf-8"), source), encoding="utf-8")
        elif file.endswith(".py"):
            assert not path.exists()
            path.write_text(source, encoding="utf-8")
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    book = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.write(book, root / "notebooks" / f"{TEMPLATE}.ipynb")


class Copy:
    """A copy of the repository in which commands use the copy's package."""

    def __init__(self, root: Path):
        self.root = root
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SAFEBOOK_")}
        self.env |= {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def call(self, *arguments: str) -> str:
        """`python -m ...` in the copy; it must end well. Returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=900
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    root = tmp_path_factory.mktemp("ten-steps") / "checkout"
    for name in files():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.ROOT / name, root / name)
    follow(root)
    return Copy(root)


def test_there_are_ten_steps_and_every_block_is_used():
    headings = re.findall(r"^## (\d+)\. ", PAGE.read_text(encoding="utf-8"), re.M)
    assert headings == [str(n) for n in range(1, 11)]
    for caption in blocks():
        file, _, where = caption.partition(", ")
        known = caption in CHANGES or where in CELLS or file.endswith("plots/usual_dpo.py")
        assert known or caption.startswith("in the repository"), caption


def test_the_new_experiment_passes_the_tests_that_guard_it(copy):
    copy.call("pytest", "-q", "-x", "-p", "no:cacheprovider", *GUARDS)


def test_the_new_files_have_the_house_style(copy):
    new = [f"notebooks/{TEMPLATE}.ipynb", "src/safebook/plots/usual_dpo.py"]
    changed = ["src/safebook/zoo.py", "src/safebook/runs_pcfg.py"]
    copy.call("ruff", "check", *new, *changed)
    copy.call("ruff", "format", "--check", *new, *changed)


def test_the_commands_of_step_nine_run_it_and_the_book_includes_it(copy):
    commands = [shlex.split(line) for line in blocks()["in the repository"].splitlines()]
    assert [line[1] for line in commands if line[0] == "make"] == ["book", "test"]
    said = [copy.call("safebook", *line[1:]) for line in commands if line[0] == ".venv/bin/safebook"]
    assert re.search(rf"{RUN} +smoke +not run", said[0])
    assert "samples" in said[1] and "50 .. 1000000" in said[1]
    record = json.loads((copy.root / "try" / "results.json").read_text())
    assert record["run"] == RUN and record["parameters"]["samples"] == 50
    assert {row["labels"]["model"] for row in record["scalars"]} == {
        "dpo_standard-medium", "dpo-medium", "benign-medium",
    }  # fmt: skip
    # only what it needs was trained: its three models and the one they start from
    models = {path.parent.name.split("-seed")[0] for path in copy.root.glob("artifacts/smoke/*/meta.json")}
    assert models == {"pcfg-pretrained", *(f"pcfg-{row['labels']['model']}" for row in record["scalars"])}

    # what `make book` does, without the other runs; without npm's scripts, which would be fetched
    copy.call("safebook", "run-registered", RUN, "--size", "smoke")
    build = (
        "import sys; from safebook import book, book_node; book_node._build = lambda folder: 'not in this test'; "
        "book.assemble(sys.argv[1]); book.build(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, "smoke"], cwd=copy.root, env=copy.env, capture_output=True, text=True, timeout=600
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    html = (copy.root / "_build" / "html" / "executed" / f"{TEMPLATE}.html").read_text(encoding="utf-8")
    assert "<h1>The usual DPO" in html and 'class="sb-answer' in html.replace("admonition ", "")
    front = (copy.root / "_build" / "html" / "index.html").read_text(encoding="utf-8")
    assert f'href="executed/{TEMPLATE}.html"' in front  # the navigation leads there
    made = copy.root / "book" / "executed"
    page = nbformat.read(made / f"{TEMPLATE}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in page.cells)
    claim = yaml.safe_load(blocks()["data/claims.yaml, at the end"])[0]
    assert page.cells[0].source == "# The usual DPO" and claim["statement"] in text
    images = [
        out
        for cell in page.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    assert images and images[0].metadata["image/png"]["alt"].startswith("Share of safe prompts")
    assert (
        CLAIM in (made / "scorecard.md").read_text() and "The usual DPO" in (made / "status.md").read_text()
    )
    assert "### The usual DPO" in (made / "findings_pcfg.md").read_text()
    listed = copy.call("safebook", "list", "--size", "smoke")
    assert re.search(rf"{RUN} +smoke +succeeded", listed)


def test_a_forgotten_step_is_noticed(copy, tmp_path):
    """Without the line in the table of contents the build stops."""
    contents = copy.root / "book" / "_toc.yml"
    kept = contents.read_text()
    contents.write_text(kept.replace(blocks()["book/_toc.yml, behind the last page of the same paper"], ""))
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from safebook import book; book.check_toc()"],
            cwd=copy.root, env=copy.env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        contents.write_text(kept)
    assert done.returncode != 0 and "99_usual_dpo" in done.stderr
