"""Part 2's runs: SafetyLock."""

from safebook.runs import Run

RUNS: tuple[Run, ...] = ()
