"""The command line: what it shows, what it refuses, and that it answers at once."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

from safebook import cli, paths, registry, results, run

NAME = "toy/01_first"
SIZES = registry.SIZES


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


REFUSED = {
    "unknown notebook": (["run", "toy/03", "-o", "OUT"], ["notebook", "toy/03", "toy/01_first", "toy/02_second"]),
    "unknown parameter": (["run", NAME, "-o", "OUT", "-p", "sampels=20"], ["sampels", "samples"]),
    "wrong type": (["run", NAME, "-o", "OUT", "-p", "samples=many"], ["samples", "many", "int in [10 .. 1000]"]),
    "out of range": (["run", NAME, "-o", "OUT", "-p", "samples=5"], ["samples", "5", "10 .. 1000"]),
    "no choice": (["run", NAME, "-o", "OUT", "-p", "size=huge"], ["size", "huge", *SIZES]),
    "no value": (["run", NAME, "-o", "OUT", "-p", "samples"], ["samples", "name=value"]),
    "no threads": (["run", NAME, "-o", "OUT", "--threads", "0"], ["--threads", "0", "1 or more"]),
    "not a notebook": (["run", NAME, "-o", "OUT.txt"], ["OUT.txt", ".ipynb"]),
    "over a template": (["run", NAME, "-o", "notebooks/toy/01_first.ipynb"], ["outside notebooks/"]),
    "no time": (["run", NAME, "-o", "OUT", "--timeout", "0"], ["--timeout", "more than 0"]),
    "params of unknown": (["params", "nonsense"], ["nonsense", "toy/01_first"]),
    "list of unknown size": (["list", "--size", "huge"], ["huge", *SIZES]),
    "claims of unknown size": (["claims", "--size", "huge"], ["huge", *SIZES]),
    "book of unknown size": (["book", "--size", "huge"], ["huge", *SIZES]),
    "book with no jobs": (["book", "--jobs", "0"], ["--jobs", "1 or more"]),
    "record of unknown size": (["record", "--size", "huge"], ["huge", *SIZES]),
    "unknown model": (["build", "nonsense"], ["nonsense", "pcfg-pretrained"]),
    "model of unknown size": (["build", "pcfg-pretrained", "--size", "huge"], ["huge", *SIZES]),
    "negative seed": (["build", "pcfg-pretrained", "--seed", "-1"], ["--seed", "-1"]),
    "unknown run": (["run-registered", "nonsense"], ["nonsense", "toy-01-first"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_exits_2_names_it_and_writes_nothing(toy_checkout, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(paths, "ROOT", toy_checkout)
    monkeypatch.chdir(toy_checkout)
    monkeypatch.setattr(run, "run_notebook", None)  # before any compute: calling it would be an error
    before = files(toy_checkout)
    arguments = [
        a.replace("OUT", str(toy_checkout / "new" / "out.ipynb")) if a == "OUT" else a for a in arguments
    ]
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == "" and err.startswith("safebook: parameter ")
    assert all(word in err for word in words), err
    assert files(toy_checkout) == before


def test_a_command_that_is_none_exits_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2 and "nonsense" in capsys.readouterr().err


def test_run_puts_the_record_beside_the_notebook(toy_checkout, capsys):
    out = toy_checkout / "mine" / "try.ipynb"
    code, text, err = call(capsys, "run", NAME, "-p", "samples=30", "-p", "seeds=2,3", "-o", str(out))
    assert code == 0, err
    assert files(out.parent) == ["try", "try.ipynb", "try/results.json", "try/status.json"]
    record = results.load(out.with_suffix(""))
    assert record.parameters["samples"] == 30 and record.scalars("value") == {2: 3.5, 3: 4.5}
    assert str(out) in text and "cell 4/4" in err  # it showed how far it was
    assert not paths.RESULTS.exists()  # an own run is no registered one


def test_a_failed_run_exits_1_and_says_why(toy_checkout, capsys):
    toys.good(paths.NOTEBOOKS / "toy" / "01_first.ipynb", "toy-01-first", toys.cell("1 / 0"))
    code, _, err = call(capsys, "run", NAME, "-o", str(toy_checkout / "try.ipynb"))
    assert code == 1 and "FAILED in cell" in err and "ZeroDivisionError: division by zero" in err
    assert files(toy_checkout / "try") == ["status.json"]


def test_params_shows_name_type_default_meaning_and_limits(toy_checkout, capsys):
    code, out, _ = call(capsys, "params", NAME)
    assert code == 0
    seeds = next(line for line in out.splitlines() if line.startswith("seeds"))
    assert all(word in seeds for word in ("list[int]", "[0]", "one model per seed", "0 .. 999"))
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["size", "seeds", "samples", "rate", "kind"]


def test_list_follows_a_run_from_not_run_to_stale(toy_checkout, capsys):
    def line() -> str:
        _, out, _ = call(capsys, "list", "--size", "smoke")
        return next(line for line in out.splitlines() if line.startswith("toy-01-first"))

    assert "not run" in line()
    assert cli.main(["run-registered", "toy-01-first", "--size", "smoke"]) == 0
    assert "succeeded" in line() and "00:0" in line()
    template = paths.NOTEBOOKS / "toy" / "01_first.ipynb"
    template.write_text(template.read_text().replace("1.5 + seed", "2.5 + seed"))
    assert "stale" in line()
    template.write_text(template.read_text().replace("2.5 + seed", "nonsense"))
    assert cli.main(["run-registered", "toy-01-first", "--size", "smoke"]) == 1
    assert "failed" in line()
    _, out, _ = call(capsys, "list")
    assert len(out.splitlines()) == 2 + len(registry.RUNS) * len(registry.SIZES)


@pytest.mark.parametrize(
    ("before", "arguments", "threads"),
    [(None, [], "1"), ("3", [], "3"), ("3", ["--threads", "2"], "2")],
    ids=["as in the book", "as the environment says", "as asked"],
)
def test_a_registered_run_computes_with_as_many_threads_as_the_book_does(
    toy_checkout, monkeypatch, before, arguments, threads
):
    for name in cli.THREAD_VARIABLES:
        monkeypatch.setenv(name, before or "")  # so that what the command sets is undone
        if before is None:
            monkeypatch.delenv(name)
    template = paths.NOTEBOOKS / "toy" / "01_first.ipynb"
    seen = "1.5 + seed + 100 * int(__import__('os').environ['OMP_NUM_THREADS'])"
    template.write_text(template.read_text().replace("1.5 + seed", seen))
    assert cli.main(["run-registered", "toy-01-first", "--size", "smoke", *arguments]) == 0
    record = results.load(registry.get("toy-01-first").folder("smoke"))
    assert record.scalars("value")[0] == 1.5 + 100 * int(threads)


def test_record_copies_what_succeeded_and_refuses_the_rest_by_name(toy_checkout, capsys, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", toy_checkout)
    cli.main(["run-registered", "toy-01-first", "--size", "laptop"])
    code, out, err = call(capsys, "record", "--size", "laptop")
    assert code == 1 and "toy-01-first" in out and "refused toy-02-second: not run" in err
    assert files(paths.RECORDED) == ["laptop", "laptop/toy-01-first", "laptop/toy-01-first/results.json"]
    template = paths.NOTEBOOKS / "toy" / "01_first.ipynb"
    template.write_text(template.read_text().replace("1.5 + seed", "2.5 + seed"))
    cli.main(["run-registered", "toy-02-second", "--size", "laptop"])
    code, out, err = call(capsys, "record", "--size", "laptop")
    assert code == 1 and "refused toy-01-first: stale" in err and "recorded" in out and "toy-02-second" in out


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from safebook import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'papermill', 'snakemake', 'pandas', 'numpy', 'scipy', 'matplotlib', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "safebook", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


@pytest.mark.skipif(importlib.util.find_spec("safebook.bench") is None, reason="there is no benchmark yet")
def test_bench_prints_what_is_measured(monkeypatch, capsys):
    from safebook import bench

    monkeypatch.setattr(bench, "measure", lambda: {"pcfg_sequences_per_s": 81234.5, "device": "cpu"})
    assert json.loads(call(capsys, "bench", "--json")[1]) == {
        "pcfg_sequences_per_s": 81234.5,
        "device": "cpu",
    }
    assert "81,23" in call(capsys, "bench")[1]
