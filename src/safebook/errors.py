"""The one error that bad input raises."""


class InputError(ValueError):
    """A parameter has a value that is not allowed. Raised before any compute, with nothing written."""

    def __init__(self, parameter: str, value: object, allowed: object):
        self.parameter, self.value, self.allowed = parameter, value, allowed
        super().__init__(f"parameter {parameter!r}: got {value!r}, allowed: {allowed}")
