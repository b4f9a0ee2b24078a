"""The Snakemake profiles for clusters: planned with Snakemake itself, and run against a stand-in for kubectl."""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from test_snakefile import Project

from safebook import make, paths

PROFILES = paths.ROOT / "profiles"
PLUGINS = {
    "slurm": "snakemake_executor_plugin_slurm",
    "kubernetes": "snakemake_executor_plugin_cluster_generic",
}
KUBECTL = r"""#!{python}
# Starts a pod's command right here, keeps what it was told, and answers like kubectl.
import json, os, subprocess, sys
from pathlib import Path
import yaml

state = Path({state!r})
verb, names = sys.argv[1], [a for a in sys.argv[2:] if not a.startswith("--")]
if verb == "create":
    job = yaml.safe_load(sys.stdin)
    name = job["metadata"]["generateName"] + str(len(list(state.glob("*.json"))))
    (state / f"{{name}}.json").write_text(json.dumps(job))
    pod = job["spec"]["template"]["spec"]["containers"][0]
    end = f'"$@"; echo $? > {{state}}/{{name}}.code'
    subprocess.Popen(["bash", "-c", end, "pod", *pod["command"]], cwd=pod["workingDir"], start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=(state / f"{{name}}.log").open("w"), stderr=subprocess.STDOUT)
    print(f"job.batch/{{name}}")
elif verb == "get":
    name = names[0].removeprefix("job.batch/")
    code = state / f"{{name}}.code"
    text = code.read_text().strip() if code.exists() else ""
    print(name, "" if not text else "SuccessCriteriaMet Complete" if text == "0" else "FailureTarget Failed")
"""


def profile(name: str) -> dict:
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text(encoding="utf-8"))


def declared(rule: str, resource: str) -> int:
    """What a rule of the Snakefile says that it needs."""
    source = (paths.ROOT / "Snakefile").read_text(encoding="utf-8")
    body = re.search(rf"^rule {rule}:.*?(?=^rule |\Z)", source, re.M | re.S)[0]
    found = re.search(rf"^        {resource}=(\d+),$", body, re.M)
    assert found, f"rule {rule} does not say its {resource}"
    return int(found[1])


@pytest.fixture
def project(tmp_path) -> Project:
    """A copy of the project with toy models and runs, and the profiles."""
    made = Project(tmp_path / "checkout")
    shutil.copytree(PROFILES, made.root / "profiles")
    # plugins may lie on a path of their own
    given = os.environ.get("PYTHONPATH")
    made.env["PYTHONPATH"] += os.pathsep + given if given else ""
    return made


@pytest.mark.parametrize("name", PLUGINS)
def test_a_profile_schedules_as_the_laptop_does(name):
    found = profile(name)
    assert found["rerun-triggers"] == list(make.RERUN)
    assert found["keep-going"] is found["rerun-incomplete"] is True and found["scheduler"] == "greedy"
    told = {entry.split("=")[0] for entry in found["default-resources"]}
    more = {"gpu"} if name == "kubernetes" else set()  # its script names all that a job asks for
    assert told == {"mem_mb", "runtime"} | more
    assert "set-resources" not in found  # the Snakefile alone says what a rule needs


@pytest.mark.parametrize("name", PLUGINS)
def test_snakemake_plans_with_it_and_takes_memory_and_time_from_the_rules(name, project):
    if importlib.util.find_spec(PLUGINS[name]) is None:  # plan as one machine would
        found = {k: v for k, v in profile(name).items() if not k.startswith(("slurm-", "cluster-generic-"))}
        (project.root / "profiles" / name / "config.yaml").write_text(
            yaml.safe_dump(found | {"executor": "local"})
        )
    code, text = project.call("snakemake", "--profile", f"profiles/{name}", "-n", "--config", "size=laptop")
    assert code == 0, text
    planned = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", text, re.M)
    planned = [(rule, resources) for rule, resources in planned if rule != "all"]
    assert {rule for rule, _ in planned} == {"base", "model", "notebook"} and len(planned) == 8
    for rule, resources in planned:
        for resource in ("mem_mb", "runtime"):
            assert re.search(rf"\b{resource}={declared(rule, resource)}\b", resources), (rule, resources)


@pytest.fixture
def cluster(project, tmp_path) -> Path:
    """A stand-in for kubectl on the path; the folder of what it was told."""
    if importlib.util.find_spec(PLUGINS["kubernetes"]) is None:
        pytest.skip("the extra [cluster] is not installed")
    state, programs = tmp_path / "state", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    (programs / "kubectl").write_text(KUBECTL.format(python=sys.executable, state=str(state)))
    (programs / "kubectl").chmod(0o755)
    project.env |= {
        "PATH": f"{programs}{os.pathsep}{project.env['PATH']}",
        "SAFEBOOK_IMAGE": "python:3.11",
        "SAFEBOOK_CLAIM": "checkout",
        "SAFEBOOK_MOUNT": str(tmp_path),
    }
    return state


def snakemake(project: Project, *more: str) -> tuple[int, str]:
    fast = (
        "--latency-wait",
        "5",
        "--seconds-between-status-checks",
        "1",
        "--max-status-checks-per-second",
        "20",
    )
    return project.call(
        "snakemake", "--profile", "profiles/kubernetes", "--config", "size=smoke", *fast, *more
    )


def test_the_kubernetes_profile_runs_the_graph_one_pod_a_job(project, cluster):
    # a failed pod stops only what needs it
    (project.root / "break-toy-tuned-0").touch()
    code, text = snakemake(project)
    assert code == 1 and project.count("executed.txt") == ["toy-01-free"], text
    (project.root / "break-toy-tuned-0").unlink()
    # the same command goes on where it stopped
    code, text = snakemake(project)
    assert code == 0, text
    assert project.count("trained.txt") == ["toy-base 0", "toy-tuned 0", "toy-tuned 0"]
    assert project.count("executed.txt") == ["toy-01-free", "toy-02-tuned"]
    pods = {path.stem: yaml.safe_load(path.read_text())["spec"] for path in cluster.glob("*.json")}
    assert len(pods) == 5
    base = next(spec for name, spec in pods.items() if name.startswith("safebook-base-"))
    container = base["template"]["spec"]["containers"][0]
    assert base["activeDeadlineSeconds"] == 60 * declared("base", "runtime") and base["backoffLimit"] == 0
    assert container["resources"]["limits"] == {"memory": f"{declared('base', 'mem_mb')}M"}
    assert container["workingDir"] == str(project.root)
    # and what one machine would do next is nothing
    assert "Nothing to be done" in project.plan()


def test_submitting_without_a_site_says_what_is_missing(project, cluster):
    del project.env["SAFEBOOK_CLAIM"]
    code, text = snakemake(project)
    assert code == 1 and "SAFEBOOK_CLAIM: the persistent volume claim" in text and not list(cluster.iterdir())


def test_a_rule_gets_gpus_when_they_are_asked_for_and_the_others_none(project, cluster):
    code, text = snakemake(project, "--set-resources", "model:gpu=1")
    assert code == 0, text
    assert list(cluster.glob("safebook-model-*.json"))
    for path in cluster.glob("*.json"):
        resources = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"][0]["resources"]
        wanted = {"nvidia.com/gpu": 1} if path.stem.startswith("safebook-model-") else {}
        rule = path.stem.split("-")[1]
        assert resources["limits"] == {"memory": f"{declared(rule, 'mem_mb')}M"} | wanted, path.stem
        assert resources["requests"] == resources["limits"] | {"cpu": resources["requests"]["cpu"]}


@pytest.mark.parametrize("name", PLUGINS)
def test_gpus_of_one_rule_are_planned_with_either_profile(name, project):
    if importlib.util.find_spec(PLUGINS[name]) is None:
        pytest.skip("the extra [cluster] is not installed")
    more = ("--config", "size=laptop", "--set-resources", "model:gpu=1")
    code, text = project.call("snakemake", "--profile", f"profiles/{name}", "-n", *more)
    assert code == 0, text
    planned = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", text, re.M)
    asked = {rule for rule, resources in planned if "gpu=1" in resources}
    assert asked == {"model"}
