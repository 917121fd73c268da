"""Seeds that do not depend on order: every random stream is named, not taken from a shared generator.

`stream("clinic-a", "sample", 3, 1)` is the same number in a simulation of fifty clients, alone on the clinic's
own machine, and after a resume. That is what makes a client's samples independent of who else takes part.
"""

from __future__ import annotations

import hashlib


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of the run seeded `seed`."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
