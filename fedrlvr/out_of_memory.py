"""Translation of memory errors: torch, numpy, Python and the system each report a failed allocation in their own way,
and `memory_limit` turns all of them into one `MemoryLimitError`.

The error names the phase, the kind of memory, sizes where they are known, and the settings that lower the need, with
their values. Nothing heavy is imported: a memory error is known by its class and its text.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedrlvr.errors import FedrlvrError, MemoryLimitError
from fedrlvr.reporting import units

LOADING, PLACING, SAMPLING, TRAINING = "loading the model", "placing the clients' adapters", "sampling", "training"
"""Phases of a computation that need much memory."""


@dataclass(frozen=True)
class Remedy:
    """A setting that lowers the need for memory.

    advice: what to do with it. done: value at which the setting saves nothing more, and so is not named. at_site: name
    of the setting in site.toml; None for a setting of the run, which a deployment's server states.
    """

    setting: str
    advice: str
    done: Any = None
    at_site: str | None = None


_DECODE_ROWS = Remedy("engine.decode_rows", "lower {}", at_site="engine.decode_rows")
_GROUP_SIZE = Remedy("sampling.group_size", "lower {}")
_RANK = Remedy("lora.rank", "lower {}")
_COHORT = Remedy("engine.cohort", "set {} = false", done=False)
REMEDIES: Mapping[str, tuple[Remedy, ...]] = {
    LOADING: (
        Remedy("model.dtype", "set {} = 'bfloat16'", done="bfloat16", at_site="machine.dtype"),
        Remedy("model.name", "choose a smaller model in {}"),
    ),
    PLACING: (_COHORT, _RANK),
    SAMPLING: (_DECODE_ROWS, _COHORT, Remedy("sampling.max_new_tokens", "lower {}"), _GROUP_SIZE),
    TRAINING: (
        Remedy("engine.micro_batch_tokens", "lower {}", at_site="engine.micro_batch_tokens"),
        Remedy("model.gradient_checkpointing", "set {} = true", done=True, at_site="machine.gradient_checkpointing"),
        _COHORT,
        _RANK,
        _GROUP_SIZE,
    ),
}
"""Settings that lower the need of each phase, those that change no result before others."""

_TEXT = re.compile(r"out of memory|(?:can't|cannot|unable to) allocate|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
_GPU = re.compile(r"CUDA|CUBLAS|CUDNN|HIP|MPS|XPU")
_WANTED = re.compile(r"(?:tried|unable) to allocate ([\d.]+?)\.? ?(bytes|[KMGTP]iB)", re.IGNORECASE)
_ROOM = re.compile(r"total capacity of ([\d.]+ [KMGTP]iB) of which ([\d.]+ [KMGTP]iB) is free")


@contextlib.contextmanager
def memory_limit(phase: str | None = None, settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn a memory error of torch, numpy, Python or the system into one error that says what to do.

    phase: a key of `REMEDIES`; None for anything else. settings: values of the phase's settings by name. A setting
    without a value here cannot help, and is not named.

    Raises:
        MemoryLimitError: in place of a memory error, and of any error that was raised from one.
    """
    try:
        yield
    except MemoryLimitError:
        raise
    except Exception as error:
        if (cause := memory_error(error)) is None:
            raise
        raise _translated(cause, phase, settings or {}) from error


def memory_error(error: BaseException | None) -> BaseException | None:
    """The failed allocation that an exception is, or was raised from; None if it has another reason."""
    while error is not None and not _is_memory_error(error):
        error = error.__cause__
    return error


def _is_memory_error(error: BaseException) -> bool:
    if isinstance(error, FedrlvrError):  # its text may quote anybody's
        return isinstance(error, MemoryError)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _TEXT.search(str(error)) is not None


def _translated(error: BaseException, phase: str | None, settings: Mapping[str, Any]) -> MemoryLimitError:
    text = str(error)
    gpu = type(error).__name__ == "OutOfMemoryError" or _GPU.search(text)
    what = f"{'GPU' if gpu else 'machine'} memory ran out"
    sizes = ""
    if wanted := _WANTED.search(text):
        number, unit = wanted.groups()
        sizes = f" ({units.size(float(number)) if unit == 'bytes' else f'{number} {unit}'} were asked for"
        sizes += f", {room[2]} of {room[1]} were free)" if (room := _ROOM.search(text)) else ")"
    if phase is None:
        advice = "Free memory on this machine, or make the run smaller; `fedrlvr doctor CONFIG` estimates what it needs"
        return MemoryLimitError(f"{what}{sizes}. {advice}.", what)
    remedies = [
        remedy for remedy in REMEDIES[phase] if remedy.setting in settings and settings[remedy.setting] != remedy.done
    ]
    named = [f"{r.advice.format(r.setting)} (now {json.dumps(settings[r.setting])})" for r in remedies]
    parts = {
        "at the site": [r.advice.format(r.at_site) for r in remedies if r.at_site],
        "in the run": [r.advice.format(r.setting) for r in remedies if not r.at_site and r is not _COHORT],
    }
    public = "; ".join(
        [f"{what} in {phase}", *(f"{where}, {_either(texts)}" for where, texts in parts.items() if texts)]
    )
    advice = _either(named) or "use a machine with more memory"
    return MemoryLimitError(f"{what} in {phase}{sizes}. To need less: {advice}.", public)


def _either(texts: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))
