"""The books under test: a toy with a run of every kind, and the one that `make book` built."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safebook import registry

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = os.environ.get("SAFEBOOK_REQUIRE_BROWSER") == "1"
# As root in a container the sandbox cannot start; the rest keeps the browser from calling home.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


@dataclass(frozen=True)
class Site:
    """A built book. `kinds`: what the toy's runs are; empty for the real book."""

    name: str
    html: Path
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def pages(self) -> list[Path]:
        return sorted(
            path for path in self.html.rglob("*.html") if "_static" not in path.relative_to(self.html).parts
        )

    @property
    def own_pages(self) -> list[Path]:
        """`pages`, without what the toy has in common with the real book, but for the first page: the fixed pages; and with
        one of its many runs that were never run."""
        never = [run for run in registry.RUNS if self.kinds.get(run.id) == "never"][1:]
        left_out = {(self.html / "executed" / run.template).with_suffix(".html") for run in never}
        if self.kinds:
            left_out |= {p for p in self.pages if p.parent == self.html and p.name != "index.html"}
        return [page for page in self.pages if page not in left_out]

    @property
    def live(self) -> bool:
        """Whether the widget script was built (it takes npm)."""
        script = self.html / "_static" / "vendor" / "widgets.js"
        return script.exists() and script.stat().st_size > 0


@pytest.fixture(scope="session")
def toy(tmp_path_factory, worker_id) -> Site:
    """Built once, also when pytest-xdist runs several workers."""
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent
    root, plan = folder / "toy-book", folder / "toy-book.json"
    with (folder / "toy-book.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not plan.exists():
            plan.write_text(_build_toy(root))
    return Site("toy", root / "_build" / "html", json.loads(plan.read_text()))


@pytest.fixture(scope="session")
def worker_id(request) -> str:
    """pytest-xdist's name of this process; "master" without it."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


def _build_toy(root: Path) -> str:
    root.mkdir()
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "SAFEBOOK_ROOT": str(root), "PYTHONPATH": path}
    script = str(Path(__file__).with_name("toy.py"))
    done = subprocess.run(
        [sys.executable, script, str(root)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def real() -> Site:
    """The book of this checkout; built at smoke size first if there is none."""
    html = Path(os.environ.get("SAFEBOOK_BOOK_HTML", ROOT / "_build" / "html"))
    if not (html / "index.html").exists():
        done = subprocess.run(
            [sys.executable, "-m", "safebook", "book", "--size", "smoke"], cwd=ROOT, timeout=1800
        )
        assert done.returncode == 0, "`safebook book --size smoke` failed"
    return Site("real", html)


@pytest.fixture(scope="session", params=["toy", "real"])
def site(request) -> Site:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a profile. Without one a test is skipped, or fails if SAFEBOOK_REQUIRE_BROWSER=1."""
    program = _chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        reason = "no Chromium (or no playwright) on this machine: the browser tier was not run"
        if REQUIRED:
            pytest.fail(reason + ", but SAFEBOOK_REQUIRE_BROWSER=1")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        yield chromium
        chromium.close()


def _chromium() -> str | None:
    named = os.environ.get("SAFEBOOK_CHROMIUM")
    for name in filter(
        None, (named, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    ):
        if found := shutil.which(name):
            return found
    return str(MAC) if MAC.exists() else None
