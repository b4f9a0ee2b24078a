"""How to run a page again: a command that runs it, links from one setting only, an environment that is the tested one."""

import json
import re
import shlex
import tomllib

import nbformat
import pytest
import yaml

from safebook import book_launch, paths, registry
from safebook.errors import InputError

ROOT = paths.ROOT
CONFIG = (paths.ROOT / "_config.yml").read_text(encoding="utf-8")


def configured(monkeypatch, folder, value: str) -> None:
    assert CONFIG.count('      repository: ""\n') == 1
    (folder / "_config.yml").write_text(CONFIG.replace('repository: ""', f"repository: {value}"))
    monkeypatch.setattr(paths, "ROOT", folder)


def test_no_link_without_the_setting():
    assert yaml.safe_load(CONFIG)["sphinx"]["config"]["html_context"]["repository"] == ""
    assert "<a " not in book_launch.block("pcfg-01-world", "pcfg/01_world.ipynb", "smoke")


@pytest.mark.parametrize(("branch", "ref"), [("", "main"), ("@v1.0", "v1.0"), ("@work/x", "work%2Fx")])
def test_the_setting_makes_the_link(monkeypatch, tmp_path, branch, ref):
    configured(monkeypatch, tmp_path, f"https://github.com/owner/name{branch}")
    link = f"https://mybinder.org/v2/gh/owner/name/{ref}?labpath=notebooks%2Fpcfg%2F01_world.ipynb"
    assert book_launch.binder("pcfg/01_world.ipynb") == link
    colab = (
        f"https://colab.research.google.com/github/owner/name/blob/{branch[1:] or 'main'}/binder/colab.ipynb"
    )
    assert book_launch.colab() == colab
    shown = book_launch.block("pcfg-01-world", "pcfg/01_world.ipynb", "smoke")
    assert link in shown and colab in shown and "(as pcfg-01-world)" in shown


@pytest.mark.parametrize(
    "value", ["owner/name", "http://github.com/a/b", "'https://github.com/a/b\"><script>'"]
)
def test_another_setting_is_an_error_that_names_it(monkeypatch, tmp_path, value):
    configured(monkeypatch, tmp_path, value)
    with pytest.raises(InputError, match=r"html_context\.repository"):
        book_launch.binder("pcfg/01_world.ipynb")


def test_the_command_asks_for_a_file_that_the_graph_makes():
    run = registry.RUNS[0]
    words = shlex.split(book_launch.command(run.id, "laptop"))
    assert words[-1] == (run.folder("laptop") / "results.json").relative_to(paths.ROOT).as_posix()
    source = (paths.ROOT / "Snakefile").read_text(encoding="utf-8")
    assert '"results/{size}/{run}/results.json"' in source and 'config.get("size"' in source
    from safebook import make

    start = words.index("--rerun-triggers") + 1
    assert words[start : words.index("--")] == list(make.RERUN)


def colab_cells() -> list[str]:
    return [
        c.source
        for c in nbformat.read(ROOT / "binder" / "colab.ipynb", as_version=4).cells
        if c.cell_type == "code"
    ]


def test_colab_offers_every_run_and_gives_the_books_command():
    cells = colab_cells()
    (choice,) = [c for c in cells if c.startswith("run = ")]
    assert json.loads(choice.partition("@param ")[2]) == [run.id for run in registry.RUNS]
    assert "!" + book_launch.command("{run}", "smoke") in cells
    (installed,) = [c for c in cells if "git clone" in c]
    target = installed.split()[-1]
    makefile = (ROOT / "Makefile").read_text()
    assert f"BOOK_STAMP := {target}\n" in makefile and "{repository}" in installed


def test_colab_asks_for_an_address_and_shows_what_was_executed(tmp_path, monkeypatch, capsys):
    cells = colab_cells()
    with pytest.raises(ValueError, match="repository=''"):
        exec(cells[0], {})
    exec(cells[0].replace('repository = ""', 'repository = "https://github.com/owner/name"'), {})
    folder = tmp_path / "results" / "smoke" / "toy"
    folder.mkdir(parents=True)
    output = nbformat.v4.new_output("display_data", {"text/plain": "what was measured"})
    executed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    nbformat.write(executed, folder / "notebook.ipynb")
    monkeypatch.chdir(tmp_path)
    exec(cells[-1], {"run": "toy"})
    assert "what was measured" in capsys.readouterr().out


def test_binder_installs_what_is_tested():
    folder = paths.ROOT / "binder"
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert lines == ["-c ../constraints.txt", "-e ."] and (folder / "../constraints.txt").exists()
    oldest = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    version = re.fullmatch(r"python-(\d+\.\d+)\n", (folder / "runtime.txt").read_text())[1]
    assert oldest == f">={version}"
