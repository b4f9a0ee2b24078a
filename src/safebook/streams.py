"""Random numbers: a generator of its own for every purpose, never a global seed."""

from hashlib import blake2b

import torch


def stream(device: torch.device, *names: object) -> torch.Generator:
    """The generator that belongs to `names`, seeded by a hash of them.

    Two purposes ("test", "validation", ...) or two seeds never share their numbers, and no draw depends on which draws were
    made before it.
    """
    digest = blake2b(repr(names).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))
