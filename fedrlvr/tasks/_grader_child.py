"""The child process behind `sandbox.py`: one JSON request a line on stdin, one JSON verdict a line on stdout.

It is started as a file, imports nothing of fedrlvr, serves reasoning-gym, and ends when stdin does. The parent keeps
the time; the limits here are for the case that the parent is gone (processor time, renewed before each request) and for
the machine's sake (memory).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Serve = Callable[[dict[str, Any]], dict[str, Any]]


def main(memory_bytes: int, cpu_seconds: int) -> None:
    """Say that the library is loaded, or why not; then answer until stdin ends.

    memory_bytes: limit of the address space.
    cpu_seconds: processor time one request may take before the system ends this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes our stdin
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not look like a verdict

    def say(reply: dict[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    logging.disable(logging.CRITICAL)
    try:
        serve = _reasoning_gym()
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(memory_bytes)
    say({"ready": True})
    for line in sys.stdin:
        _limit_cpu(cpu_seconds)
        request = json.loads(line)
        try:
            reply = serve(request)
        except Exception as error:  # its scorers raise nearly anything on nonsense; nonsense is never right
            reply = {"verdict": 0.0, "error": f"{type(error).__name__}: {error}"}
        say(reply)


def _reasoning_gym() -> Serve:
    import reasoning_gym

    @lru_cache(maxsize=64)
    def dataset(family: str, config: str) -> Any:
        return reasoning_gym.create_dataset(family, **json.loads(config))

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        problems = dataset(request["family"], json.dumps(request["config"], sort_keys=True))
        entry = problems[request["index"]]
        if "answer" not in request:
            return {"question": entry["question"], "answer": entry["answer"]}
        return {"verdict": float(problems.score_answer(request["answer"], entry))}

    return serve


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _limit_cpu(seconds: int) -> None:
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
