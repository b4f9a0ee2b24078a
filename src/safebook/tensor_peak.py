"""How many bytes tensors hold at most, counted as they are made and freed: the CPU itself counts none."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class TensorPeak(TorchDispatchMode):
    """Within the block: the most bytes that tensors made there held at once, on the CPU, which counts none itself.

    Work space inside an operation is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        given = [_storage(tensor) for tensor in _tensors((arguments, options or {}))]
        known = set(map(id, given))  # views, and what was changed in place
        found = function(*arguments, **(options or {}))
        for tensor in _tensors(found):
            storage = _storage(tensor)
            if storage is None or id(storage) in known or id(storage) in self._held:
                continue
            size = storage.nbytes()
            self._held[id(storage)] = size
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, id(storage))
        return found

    def _freed(self, key: int) -> None:
        self.now -= self._held.pop(key, 0)


def _storage(tensor: Tensor):
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _tensors(value: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
