"""The graph of runs, with toys in a copy of the project: resume, no-op, and what a change redoes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

ROOT = Path(__file__).parents[2]
ZOO = '''
"""Toy models: text files that take a moment."""
import hashlib, json, os, time
from dataclasses import dataclass
from safebook import paths

@dataclass(frozen=True)
class Artifact:
    name: str
    needs: tuple = ()

FINE_TUNED = ARMS = CHAT_ATTACKED = ()  # of the real one
CHAT_ALIGNED = CHAT_BASE = CHAT_SFT = "toy-base"
ARTIFACTS = {"toy-base": Artifact("toy-base"), "toy-tuned": Artifact("toy-tuned", ("toy-base",))}

def key(name, size, seed):
    text = (paths.ROOT / "settings.txt").read_text()
    return hashlib.sha256(repr((name, size, seed, text)).encode()).hexdigest()[:12]

def path(name, size, seed):
    return paths.ARTIFACTS / size / f"{name}-seed{seed}-{key(name, size, seed)}"

def build(name, size, seed, progress=True):
    folder = path(name, size, seed)
    if (folder / "meta.json").exists():
        return folder
    log = paths.ROOT / "trained.txt"
    with log.open("a") as file:
        file.write(f"{name} {seed}\\n")
    if (paths.ROOT / f"break-{name}-{seed}").exists():
        raise RuntimeError("planted")
    while (paths.ROOT / f"hang-{name}-{seed}").exists():
        time.sleep(0.1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.tmp").write_text(json.dumps({"duration_s": 1.5}))
    os.replace(folder / "meta.tmp", folder / "meta.json")
    return folder
'''
BOOK = """
from safebook import paths

class BookError(RuntimeError):
    pass

def assemble(size):
    return []

def build(size, say=print):
    (paths.ROOT / "built.txt").write_text(size)
    return paths.BUILD / "html" / "index.html"
"""
RUNS = """
from safebook.runs import groups

RUNS = (
    Run("toy-01-free", "toy/01_free.ipynb", "Free", "pcfg", (), ("schema.py",),
        ("drawing.py",), groups(laptop={})),
    Run("toy-02-tuned", "toy/02_tuned.ipynb", "Tuned", "pcfg", ("toy-base", "toy-tuned"), ("schema.py",),
        ("drawing.py",), groups(laptop={"samples": 30})),
)
"""
COUNT = (
    "from safebook import paths\nwith (paths.ROOT / 'executed.txt').open('a') as f:\n    f.write(RUN + '\\n')"
)
BREAK = "assert not (paths.ROOT / 'break-notebook').exists(), 'planted'"


class Project:
    """A copy of the project with toys in it."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(ROOT / "src" / "safebook", root / "src" / "safebook")
        shutil.copy(ROOT / "Snakefile", root)
        shutil.copy(ROOT / "README.md", root)  # `safebook record` writes its table of results
        package = root / "src" / "safebook"
        (package / "zoo.py").write_text(ZOO)
        (package / "book.py").write_text(BOOK)
        (package / "drawing.py").write_text("# draws\n")
        registry = package / "registry.py"
        registry.write_text(registry.read_text() + RUNS)
        (root / "settings.txt").write_text("1")
        for run, name in (("toy-01-free", "01_free"), ("toy-02-tuned", "02_tuned")):
            count = toys.cell(COUNT.replace("RUN", repr(run)))
            toys.good(root / "notebooks" / "toy" / f"{name}.ipynb", run, count, toys.cell(BREAK))
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SAFEBOOK_")}
        self.env |= {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", *arguments]
        return subprocess.Popen(
            command, cwd=self.root, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        text, _ = process.communicate(timeout=180)
        return process.returncode, text

    def book(self, size: str = "smoke") -> tuple[int, str]:
        return self.call("safebook", "book", "--size", size)

    def plan(self) -> str:
        from safebook import make

        return self.call("snakemake", "-n", "--cores", "2", "--nolock", "--rerun-triggers", *make.RERUN)[1]

    def count(self, name: str) -> list[str]:
        """Lines of trained.txt or executed.txt."""
        path = self.root / name
        return sorted(path.read_text().split("\n")[:-1]) if path.exists() else []

    def wait_for(self, process: subprocess.Popen, name: str, line: str) -> None:
        deadline = time.monotonic() + 90
        while line not in self.count(name):
            assert time.monotonic() < deadline and process.poll() is None, f"{line} did not come in {name}"
            time.sleep(0.1)


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "checkout")


def test_runs_all_then_nothing_then_only_what_a_change_asks_for(project):
    code, text = project.book()
    assert code == 0, text
    assert project.count("trained.txt") == ["toy-base 0", "toy-tuned 0"]
    assert project.count("executed.txt") == ["toy-01-free", "toy-02-tuned"]
    # which run, how many of how many, its cells; then how long each took, and where the book is
    assert all(f"[{number}/4] " in text for number in (1, 2, 3, 4)) and "cell 6/6" in text
    assert re.search(r"toy-tuned seed 0 +succeeded +00:01", text) and "index.html" in text
    for run in ("toy-01-free", "toy-02-tuned"):
        names = sorted(p.name for p in (project.root / "results" / "smoke" / run).iterdir())
        assert names == ["notebook.ipynb", "results.json", "status.json"]

    # nothing changed, then only touched: nothing runs
    start = time.monotonic()
    code, text = project.book()
    assert code == 0 and "all runs are up to date" in text and time.monotonic() - start < 20
    for path in [*project.root.rglob("*.py"), *project.root.rglob("*.ipynb"), project.root / "Snakefile"]:
        path.touch()
    assert "Nothing to be done" in project.plan()

    # a plot: notebooks again, no training
    drawing = project.root / "src" / "safebook" / "drawing.py"
    drawing.write_text("# draws otherwise\n")
    plan = project.plan()
    assert "rule notebook" in plan and "rule base" not in plan and "rule model" not in plan
    drawing.write_text("# draws\n")
    assert "Nothing to be done" in project.plan()

    # the Snakefile itself: nothing
    with (project.root / "Snakefile").open("a") as file:
        file.write("\n# a comment\n")
    assert "Nothing to be done" in project.plan()

    # a measuring module makes records stale: notebooks again
    with (project.root / "src" / "safebook" / "schema.py").open("a") as file:
        file.write("MEASURED = 'otherwise'\n")
    assert "stale" in project.call("safebook", "list", "--size", "smoke")[1]
    code, text = project.book()
    assert code == 0, text
    assert len(project.count("trained.txt")) == 2 and len(project.count("executed.txt")) == 4

    # deleted models are not needed by records that are up to date
    shutil.rmtree(project.root / "artifacts")
    assert "Nothing to be done" in project.plan()

    # a setting of the models: all that depends on it, and no more
    (project.root / "settings.txt").write_text("2")
    code, text = project.book()
    assert code == 0, text
    assert len(project.count("trained.txt")) == 4
    assert project.count("executed.txt") == ["toy-01-free"] * 2 + ["toy-02-tuned"] * 3
    assert "stale" not in project.call("safebook", "list", "--size", "smoke")[1]


def test_a_failure_does_not_stop_the_others_and_is_told(project):
    (project.root / "break-toy-tuned-0").touch()
    code, text = project.book()
    assert code == 1 and project.count("executed.txt") == ["toy-01-free"]
    assert "FAILED: RuntimeError: planted" in text and "FAILED toy-02-tuned: ModelMissing" in text
    assert (project.root / "built.txt").exists()  # the book is built all the same
    log = next((project.root / "artifacts" / "smoke" / "logs").glob("toy-tuned-*.log"))
    assert "Traceback" in log.read_text()
    (project.root / "break-toy-tuned-0").unlink()
    (project.root / "break-notebook").touch()
    code, text = project.book()
    assert code == 1 and "AssertionError: planted" in text
    folder = project.root / "results" / "smoke" / "toy-02-tuned"
    assert sorted(p.name for p in folder.iterdir()) == ["notebook.ipynb", "status.json"]
    code, text = project.call("safebook", "record", "--size", "smoke")
    assert (
        code == 1
        and "refused toy-02-tuned: failed" in text
        and "recorded data/results/smoke/toy-01-free" in text
    )
    (project.root / "break-notebook").unlink()
    assert project.book()[0] == 0
    assert project.count("trained.txt") == [
        "toy-base 0",
        "toy-tuned 0",
        "toy-tuned 0",
    ]  # the good one was kept


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_goes_on_where_it_was_interrupted(project, number):
    hang = project.root / "hang-toy-tuned-0"
    hang.touch()
    process = project.start("safebook", "book", "--size", "smoke")
    project.wait_for(process, "trained.txt", "toy-tuned 0")
    if number == signal.SIGINT:  # to this process only: it has to stop its jobs itself
        process.send_signal(number)
    else:
        process.kill()
    process.communicate(timeout=60)
    hang.unlink()
    code, text = project.book()
    assert code == 0, text
    assert project.count("trained.txt") == ["toy-base 0", "toy-tuned 0", "toy-tuned 0"]
    assert set(project.count("executed.txt")) == {"toy-01-free", "toy-02-tuned"}


def test_one_seed_of_several_then_the_others(project):
    project.book()  # of another size, which does not have the seed
    project.book("laptop")
    # all seeds are there: a build of one has nothing to do, and takes nothing away
    code, text = project.call("safebook", "book", "--size", "laptop", "--seeds", "1")
    assert code == 0 and "all runs are up to date" in text and "only seeds 1" in text
    code, text = project.book("laptop")
    assert code == 0 and "all runs are up to date" in text
    # a page that is only drawn anew keeps every seed that its record had
    (project.root / "src" / "safebook" / "drawing.py").write_text("# draws otherwise\n")
    runs = len(project.count("executed.txt"))
    code, text = project.call("safebook", "book", "--size", "laptop", "--seeds", "1")
    assert code == 0 and len(project.count("executed.txt")) == runs + 2, text
    own = project.root / "results" / "laptop" / "toy-02-tuned" / "results.json"
    assert json.loads(own.read_text())["seeds"] == [0, 1, 2]
    code, text = project.book("laptop")
    assert code == 0 and "all runs are up to date" in text
    assert project.call("safebook", "record", "--size", "laptop")[0] == 0
    shutil.rmtree(project.root / "results")
    shutil.rmtree(project.root / "artifacts")
    (project.root / "trained.txt").unlink()
    plan = project.call("snakemake", "-n", "--cores", "1", "--nolock", "--config", "size=laptop", "seeds=2")[
        1
    ]
    assert "toy-base-seed2" in plan and "-seed0" not in plan and "-seed1" not in plan  # as a cluster is asked
    code, text = project.call("safebook", "book", "--size", "laptop", "--seeds", "1")
    assert code == 0, text
    assert project.count("trained.txt") == ["toy-base 1", "toy-tuned 1"]
    assert json.loads(own.read_text())["seeds"] == [1]
    code, text = project.call("safebook", "book", "--size", "laptop", "--seeds", "1")
    assert code == 0 and "all runs are up to date" in text
    # what is committed has every seed, so that these are not offered as such
    code, text = project.call("safebook", "record", "--size", "laptop")
    assert code == 1 and "refused toy-02-tuned: fewer seeds" in text
    project.env["SAFEBOOK_SEEDS"] = "1"
    code, text = project.call("safebook", "record", "--size", "laptop")
    assert code == 2 and "seeds" in text
    del project.env["SAFEBOOK_SEEDS"]
    # the same build without the word: the seeds that are missing, and no other
    code, text = project.book("laptop")
    assert code == 0, text
    assert project.count("trained.txt") == [
        f"toy-{x} {seed}" for x in ("base", "tuned") for seed in (0, 1, 2)
    ]
    assert json.loads(own.read_text())["seeds"] == [0, 1, 2]
    code, text = project.call(
        "snakemake", "-n", "--cores", "1", "--nolock", "--config", "size=laptop", "seeds=9"
    )
    assert code != 0 and "allowed: at least one of [0, 1, 2]" in text


def test_larger_size_uses_its_group_and_touches_nothing_of_the_smaller(project):
    code, text = project.book("laptop")
    assert code == 0, text
    assert project.count("trained.txt") == [
        f"toy-{kind} {seed}" for kind in ("base", "tuned") for seed in (0, 1, 2)
    ]
    assert sorted(p.name for p in (project.root / "results").iterdir()) == ["laptop"]
    code, text = project.call("safebook", "record", "--size", "laptop")
    assert code == 0, text
    folder = project.root / "data" / "results" / "laptop" / "toy-02-tuned"
    assert [p.name for p in folder.iterdir()] == ["results.json"]
    assert '"samples": 30' in (folder / "results.json").read_text()
