"""Seeds that do not depend on order: every random stream is named, not taken from a shared generator.

`stream("clinic-a", "sample", 3, 1)` is the same number in a simulation of fifty clients, alone on the clinic's
own machine, and after a resume. That is what makes a client's samples independent of who else takes part.

The seed of a run is the server's choice. An organisation mixes a secret of its own into the seed of every stream that
the server need not share, so that the server cannot compute what is drawn from it.
"""

from __future__ import annotations

import hashlib


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of the run seeded `seed`."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def private_seed(seed: int, secret: bytes, text: str = "") -> int:
    """The seed to name private streams by: `seed` itself without a secret, else a keyed hash of seed and text.

    secret: up to 64 bytes that only one client knows. text: what else the streams depend on, for example a request.
    """
    if not secret:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1f{text}".encode(), key=secret, digest_size=32).digest(), "big")
