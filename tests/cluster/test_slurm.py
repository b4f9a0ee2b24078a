"""The graph of runs through profiles/slurm on a real SLURM: to its end, and after a job was killed in the middle."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_snakefile import Project

from safebook import paths, registry, results
from safebook.run import FAILED, STATUS, Status

pytestmark = pytest.mark.xdist_group("slurm")  # one of them at a time
PART, KILLED = "llama", "llama-04-clusters-and-weights"
# no accounting database here. A job takes some ten seconds; each question in vain makes the next pause longer by ten.
FAST = ("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "12",
        "--latency-wait", "10", "--slurm-no-account")  # fmt: skip


def snakemake(root: Path, environment: dict, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", *FAST]
    command += ["--config", "size=smoke", *arguments]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=1200)  # idle: a toy takes a minute, a part some minutes
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"not finished:\n{process.communicate()[0]}")
    return process.returncode, text


def test_a_killed_job_stops_only_what_needs_it_and_the_same_command_goes_on(slurm, tmp_path):
    project = Project(tmp_path / "checkout")
    shutil.copytree(paths.ROOT / "profiles", project.root / "profiles")
    project.env |= slurm
    hang = project.root / "hang-toy-tuned-0"
    hang.touch()
    process = snakemake(project.root, project.env)
    project.wait_for(process, "trained.txt", "toy-tuned 0")
    job = next(job for job, about in jobs(project.env).items() if "rule_model" in about)
    subprocess.run(["scancel", "--signal=KILL", "--full", job], env=project.env, check=True, timeout=60)
    code, text = finish(process)
    assert code == 1 and project.count("executed.txt") == ["toy-01-free"], text
    # the same command goes on where it stopped
    hang.unlink()
    code, text = finish(snakemake(project.root, project.env))
    assert code == 0, text
    assert project.count("trained.txt") == ["toy-base 0", "toy-tuned 0", "toy-tuned 0"]
    assert project.count("executed.txt") == ["toy-01-free", "toy-02-tuned"]
    # and what one machine would do next is nothing
    assert "Nothing to be done" in project.plan()


def jobs(environment: dict, state: str = "") -> dict[str, str]:
    """Id -> comment (rule and wildcards) of the jobs that SLURM has, in one state or in all."""
    command = ["squeue", "--noheader", "--format=%i %k", *(["--states", state] if state else [])]
    shown = subprocess.run(
        command, env=environment, text=True, capture_output=True, check=True, timeout=60
    ).stdout
    return dict(line.split(maxsplit=1) for line in shown.splitlines())


def kill(environment: dict, wanted: str, started: Path, process: subprocess.Popen) -> None:
    """Kill the job whose comment names this as soon as the file of its run says that it is at work."""
    deadline = time.monotonic() + 1200  # on one core nearly all other jobs come first
    while not started.exists():
        assert time.monotonic() < deadline and process.poll() is None, f"{wanted} did not run"
        time.sleep(0.2)
    (job,) = [job for job, about in jobs(environment, "RUNNING").items() if wanted in about]
    command = ["scancel", "--signal=KILL", "--full", job]
    subprocess.run(command, env=environment, check=True, timeout=60)


def test_the_smoke_graph_of_a_part_with_a_page_killed_in_the_middle(slurm, tmp_path):
    """Every model and page of the part on Llamas, as they are published."""
    for name in ("src", "notebooks", "profiles", "data"):
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("results", ".*"))
    shutil.copy(paths.ROOT / "Snakefile", tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SAFEBOOK_")}
    plugins = os.environ.get("PYTHONPATH", "")
    environment |= slurm | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), plugins])}
    part = [run for run in registry.RUNS if run.paper == PART]
    records = {run.id: tmp_path / "results" / "smoke" / run.id / "results.json" for run in part}
    targets = [str(record.relative_to(tmp_path)) for record in records.values()]
    models = {model for run in part for model in registry.models(run, "smoke")}

    process = snakemake(tmp_path, environment, "--", *targets)
    try:
        kill(environment, KILLED, records[KILLED].with_name(STATUS), process)
        code, text = finish(process)
    finally:
        process.kill()
    assert code == 1 and {run for run, record in records.items() if not record.exists()} == {KILLED}, text
    told = Status.read(records[KILLED].parent)
    assert told.state == FAILED and told.error.name == "Interrupted"
    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "artifacts").glob("smoke/*/meta.json")}
    assert len(trained) == len(models)
    assert text.count("has been submitted with SLURM jobid") == len(models) + len(part)

    code, text = finish(snakemake(tmp_path, environment, "--", *targets))
    assert code == 0 and text.count("has been submitted with SLURM jobid") == 1, text
    assert {file: file.stat().st_mtime_ns for file in trained} == trained  # nothing is trained twice
    for run, record in records.items():
        assert results.load(record.parent).run == run
