"""The schema of a run's record (results.json): strict types, nothing missing, no NaN, nothing unknown."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1
Label = str | int | float
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RecordError(ValueError):
    """A record, or something that should enter one, is not as it must be; the message names the field."""


class AbsentError(RecordError):
    """A record holds no such series."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Scalar(_Strict):
    """One measured number."""

    metric: Name
    value: float
    unit: str
    seed: int | None  # None: not tied to one seed
    n: Annotated[int, Field(ge=1)]  # how many samples it is taken over
    labels: dict[str, Label]


class Table(_Strict):
    """A CSV beside results.json."""

    sha256: Sha256
    rows: Annotated[int, Field(ge=1)]
    columns: list[str]


class Provenance(_Strict):
    """Where the numbers come from, and what they cost."""

    commit: str | None
    dirty: bool | None
    inputs_hash: Sha256
    date: str  # start, UTC, ISO 8601
    duration_s: Annotated[float, Field(ge=0)]
    peak_memory_bytes: Annotated[int, Field(ge=0)]
    device: str
    threads: Annotated[int, Field(ge=1)]
    cpu: str
    versions: dict[str, str]
    python: str
    platform: str


class Content(_Strict):
    """results.json as a whole."""

    schema_version: Literal[1]
    run: Name
    size: Literal["smoke", "laptop", "paper"]
    seeds: Annotated[list[int], Field(min_length=1)]
    parameters: dict[str, bool | int | float | str | list[int] | list[float] | list[str]]
    scalars: list[Scalar]
    tables: dict[Name, Table]
    provenance: Provenance

    @model_validator(mode="after")
    def _not_empty(self) -> "Content":
        if not self.scalars and not self.tables:
            raise ValueError("a record holds at least one scalar or table")
        return self


def checked(model: type[_Strict], data: Mapping, what: str) -> _Strict:
    """The data as a model; raises RecordError with `what`, the first bad field, and the value it has."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise RecordError(f"{what}: field {where}: {first['msg']}, got {first['input']!r:.200}") from None
