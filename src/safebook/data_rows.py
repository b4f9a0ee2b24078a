"""Lists of rows below data/ that people write by hand, checked as they are read."""

from typing import Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from safebook import paths
from safebook.errors import InputError

Part = Literal["pcfg", "llama", "safetylock", "spf", "synthesis"]
Row = TypeVar("Row", bound=BaseModel)


def read(file: str, row: type[Row]) -> list[Row]:
    """The rows of a YAML file, none if it is not there. Raises InputError that names the file, the wrong row and its field."""
    import yaml

    path = paths.DATA / file
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[row]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where}", first["input"], first["msg"]) from None
