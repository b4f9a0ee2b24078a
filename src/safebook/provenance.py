"""Where a number comes from: source commit, machine, software, and what the run cost."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

from safebook import paths

SOURCES = ("src", "notebooks", "constraints.txt", "pyproject.toml")  # a change here makes a commit "dirty"
PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "torch",
    "transformers",
    "scikit-learn",
    "matplotlib",
    "papermill",
    "ipykernel",
)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", paths.ROOT, *arguments], check=False, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout, and whether its sources differ from it; (None, None) outside a git checkout."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None, None
    changed = _git("status", "--porcelain", "--", *SOURCES)
    return head, bool(changed)


def versions() -> dict[str, str]:
    """Installed versions of what a result may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu() -> str:
    """Name of the processor, with its family and model number where the kernel tells them.

    A name alone can hide the generation, and with it the order in which sums are taken.
    """
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if name := facts.get("model name"):
        numbers = {"family": facts.get("cpu family"), "model": facts.get("model")}
        return ", ".join([name, *(f"{key} {number}" for key, number in numbers.items() if number)])
    if sys.platform == "darwin":
        done = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], check=False, capture_output=True, text=True
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def device() -> str:
    """The accelerator's name if this process used one, else "cpu"."""
    torch = sys.modules.get("torch")  # never import it for this
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return "cpu"


def threads() -> int:
    """Threads that one matrix product may use in this process."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def collect() -> dict[str, object]:
    """All of the above, as the record stores it."""
    head, dirty = commit()
    return {
        "commit": head,
        "dirty": dirty,
        "peak_memory_bytes": peak_memory_bytes(),
        "device": device(),
        "threads": threads(),
        "cpu": cpu(),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
