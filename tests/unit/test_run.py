"""The honest runner: what succeeds, and that every planted failure is one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

from safebook import paths, results, run
from safebook.errors import InputError

RUN = "toy-run"
NAN_IN_FILE = """
import json
path = rec.save()
text = path.read_text()
assert '"value": 1.5' in text
path.write_text(text.replace('"value": 1.5', '"value": NaN'))
"""
WRONG_TYPE_IN_FILE = NAN_IN_FILE.replace("NaN", '"much"')


def execute(tmp_path: Path, *cells: dict, values: dict | None = None, **options) -> tuple[run.Status, Path]:
    """Run a template of these cells; the status and the folder its record belongs in."""
    template = toys.template(tmp_path / "toy.ipynb", toys.cell(toys.PARAMETERS, "parameters"), *cells)
    folder = tmp_path / "results" / "smoke" / RUN
    status = run.run_notebook(
        template, values or {}, folder / run.NOTEBOOK, folder, RUN, "smoke", progress=False, **options
    )
    return status, folder


def measure() -> dict:
    return toys.cell(toys.MEASURE.replace("RUN", repr(RUN)), "measure")


def save() -> dict:
    return toys.cell(toys.SAVE)


def test_a_good_run_leaves_record_notebook_and_status(tmp_path):
    status, folder = execute(
        tmp_path,
        measure(),
        toys.cell(
            "import pandas as pd\nrec.table('shares', pd.DataFrame({'kind': ['null'], 'share': [0.25]}))"
        ),
        save(),
        values={"seeds": [3, 4], "samples": 50},
    )
    assert status.state == "succeeded" and status.error is None
    assert sorted(p.name for p in folder.iterdir()) == [
        "notebook.ipynb",
        "results.json",
        "shares.csv",
        "status.json",
    ]
    record = results.load(folder)
    assert record.scalars("value", layer=1) == {3: 4.5, 4: 5.5}
    assert record.parameters == {"size": "smoke", "seeds": [3, 4], "samples": 50, "rate": 0.5, "kind": "null"}
    assert record.tables["shares"].to_dict("list") == {"kind": ["null"], "share": [0.25]}  # "null" is no NaN
    assert run.Status.read(folder) == status
    assert [p.name for p in folder.parent.iterdir()] == [RUN]  # no staging folder is left


def test_the_stored_notebook_is_folded_and_names_no_path_of_this_machine(tmp_path):
    talk = "import os, sys, safebook.paths as p\nprint(p.ROOT, sys.prefix, os.environ['SAFEBOOK_RECORD_DIR'])"
    _, folder = execute(tmp_path, measure(), toys.cell(talk), save())
    text = (folder / run.NOTEBOOK).read_text()
    for path in (paths.ROOT, sys.prefix, tmp_path, Path.home()):
        assert str(path) not in text
    tagged = [c["metadata"]["tags"] for c in json.loads(text)["cells"] if c["metadata"].get("tags")]
    assert ["parameters", "hide-input"] in tagged and ["injected-parameters", "hide-input"] in tagged


PLANTED = {
    "raises": (["raise RuntimeError('planted')", "rec.save()"], "RuntimeError", "planted"),
    "times out": (["import time; time.sleep(60)", "rec.save()"], "CellTimeoutError", "timed out"),
    "SIGKILL": (["import os; os.kill(os.getpid(), 9)", "rec.save()"], "DeadKernelError", "died"),
    "SystemExit(0)": (["raise SystemExit(0)", "rec.save()"], "SystemExit", "0"),
    "_exit(0)": (["import os; os._exit(0)", "rec.save()"], "DeadKernelError", "died"),
    "SystemExit(0) after the record": (["rec.save()", "raise SystemExit(0)", "print(1)"], "SystemExit", "0"),
    "raises after the record": (["rec.save()", "1 / 0"], "ZeroDivisionError", "division by zero"),
    "no record": (["print(1)"], "RecordError", "no such file"),
    "wrong type": (["rec.add('n', '3')", "rec.save()"], "RecordError", "not a number"),
    "NaN": (["rec.add('n', float('nan'))", "rec.save()"], "RecordError", "not finite"),
    "wrong type in the file": ([WRONG_TYPE_IN_FILE], "RecordError", "scalars.0.value"),
    "NaN in the file": ([NAN_IN_FILE], "RecordError", "scalars.0.value"),
    "other parameters": (["rec.parameters['samples'] = 7", "rec.save()"], "RecordError", "parameters is"),
    "other run": (["results.new('other', size=size, seeds=seeds)", "rec.save()"], "RecordError", "other"),
}


@pytest.mark.parametrize(("planted", "name", "message"), PLANTED.values(), ids=PLANTED)
def test_planted_failures_end_failed_with_partial_notebook_and_no_record(tmp_path, planted, name, message):
    folder = tmp_path / "results" / "smoke" / RUN
    folder.mkdir(parents=True)
    (folder / results.FILE).write_text(json.dumps({"tables": {"old": {}}}))  # of an earlier, better day
    (folder / "old.csv").write_text("a\n1\n")
    (folder / "mine.csv").write_text("a\n1\n")
    timeout = 2 if name == "CellTimeoutError" else 60
    status, _ = execute(tmp_path, measure(), *map(toys.cell, planted), timeout_s=timeout)
    assert status.state == "failed"
    assert name in status.error.name and message in status.error.message
    assert not (folder / results.FILE).exists() and not (folder / "old.csv").exists()
    assert (folder / "mine.csv").exists()  # not of the record: not ours to delete
    assert run.Status.read(folder) == status
    cells = json.loads((folder / run.NOTEBOOK).read_text())["cells"]
    assert any("results.new" in "".join(cell["source"]) and cell["execution_count"] for cell in cells)
    if name != "RecordError":
        assert status.error.cell is not None
    assert [p.name for p in folder.parent.iterdir()] == [RUN]


def test_a_failing_cell_is_named_with_its_traceback(tmp_path):
    status, folder = execute(tmp_path, measure(), toys.cell("raise ValueError('too warm')"), save())
    cells = json.loads((folder / run.NOTEBOOK).read_text())["cells"]
    assert "too warm" in "".join(cells[status.error.cell - 1]["source"])
    assert "ValueError: too warm" in status.error.traceback and "\x1b" not in status.error.traceback


@pytest.mark.parametrize(
    "bad", [{"sampels": 20}, {"samples": "20"}, {"samples": 9}, {"seeds": []}, {"seeds": [0, 1000]}]
)
def test_bad_parameters_write_nothing(tmp_path, bad):
    with pytest.raises(InputError):
        execute(tmp_path, measure(), save(), values=bad)
    assert [p.name for p in tmp_path.iterdir()] == ["toy.ipynb"]


def test_braces_in_a_path_are_just_braces(tmp_path):
    status, _ = execute(tmp_path / "a{b}c", measure(), save())
    assert status.state == "succeeded", status.error


def start(tmp_path: Path) -> tuple[subprocess.Popen, Path]:
    """The runner as a process of its own, with a notebook that stays in its third cell."""
    wait = toys.cell(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'there')!r}).touch()\ntime.sleep(60)"
    )
    template = toys.template(
        tmp_path / "toy.ipynb", toys.cell(toys.PARAMETERS, "parameters"), measure(), wait, save()
    )
    folder = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from safebook import run; t, f = map(Path, sys.argv[1:]);"
        f"run.run_notebook(t, {{}}, f / run.NOTEBOOK, f, {RUN!r}, 'smoke', progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, template, folder], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "there").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    return process, folder


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGKILL, "Interrupted")]
)
def test_an_interrupted_run_is_failed_not_missing(tmp_path, number, name):
    process, folder = start(tmp_path)
    os.kill(process.pid, number)
    process.wait(timeout=30)
    status = run.Status.read(folder)
    assert status.state == "failed" and status.error.name == name
    assert not (folder / results.FILE).exists()
    if number == signal.SIGINT:
        assert (folder / run.NOTEBOOK).exists()
    # the next run cleans up after it
    toys.good(tmp_path / "toy.ipynb", RUN)
    again = run.run_notebook(
        tmp_path / "toy.ipynb", {}, folder / run.NOTEBOOK, folder, RUN, "smoke", progress=False
    )
    assert again.state == "succeeded", again.error
    assert not list(tmp_path.glob(".out.staging-*"))
