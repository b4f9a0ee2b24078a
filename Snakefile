# The graph of runs: trained models (one job per name and seed), then notebooks (one job per run).
#
#   safebook book --size laptop                      the usual way; calls this file
#   snakemake --cores 2 --config size=laptop         the same without the book, also on a cluster (--executor slurm ...)
#   snakemake ... --config size=laptop seeds=0,2     only these seeds
#
# Three rules of the house, each for a trap:
# * The executed notebook is a log, not an output: Snakemake deletes the outputs of a failed job, and the notebook
#   is the file one needs then.
# * A model's folder is named by a hash of all that makes it, so a changed plot never retrains anything, and its
#   inputs are `ancient`: their content is in that name already.
# * What a record depends on is hashed into `params`; templates and drawing modules are inputs, compared by
#   checksum. So rerun triggers are params, input and mtime (with checksum), not the code of this file.

import os
import shlex
import sys

from safebook import paths, registry, zoo
from safebook.chat_profiles import smaller
from safebook.run import planned_seeds

SIZE = registry.check_size(config.get("size", "smoke"))
if "seeds" in config:  # handed on to the jobs, on other machines by Snakemake itself
    os.environ[registry.ONLY_SEEDS] = str(config["seeds"])
registry.check_seeds(SIZE)
THREADS = int(config.get("threads", 1))  # per job; jobs in parallel with more would slow each other many times over
ROOT = paths.ROOT
BASES = sorted({need for artifact in zoo.ARTIFACTS.values() for need in artifact.needs})
OTHERS = sorted(set(zoo.ARTIFACTS) - set(BASES))
MODEL = "artifacts/{size}/{name}-seed{seed}-{key}/meta.json"
LOG = "artifacts/{size}/logs/{name}-seed{seed}-{key}.log"
ENV = "export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}; "
# `exec`: the job is then the shell itself, and gets Snakemake's signals
SAFEBOOK = ENV + "exec " + shlex.quote(sys.executable) + " -m safebook "


def meta(name, size, seed):
    """The file that says this model is complete."""
    return os.path.relpath(zoo.path(name, size, int(seed)) / "meta.json", ROOT)


def needs(wildcards):
    return [meta(name, wildcards.size, wildcards.seed) for name in zoo.ARTIFACTS[wildcards.name].needs]


def sources(wildcards):
    """The template and the modules that a run's page is made with."""
    run = registry.get(wildcards.run)
    modules = [os.path.relpath(registry.PACKAGE / name, ROOT) for name in (*run.modules, *run.drawing)]
    return [os.path.relpath(run.path, ROOT), *modules]


def models(wildcards):
    """The trained models that a run needs."""
    run, size = registry.get(wildcards.run), wildcards.size
    return [meta(*model) for model in registry.models(run, size, planned_seeds(run, size))]


def seeds(wildcards):
    """The seeds that a run is measured with, so that a page which is only drawn anew keeps all that its record had."""
    return ",".join(map(str, planned_seeds(registry.get(wildcards.run), wildcards.size)))


def inputs(wildcards):
    """The hash of what a run's record depends on. A record that has the seeds asked for, and more, is up to date."""
    run, size = registry.get(wildcards.run), wildcards.size
    return registry.current_hash(run, size, planned_seeds(run, size))


wildcard_constraints:
    size="|".join([*registry.SIZES, *(s for size in registry.SIZES for s in smaller(size))]),
    run="|".join(run.id for run in registry.RUNS),
    seed=r"\d+",
    key="[0-9a-f]+",


onstart:
    # jobs print "[ 5/13] name": how many there are in all is known only here
    os.environ["SAFEBOOK_TOTAL"] = str(sum(job.rule.name != "all" for job in workflow.dag.needrun_jobs()))


rule all:
    input:
        [f"results/{SIZE}/{run.id}/results.json" for run in registry.RUNS],


rule base:  # models that others start from go first: most of the graph waits for them
    input:
        ancient(needs),
    output:
        MODEL,
    log:
        LOG,
    wildcard_constraints:
        name="|".join(BASES) or "none",
    priority: 100
    threads: THREADS
    resources:
        mem_mb=2000,
        runtime=240,
    shell:
        SAFEBOOK + "build {wildcards.name} --size {wildcards.size} --seed {wildcards.seed} --log {log}"


rule model:
    input:
        ancient(needs),
    output:
        MODEL,
    log:
        LOG,
    wildcard_constraints:
        name="|".join(OTHERS) or "none",
    priority: 50
    threads: THREADS
    resources:
        mem_mb=2000,
        runtime=240,
    shell:
        SAFEBOOK + "build {wildcards.name} --size {wildcards.size} --seed {wildcards.seed} --log {log}"


rule notebook:
    input:
        sources,
        models,
    output:
        "results/{size}/{run}/results.json",
    log:
        notebook="results/{size}/{run}/notebook.ipynb",
        status="results/{size}/{run}/status.json",
    params:
        inputs=inputs,
        seeds=seeds,
    threads: THREADS
    resources:
        mem_mb=2000,
        runtime=120,
    shell:
        "export " + registry.ONLY_SEEDS + "={params.seeds}; " + SAFEBOOK + "run-registered {wildcards.run} --size {wildcards.size}"
