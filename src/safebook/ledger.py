"""Part 4's ledger: what the committed records say of the other parts' claims, how narrowly, and what would change that.

A verdict is that of `claims.judge`. Here it is taken apart into the tests that it consists of, in the claimed direction, so
that above 0 is on the claimed side:

    null        v - null       its 95% interval must lie above 0
    threshold   v - threshold  its mean must not lie below 0
    control     v - c          its 95% interval must lie above 0, seed by seed

A test with an interval holds where margin > half, margin being the mean and half t s / sqrt(n). At the measured mean and
spread s it would hold with the smallest n that makes half smaller than the margin; with the measured n, were the mean
`half` away from the bar.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from safebook import claims, paths, registry
from safebook.claims import MIN_SEEDS, Claim, Interval

#: Short of the bar: on the other side of it.
WHY = (
    "short of the bar, certain",
    "short of the bar, uncertain",
    "beyond the bar, uncertain",
    "threshold not reached",
)
MOST = 10_000  # seeds; what needs more is out of reach
REPLICATES = (claims.MATCHES, claims.SAME)
FAILS = (claims.CONTROL, claims.DIFFERS)


@dataclass(frozen=True)
class Check:
    """One of the tests that a verdict consists of, in the claimed direction."""

    kind: str  # null | threshold | control
    bar: float  # where the statistic must get to: the null, the threshold, the control's mean
    margin: float  # mean beyond the bar
    half: float  # half of the interval of the mean; 0 for a threshold, which the mean alone must reach
    spread: float  # standard deviation over seeds
    seeds: int
    beyond: int  # seeds on the claimed side of the bar

    @property
    def holds(self) -> bool:
        return self.margin >= 0 if self.kind == "threshold" else self.margin > self.half

    @property
    def short(self) -> bool:
        """Is it certain that the mean falls short of the bar?"""
        return self.kind != "threshold" and self.margin < -self.half

    @property
    def needed(self) -> int | None:
        """Fewest seeds with which it would hold at this mean and this spread; None if no number up to `MOST` would do."""
        if self.kind == "threshold":
            return self.seeds if self.holds else None
        return seeds_needed(self.margin, self.spread)

    def mean_needed(self, direction: str) -> float:
        """The statistic's mean at which it would hold with these seeds and this spread (for a control, at the control's mean)."""
        return self.bar + (self.half if direction == "greater" else -self.half)


def half_width(spread: float, seeds: int) -> float:
    """Half of the 95% interval of a mean of so many seeds."""
    from scipy.stats import t

    return float(t.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds)


def seeds_needed(margin: float, spread: float) -> int | None:
    """Fewest seeds, from `MIN_SEEDS`, whose interval would be narrower than the margin; None for more than `MOST`."""
    if margin <= 0 or half_width(spread, MOST) >= margin:
        return None
    low, high = MIN_SEEDS - 1, MOST  # too few, enough: the width falls with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if half_width(spread, middle) < margin else (middle, high)
    return high


def spread_factors(seeds: int) -> tuple[float, float]:
    """The 95% interval of a true standard deviation, as multiples of the one measured with so many seeds (normal values)."""
    from scipy.stats import chi2

    n = seeds - 1
    return tuple(math.sqrt(n / float(chi2.ppf(p, n))) for p in (0.975, 0.025))


def checks(claim: Claim, values: Mapping[int, float], controls: Mapping[int, float] | None) -> list[Check]:
    """The tests of a claim, from a value and a control per seed; none for a control with fewer than two seeds."""
    sign = 1 if claim.direction == "greater" else -1

    def check(kind: str, bar: float, beyond: Sequence[float]) -> Check:
        own = Interval.of(beyond)
        half = 0.0 if kind == "threshold" else own.half
        spread = math.sqrt(math.fsum((x - own.mean) ** 2 for x in beyond) / (len(beyond) - 1))
        return Check(kind, bar, own.mean, half, spread, len(beyond), sum(x > 0 for x in beyond))

    found = [check("null", claim.null, [sign * (v - claim.null) for v in values.values()])]
    if claim.threshold is not None:
        beyond = [sign * (v - claim.threshold) for v in values.values()]
        found.append(check("threshold", claim.threshold, beyond))
    pairs = [sign * (values[seed] - controls[seed]) for seed in values if seed in (controls or {})]
    if len(pairs) >= 2:
        mean = math.fsum(controls[seed] for seed in values if seed in controls) / len(pairs)
        found.append(check("control", mean, pairs))
    return found


# -------------------------------------------------------------------- the committed records


@dataclass(frozen=True)
class Evidence:
    """A claim and what its best committed record holds of it."""

    claim: Claim
    size: str | None = None  # None: no record
    values: dict[int, float] | None = None
    controls: dict[int, float] | None = None
    problem: str = ""  # why there are no values


def evidence(papers: Sequence[str]) -> list[Evidence]:
    """Every claim on these papers, in the file's order, with its committed record of the largest size."""
    return list(_evidence(tuple(papers), _fingerprint()))


def _fingerprint() -> tuple:
    """Changes when a claim or a committed record does."""
    files = [paths.DATA / claims.FILE, *sorted(paths.RECORDED.glob("*/*/results.json"))]
    return tuple(
        (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()
    )


@lru_cache(maxsize=4)
def _evidence(papers: tuple[str, ...], _fingerprint: tuple) -> tuple[Evidence, ...]:
    from safebook import results
    from safebook.schema import RecordError

    loaded, found = {}, []
    for claim in claims.read():
        if claim.paper not in papers:
            continue
        if not claim.implemented:
            found.append(Evidence(claim, problem="not implemented"))
            continue
        try:
            if claim.run not in loaded:
                loaded[claim.run] = _record(claim.run, results)
            record = loaded[claim.run]
            if record is None:
                found.append(Evidence(claim, problem="no committed record"))
                continue
            found.append(Evidence(claim, record.size, *claims.measured(claim, record)))
        except RecordError as error:
            found.append(Evidence(claim, problem=f"the record does not hold it: {error}"))
    return tuple(found)


def _record(run_id: str, results):
    """The committed record of the largest size, None if there is none; a record of this machine alone does not count."""
    run = registry.get(run_id)
    for size in reversed(registry.SIZES):
        if (run.recorded(size) / results.FILE).is_file():
            return results.load(run.recorded(size))
    return None


def digest(papers: Sequence[str]) -> str:
    """sha256 over what a ledger of these papers depends on: the claims, and the numbers that decide them.

    Not over the records' dates and durations: to record the same numbers once more makes no ledger stale.
    """
    parts = [
        [
            e.claim.model_dump(),
            e.size,
            sorted((e.values or {}).items()),
            sorted((e.controls or {}).items()),
            e.problem,
        ]
        for e in evidence(papers)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------- rows


def origin(claim: Claim) -> str:
    """Whose claim it is: "published", or "ours" where the paper has nothing to compare with: a control, or a stricter form."""
    return "ours" if claim.reported.trust.startswith("none") else "published"


def why_not(found: Sequence[Check]) -> str:
    """Why a judged claim does not hold, by the first test that fails, as in the verdict; "" if all hold.

    One of `WHY`, after "control: " where it is the control's. "certain" where the whole interval falls short of the bar,
    "uncertain" where it reaches over it, on whichever side the mean lies.
    """
    failing = next((part for part in found if not part.holds), None)
    if failing is None:
        return ""
    if failing.kind == "threshold":
        return WHY[3]
    word = WHY[0] if failing.short else WHY[1] if failing.margin <= 0 else WHY[2]
    return word if failing.kind == "null" else f"control: {word}"


def _round(x: float) -> float:
    return float(f"{x:.6g}")


def row(e: Evidence) -> dict:
    """A claim's row of the ledger; "" where there is nothing.

    `more_seeds`: fewest seeds with which all tests would hold at the measured means and spreads. `needed`: the statistic's mean
    with which they would with the measured seeds and spreads (and the control as it is), by the most demanding test.
    """
    claim, blank = e.claim, dict.fromkeys(COLUMNS, "")
    kinds = [
        "null",
        *(["threshold"] if claim.threshold is not None else []),
        *(["control"] if claim.control else []),
    ]
    found = blank | {"claim": claim.id, "paper": claim.paper, "origin": origin(claim), "run": claim.run}
    found |= {"tests": " + ".join(kinds), "direction": claim.direction, "statement": claim.statement}
    found |= {
        "seeds": len(e.values or {}),
        "verdict": claims.NOT_RUN,
        "reason": e.problem,
        "size": e.size or "",
    }
    if e.values is None:
        return found
    judged = claims.judge(claim, e.size, e.values, e.controls)
    found |= {"verdict": judged["verdict"], "reason": judged["reason"] or ""}
    if len(e.values) < 2:
        return found
    parts = checks(claim, e.values, e.controls)
    found |= {"value": _round(judged["value"])}
    found |= dict(zip(("low", "high"), map(_round, judged["interval"])))
    for part in parts:
        found |= {part.kind: _round(part.bar), f"{part.kind}_margin": _round(part.margin)}
        found |= {f"{part.kind}_half": _round(part.half), f"{part.kind}_beyond": part.beyond}
    if judged["verdict"] in FAILS:
        needed = [part.needed for part in parts]
        found |= {"why": why_not(parts), "more_seeds": "" if None in needed else max(needed)}
        far = max if claim.direction == "greater" else min
        found |= {"needed": _round(far(part.mean_needed(claim.direction) for part in parts))}
    return found


#: Columns of the ledger's table.
COLUMNS = (
    "claim", "paper", "origin", "tests", "run", "size", "seeds", "verdict", "reason", "why", "direction", "value", "low", "high",
    *(f"{kind}{part}" for kind in ("null", "threshold", "control") for part in ("", "_margin", "_half", "_beyond")),
    "more_seeds", "needed", "statement",
)  # fmt: skip


def rows(papers: Sequence[str]) -> list[dict]:
    """The ledger of these papers, in the order of the claims."""
    return [row(e) for e in evidence(papers)]
