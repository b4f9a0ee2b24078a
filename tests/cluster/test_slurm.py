"""The graph of runs through profiles/slurm on a real SLURM: to its end, and after a job was killed in the middle."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_snakefile import Project

from safebook import paths, results

pytestmark = pytest.mark.xdist_group("slurm")  # one of them at a time
PART = ("pcfg-01-world", "pcfg-02-pretraining")  # real pages: a trained model and two notebooks
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
    text, _ = process.communicate(timeout=420)  # idle: about a minute
    return process.returncode, text


def test_a_killed_job_stops_only_what_needs_it_and_the_same_command_goes_on(slurm, tmp_path):
    project = Project(tmp_path / "checkout")
    shutil.copytree(paths.ROOT / "profiles", project.root / "profiles")
    project.env |= slurm
    hang = project.root / "hang-toy-tuned-0"
    hang.touch()
    process = snakemake(project.root, project.env)
    project.wait_for(process, "trained.txt", "toy-tuned 0")
    running = subprocess.run(["squeue", "--noheader", "--format=%i %k"], env=project.env, text=True,
                             capture_output=True, check=True, timeout=60).stdout  # fmt: skip
    job = next(line.split()[0] for line in running.splitlines() if "rule_model" in line)
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


def test_real_pages_of_the_smoke_size(slurm, tmp_path):
    for name in ("src", "notebooks", "profiles", "data"):
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("results", ".*"))
    shutil.copy(paths.ROOT / "Snakefile", tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SAFEBOOK_")}
    plugins = os.environ.get("PYTHONPATH", "")
    environment |= slurm | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), plugins])}
    targets = [f"results/smoke/{run}/results.json" for run in PART]
    code, text = finish(snakemake(tmp_path, environment, "--", *targets))
    assert code == 0, text
    assert text.count("has been submitted with SLURM jobid") == 3
    for run in PART:
        assert results.load(tmp_path / "results" / "smoke" / run).run == run
