"""The workflows: they do what the README says, with pinned actions and no more rights than needed; and what a release holds."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml

from safebook import cli, paths

FOLDER = paths.ROOT / ".github" / "workflows"
NAMES = ("test", "publish", "nightly")
README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
#: What a job may ask for beyond reading the sources, and nothing else does.
RIGHTS = {
    ("publish", "pages"): {"pages": "write", "id-token": "write"},
    ("publish", "release"): {"contents": "write"},
}


def workflow(name: str) -> dict:
    # YAML 1.1 reads the key `on` as true
    found = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def steps(name: str) -> list[tuple[str, dict]]:
    return [(job, step) for job, content in workflow(name)["jobs"].items() for step in content["steps"]]


def commands(name: str) -> list[str]:
    return [line for _, step in steps(name) for line in step.get("run", "").splitlines() if line.strip()]


def readme_commands() -> set[str]:
    """Commands in the README: lines of its code blocks without comments, and inline code."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return {line for line in lines if line} | set(re.findall(r"`([^`\n]+)`", README))


def test_there_are_these_workflows_and_no_others():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yml" for name in NAMES}


def test_what_starts_each():
    on = {name: workflow(name)["on"] for name in NAMES}
    assert on["test"] == {"push": {"branches": ["**"]}, "pull_request": None}
    assert on["publish"] == {"push": {"tags": ["v*"]}}
    assert set(on["nightly"]) == {"schedule", "workflow_dispatch"}
    assert re.fullmatch(r"\d+ \d+ \* \* \*", on["nightly"]["schedule"][0]["cron"])


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_those_of_the_readme(name):
    targets = set(re.search(r"^\.PHONY: (.+)$", (paths.ROOT / "Makefile").read_text(), re.M)[1].split())
    known = cli._parser()._subparsers._group_actions[0].choices
    for command in commands(name):
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets and command in readme_commands(), command
        elif words[0] == ".venv/bin/safebook":
            assert " ".join(words[:2]) in readme_commands(), command
            assert known[words[1]].parse_args(words[2:])
        elif words[0].startswith(".ci/"):
            assert os.access(paths.ROOT / words[0], os.X_OK), command
        else:
            assert words[:3] == ["gh", "release", "create"], command


def test_each_does_its_part():
    assert commands("test") == ["make test"]
    assert "make book SIZE=laptop" in commands("nightly")
    publish = commands("publish")
    assert publish[:2] == ["make test", "make book SIZE=laptop"] and publish[2].startswith(".ci/pack ")
    jobs = workflow("publish")["jobs"]
    assert jobs["book"]["needs"] == "test" and jobs["pages"]["needs"] == jobs["release"]["needs"] == "book"
    uploaded = {step["with"]["path"] for job, step in steps("publish") if "upload" in step.get("uses", "")}
    assert uploaded == {"_build/html", "dist"} and "dist/*" in publish[3]


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_by_commit_and_say_their_version(name):
    text = (FOLDER / f"{name}.yml").read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.+)", text)
    assert len(uses) == sum("uses" in step for _, step in steps(name)) > 0
    for line in uses:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_one_version_of_each_action():
    every = {
        line for name in NAMES for line in re.findall(r"uses: (.+)", (FOLDER / f"{name}.yml").read_text())
    }
    assert len({line.split("@")[0] for line in every}) == len(every)


@pytest.mark.parametrize("name", NAMES)
def test_rights_are_the_least(name):
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    for job, content in found["jobs"].items():
        assert content.get("permissions", {}) == RIGHTS.get((name, job), {}), job
        if content.get("permissions"):  # what may write runs no code of the repository
            assert not any("checkout" in step.get("uses", "") for step in content["steps"]), job
    for _, step in steps(name):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        # what others can choose, such as a branch's name, comes in as a variable and never as text of a command
        assert "${{" not in step.get("run", "")
    assert "secrets." not in (FOLDER / f"{name}.yml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_jobs_end_and_use_the_oldest_python(name):
    wanted = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    for content in workflow(name)["jobs"].values():
        assert 0 < content["timeout-minutes"] < 360  # six hours end a job without its last steps
        assert content["runs-on"] == "ubuntu-24.04"  # not "latest", which moves
    for _, step in steps(name):
        if "setup-python" in step.get("uses", ""):
            assert wanted == f">={step['with']['python-version']}"


# --- what a release holds ---


def pack(tag: str, html, out) -> subprocess.CompletedProcess:
    command = [sys.executable, str(paths.ROOT / ".ci" / "pack"), tag, str(html)]
    return subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=60)


@pytest.fixture
def version() -> str:
    return "v" + tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_archive_checksum_and_manifest(tmp_path, version):
    html = tmp_path / "html"
    (html / "executed").mkdir(parents=True)
    content = {
        "index.html": b"<p>front</p>",
        "executed/page.html": b"<p>page</p>",
        "figure.png": bytes(range(256)),
    }
    for name, data in content.items():
        (html / name).write_bytes(data)
    archives = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        for number, name in enumerate(content):  # other times, same bytes
            os.utime(html / name, (number + ord(attempt), number))
        done = pack(version, html, tmp_path / attempt)
        assert done.returncode == 0, done.stderr
        archives.append(tmp_path / attempt / "dist" / f"safebook-{version}.zip")
    assert archives[0].read_bytes() == archives[1].read_bytes()

    dist = archives[0].parent
    assert {path.name for path in dist.iterdir()} == {
        archives[0].name, archives[0].name + ".sha256", f"safebook-{version}.manifest",
    }  # fmt: skip
    checksum = (dist / f"{archives[0].name}.sha256").read_text()
    assert checksum == f"{hashlib.sha256(archives[0].read_bytes()).hexdigest()}  {archives[0].name}\n"
    with zipfile.ZipFile(archives[0]) as zipped:
        inside = {n.removeprefix(f"safebook-{version}/"): zipped.read(n) for n in zipped.namelist()}
    assert inside == content
    lines = (dist / f"safebook-{version}.manifest").read_text().splitlines()
    assert lines == [f"{hashlib.sha256(content[name]).hexdigest()}  {name}" for name in sorted(content)]


def test_another_tag_or_no_book_is_refused(tmp_path, version):
    done = pack("v9.9.9", tmp_path, tmp_path)
    assert done.returncode == 1 and version in done.stderr
    done = pack(version, tmp_path, tmp_path)
    assert done.returncode == 1 and "make book SIZE=laptop" in done.stderr
    assert not (tmp_path / "dist").exists()


def test_tests_of_one_group_run_in_one_process(tmp_path):
    """`--dist loadgroup` fails silently: then two browsers open every page, and two SLURMs fight for their ports."""
    (tmp_path / "test_toy.py").write_text(
        "import os, pytest\n"
        "pytestmark = pytest.mark.xdist_group('one')\n"
        "@pytest.mark.parametrize('i', range(8))\n"
        f"def test_toy(i): open({str(tmp_path / 'workers')!r}, 'a').write(os.environ['PYTEST_XDIST_WORKER'] + '\\n')\n"
    )
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path], cwd=tmp_path, env=outside, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 8 and len(set(workers)) == 1
