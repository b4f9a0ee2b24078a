"""Does the reproduction reproduce here? What this machine measured beside the committed record of the same size.

Claim by claim, from the numbers per seed that decide it (its value and its control):

    bit-identical           every seed's numbers are those of the committed record, which may have more seeds
    within the interval     the mean of this machine's k seeds lies in the 95 % prediction interval of the n committed
                            ones, mean +- t s sqrt(1/n + 1/k); t: 97.5 % point of Student's t, n - 1 degrees of freedom
    outside the interval    it does not
    no interval             not bit-identical, and fewer than two committed seeds give no interval

The formula is that of a mean of k new seeds. The same seeds on another machine differ less than new ones do, so that a
mean outside says that something is wrong, while a mean within does not prove that nothing is.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safebook import claims, registry, results
from safebook.schema import RecordError

IDENTICAL, WITHIN, OUTSIDE = "bit-identical", "within the interval", "outside the interval"
NO_INTERVAL, NOTHING, ITSELF = "no interval", "no committed record", "is the committed record"
WORDS = (IDENTICAL, WITHIN, OUTSIDE, NO_INTERVAL, NOTHING, ITSELF)
Seeds = Mapping[int | None, float]  # seed -> number


def prediction_interval(values: Sequence[float], k: int) -> list[float]:
    """Where the mean of k new seeds lies in 95 of 100 cases, from at least two values: mean +- t s sqrt(1/n + 1/k)."""
    known = claims.Interval.of(values)  # its half is t s / sqrt(n)
    half = known.half * math.sqrt(1 + len(values) / k)
    return [known.mean - half, known.mean + half]


def repeats(committed: Seeds, own: Seeds) -> bool:
    """Are this machine's numbers, of all or of some of the seeds, those of the committed record?"""
    return bool(own or not committed) and own.items() <= committed.items()


def compare(committed: Seeds, own: Seeds, same_control: bool = True) -> tuple[str, list[float] | None]:
    """One of IDENTICAL, WITHIN, OUTSIDE, NO_INTERVAL, and the prediction interval if there is one.

    same_control: whether the control's numbers are those of the committed record, too.
    """
    interval = prediction_interval(list(committed.values()), len(own)) if len(committed) >= 2 else None
    same = repeats(committed, own)
    if same and same_control:
        return IDENTICAL, interval
    if interval is None:
        return NO_INTERVAL, None
    low, high = interval
    # values that agree in every bit must not fall out of an interval of no width by the rounding of a mean
    return (WITHIN if same or low <= math.fsum(own.values()) / len(own) <= high else OUTSIDE), interval


def column(size: str) -> dict[str, dict]:
    """Claim id -> mark, for the claims that this machine has measured at that size."""
    found, by_run = {}, {}
    for claim in claims.read():
        by_run.setdefault(claim.run, []).append(claim)
    for name, rows in by_run.items():
        found |= marks(rows, registry.get(name), size)
    return found


def marks(rows: Sequence[claims.Claim], run: registry.Run, size: str) -> dict[str, dict]:
    """Claim id -> agreement (one of WORDS), committed mean and the prediction interval, which records are stale, and what this
    machine measured: value, the mean over its seeds, and spread, its 95 % interval, None of one seed.

    The committed mean is over this machine's seeds where all are there. some_seeds: these where the run has more, else None.

    rows: claims that this run decides; those that this machine's record does not hold are left out.
    """
    own, committed = _load(run.folder(size)), _load(run.recorded(size))
    if own is None:
        return {}
    every = registry.seeds(run, size, every_seed=True)
    named = {"yours": (own, own.seeds), "the committed one": (committed, every)}
    stale = [
        name
        for name, (record, seeds) in named.items()
        if record and record.inputs_hash != registry.current_hash(run, size, seeds)
    ]
    some = own.seeds if registry.fewer_seeds(run, size, own.seeds) else None
    # date and duration, too: copied, not measured again
    itself = committed is not None and committed.path.read_bytes() == own.path.read_bytes()
    found = {}
    for claim in rows:
        numbers, known = _numbers(own, claim), _numbers(committed, claim)
        if not claim.implemented or numbers is None:
            continue
        mark = {"agreement": NOTHING, "committed": None, "interval": None, "stale": stale}
        values = list(numbers[0].values())
        mark |= {"value": math.fsum(values) / len(values), "some_seeds": some}
        mark["spread"] = claims.Interval.of(values).ends if len(values) >= 2 else None
        if known is not None:
            word, mark["interval"] = compare(known[0], numbers[0], repeats(known[1], numbers[1]))
            mark["agreement"] = ITSELF if itself else word
            same = {seed: known[0][seed] for seed in numbers[0] if seed in known[0]}
            there = same if len(same) == len(numbers[0]) else known[0]
            mark["committed"] = math.fsum(there.values()) / len(there)
        found[claim.id] = mark
    return found


def _load(folder: Path) -> results.Record | None:
    try:
        return results.load(folder) if (folder / results.FILE).is_file() else None
    except RecordError:
        return None  # the run's page says what is wrong with it


def _numbers(record: results.Record | None, claim: claims.Claim) -> tuple[Seeds, Seeds] | None:
    """The claim's values and controls per seed, None if the record does not hold them."""
    if record is None:
        return None
    try:
        control = claim.control
        controls = record.scalars(control.metric, **control.labels) if control else {}
        return record.scalars(claim.value.metric, **claim.value.labels), controls
    except RecordError:
        return None
