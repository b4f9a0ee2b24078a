"""Part 3's runs: SPF."""

from safebook.runs import Run

RUNS: tuple[Run, ...] = ()
