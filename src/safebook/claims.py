"""The papers' claims, and the rule by which runs judge them.

A claim (a row of data/claims.yaml) names the statistic that decides it, the null that its 95% interval must
exclude and the control that it must beat. Seed i gives the value v_i and, from the same record, the control
c_i. With n >= 3 seeds:

    interval of x     mean +- t s / sqrt(n)       t: 97.5% point of Student's t, n - 1 degrees of freedom
    value holds       interval of v excludes the null on the claimed side, and the mean reaches the threshold
    control holds     interval of v - c excludes 0 on the claimed side, or there is no control

    matches                             paper size, in the paper's own setting (`comparable`), and the reported
                                        value is in mean +- t s sqrt(1 + 1/n)
    same direction                      value and control hold
    not distinguishable from control    the value holds, the control does not
    differs                             otherwise
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safebook import paths, registry
from safebook.errors import InputError

if TYPE_CHECKING:
    from safebook.results import Record

FILE = "claims.yaml"
MATCHES, SAME, CONTROL, DIFFERS = "matches", "same direction", "not distinguishable from control", "differs"
NOT_RUN, NOT_MEANINGFUL = "not run at this size", "not meaningful at this size"
VERDICTS = (MATCHES, SAME, CONTROL, DIFFERS, NOT_RUN, NOT_MEANINGFUL)
MIN_SEEDS = 3
#: Which part of a claim does not hold where it differs: the beginnings of the reasons.
OTHER_SIDE, UNCERTAIN, SHORT_OF = (
    "the mean lies on the other side of",
    "the interval includes",
    "the mean does not reach",
)
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(_Row):
    """Which numbers of a record: one per seed."""

    metric: str
    labels: dict[str, str | int | float] = {}


class Control(Series):
    """What the effect must beat, seed by seed."""

    description: str


class Reported(_Row):
    """What the paper says."""

    value: Number | None
    source: str
    trust: str
    comparable: bool = True  # is our paper size the setting in which the paper measured it?


class Claim(_Row):
    """One row of data/claims.yaml."""

    id: str
    paper: Literal["pcfg", "llama", "safetylock", "spf", "synthesis"]
    source: str  # figure, table or observation of the paper
    statement: str  # the claim, in our words
    statistic: str  # what is measured, in words
    run: str
    page: str  # path in the book
    direction: Literal["greater", "less"]
    null: Number  # the interval must exclude it
    threshold: Number | None = None  # the mean must also reach it
    value: Series
    control: Control | None
    reported: Reported
    implemented: bool = True
    meaningful: dict[Literal["smoke", "laptop", "paper"], str] = {}  # sizes where it is not, and why
    undefined: str = ""  # what it means if a record holds no number for it; empty where every record must
    unit: str = ""


#: Units that are logarithms, with their bases. They decide the verdicts; readers see the factors that they stand for.
LOGARITHMS = {"log2": 2.0, "log10": 10.0}


def plain(value: float | None, unit: str) -> float | None:
    """A number of a claim as readers see it."""
    return LOGARITHMS[unit] ** value if unit in LOGARITHMS and value is not None else value


def plain_unit(unit: str) -> str:
    """The unit of `plain`."""
    return "times" if unit in LOGARITHMS else unit


@dataclass(frozen=True)
class Interval:
    """Mean of one number per seed, and its 95% intervals (Student t)."""

    mean: float
    half: float  # of the interval of the mean
    spread: float  # half of the interval in which the next seed would lie

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of at least two values."""
        from scipy.stats import t

        n = len(values)
        mean = math.fsum(values) / n
        s = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
        if max(values) == min(values):
            mean, s = values[0], 0.0  # free of rounding
        point = float(t.ppf(0.975, n - 1))
        return cls(mean, point * s / math.sqrt(n), point * s * math.sqrt(1 + 1 / n))

    @property
    def ends(self) -> list[float]:
        return [self.mean - self.half, self.mean + self.half]

    def excludes(self, point: float, direction: str) -> bool:
        """Whether all of the interval lies on the claimed side of the point."""
        low, high = self.ends
        return low > point if direction == "greater" else high < point


def read() -> list[Claim]:
    """The rows of data/claims.yaml, in order; raises InputError that names the wrong row and field."""
    import yaml

    path = paths.DATA / FILE
    if not path.is_file():
        return []
    claims = [parse(row) for row in yaml.safe_load(path.read_text(encoding="utf-8")) or []]
    ids = [claim.id for claim in claims]
    for claim in claims:
        if ids.count(claim.id) > 1:
            raise InputError(f"{FILE}: id", claim.id, "each id once")
        registry.get(claim.run)
    return claims


def parse(row: Mapping) -> Claim:
    """One row, as YAML gives it; raises InputError that names what is wrong."""
    # an unquoted `null:` is a key that YAML reads as nothing
    row = {"null" if key is None else key: value for key, value in row.items()}
    try:
        return Claim.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{FILE}: {row.get('id')}: {where}", first["input"], first["msg"]) from None


def judge(claim: Claim, size: str, values: Mapping[int, float], controls: Mapping[int, float] | None) -> dict:
    """verdict, reason, value, interval and control of a claim, from a value and a control per seed."""
    if claim.control is not None and controls is None:
        raise ValueError(f"{claim.id} has a control, but no control values were given")
    result: dict = {"value": None, "interval": None, "control": None, "reason": None}
    if len(values) >= 2:
        measured = Interval.of(list(values.values()))
        result |= {"value": measured.mean, "interval": measured.ends}
    elif values:
        result |= {"value": next(iter(values.values()))}
    pairs = {}
    if claim.control is not None:
        pairs = {seed: values[seed] - controls[seed] for seed in values if seed in controls}
        result["control"] = {"description": claim.control.description, "value": None, "interval": None}
        if controls:
            result["control"]["value"] = math.fsum(controls.values()) / len(controls)
        if len(controls) >= 2:
            result["control"]["interval"] = Interval.of(list(controls.values())).ends
    if size in claim.meaningful:
        return result | {"verdict": NOT_MEANINGFUL, "reason": claim.meaningful[size]}
    if not values and claim.undefined:
        return result | {"verdict": NOT_MEANINGFUL, "reason": claim.undefined}
    if len(values) < MIN_SEEDS:
        return result | {
            "verdict": NOT_MEANINGFUL,
            "reason": f"{_seeds(values)}, a verdict needs {MIN_SEEDS}",
        }
    if claim.control is not None and len(pairs) < MIN_SEEDS:
        reason = f"{_seeds(pairs)} with a control, a verdict needs {MIN_SEEDS}"
        return result | {"verdict": NOT_MEANINGFUL, "reason": reason}
    reported = claim.reported.value if claim.reported.comparable else None
    if size == "paper" and reported is not None and abs(reported - measured.mean) <= measured.spread:
        return result | {"verdict": MATCHES}
    holds = measured.excludes(claim.null, claim.direction)
    if holds and claim.threshold is not None:
        reached = (
            measured.mean >= claim.threshold
            if claim.direction == "greater"
            else measured.mean <= claim.threshold
        )
        holds = reached
    if not holds:
        return result | {"verdict": DIFFERS, "reason": _why(claim, measured)}
    if claim.control is not None and not Interval.of(list(pairs.values())).excludes(0.0, claim.direction):
        return result | {"verdict": CONTROL}
    return result | {"verdict": SAME}


def _why(claim: Claim, measured: Interval) -> str:
    """Which part of the claim does not hold: the other side, too uncertain, or too small."""

    def bar(value: float) -> str:
        return f"{plain(value, claim.unit):.4g} {plain_unit(claim.unit)}".strip()

    sign = 1 if claim.direction == "greater" else -1
    if sign * (measured.mean - claim.null) <= 0:
        return f"{OTHER_SIDE} {bar(claim.null)}"
    if not measured.excludes(claim.null, claim.direction):
        return f"{UNCERTAIN} {bar(claim.null)}"
    return f"{SHORT_OF} {bar(claim.threshold)}"


def _seeds(values: Mapping) -> str:
    return f"{len(values)} seed{'' if len(values) == 1 else 's'}"


def _record(run_id: str, size: str, fewer: bool = False):
    """This machine's record of that size, else the committed one, else None; and whether it is stale.

    A record of this machine with fewer seeds than the run has judges nothing: it comes last, and only if asked for.
    """
    from safebook import results, run

    registered, own, complete = registry.get(run_id), None, False
    state, _ = run.state(registered, size)
    if state in (run.SUCCEEDED, run.STALE, run.FEWER):
        own = results.load(registered.folder(size))
        complete = not registry.fewer_seeds(registered, size, own.seeds)
    if not complete and (registered.recorded(size) / results.FILE).is_file():
        record = results.load(registered.recorded(size))
        every = registry.seeds(registered, size, every_seed=True)
        return record, record.inputs_hash != registry.current_hash(registered, size, every)
    return (own, state == run.STALE) if own and (complete or fewer) else (None, False)


def measured(claim: Claim, record: "Record") -> tuple[dict[int, float], dict[int, float] | None]:
    """The claim's value per seed, and its control's, None if it has none.

    Where the record lacks them: no seed, if the claim may be undefined or means nothing at its size; else RecordError.
    """
    from safebook.schema import AbsentError

    def of(series: Series) -> dict[int, float]:
        try:
            return record.scalars(series.metric, **series.labels)
        except AbsentError:
            if claim.undefined or record.size in claim.meaningful:
                return {}
            raise

    return of(claim.value), of(claim.control) if claim.control else None


def row(claim: Claim, size: str | None) -> dict:
    """A claim with its verdict, as `safebook claims --json` has it; size None: the largest with a record."""
    from safebook.schema import RecordError

    sizes = [size] if size else list(reversed(registry.SIZES))
    record, stale = None, False
    reason = None if claim.implemented else "not implemented yet"
    for each in sizes if claim.implemented else []:
        try:
            record, stale = _record(claim.run, each, fewer=size is not None)
        except RecordError as error:
            reason = f"the record is not valid: {error}"
        if record is not None:
            break
    base = {
        "id": claim.id,
        "paper": claim.paper,
        "source": claim.source,
        "statement": claim.statement,
        "statistic": claim.statistic,
        "implemented": claim.implemented,
        "size": record.size if record else size,
        "seeds": record.seeds if record else [],
        "stale": stale,
        "unit": claim.unit,
        "reported": claim.reported.model_dump(),
        "trust": claim.reported.trust,
        "run": claim.run,
        "page": claim.page,
    }
    nothing = {"value": None, "interval": None, "control": None, "verdict": NOT_RUN, "reason": None}
    if claim.control is not None:
        nothing["control"] = {"description": claim.control.description, "value": None, "interval": None}
    if record is None:
        return base | nothing | {"reason": reason}
    try:
        values, controls = measured(claim, record)
    except RecordError as error:
        return base | nothing | {"reason": f"the record does not hold it: {error}"}
    return base | judge(claim, record.size, values, controls)


def scorecard(size: str | None = None) -> list[dict]:
    """Every claim with its verdict, in the file's order; size None: at the largest size with a record."""
    return [row(claim, size) for claim in read()]


def shown(row: dict) -> tuple[str, str, str]:
    """Measured mean with its interval and unit, control, and reported value of a row, in plain text."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{plain(value, row['unit']):.3g}"

    interval = " [{}, {}]".format(*map(number, row["interval"])) if row["interval"] else ""
    unit = f" {plain_unit(row['unit'])}" if row["unit"] and row["value"] is not None else ""
    control = number(row["control"]["value"]) if row["control"] else "none"
    return number(row["value"]) + interval + unit, control, number(row["reported"]["value"])


def as_text(rows: Sequence[dict]) -> str:
    """The scorecard for a terminal."""
    from safebook.terminal import table

    lines = []
    for r in rows:
        measured, control, reported = shown(r)
        verdict = (
            r["verdict"] + (" (stale)" if r["stale"] else "") + (f": {r['reason']}" if r["reason"] else "")
        )
        size = f"{r['size'] or '-'}, {_seeds(r['seeds'])}"
        lines.append((r["id"], reported, measured, control, size, verdict))
    return table(("claim", "reported", "measured", "control", "size", "verdict"), lines)
