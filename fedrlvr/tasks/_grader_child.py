"""The child process behind `sandbox.py`: one JSON request a line on stdin, one JSON reply a line on stdout.

The first line says what is served: {"serves": "reasoning_gym"}, or {"serves": "function"} or {"serves": "rule"} with
the path of a reward function or of a site's rule about what leaves, and the directories where modules are found. It is
started as a file, imports nothing of fedrlvr itself, and ends when stdin does. The parent keeps the time; the limits
here are for the case that the parent is gone (processor time, renewed before each request) and for the machine's sake
(memory).
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import numbers
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

Serve = Callable[[dict[str, Any]], dict[str, Any]]


class Unusable(Exception):
    """A function or library that cannot be served; the text says why."""


def main(memory_bytes: int, cpu_seconds: int) -> None:
    """Say that what is served is loaded, or why not; then answer until stdin ends.

    memory_bytes: limit of the address space; for a function, of what it takes besides its imports. 0: no limit.
    cpu_seconds: processor time one request may take before the system ends this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes our stdin
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not look like a reply

    def say(reply: dict[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    logging.disable(logging.CRITICAL)
    setup = json.loads(sys.stdin.readline())
    taken = 0
    try:
        if setup["serves"] == "function":
            serve, form = _function(setup["path"], setup["directories"])
            taken = _address_space()
        elif setup["serves"] == "rule":
            serve, form = _rule(setup["path"], setup["directories"]), ""
            taken = _address_space()
        else:
            serve, form = _reasoning_gym(), ""
    except Unusable as error:
        say({"failed": str(error)})
        return
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(taken + memory_bytes if memory_bytes else 0)
    say({"ready": True, "form": form})
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


# A reward function of the user's own. A request is {"completions", "answer", "prompt", "finished", "info"}; its reply
# {"values"}, or {"raised", "at"} without a word of the exception's text, which may hold any of these.


def _function(path: str, directories: list[str]) -> tuple[Serve, str]:
    """Serve a function, and the form that its signature has: "response", "batch" or "columns"."""
    function = _imported(path, directories)
    form, named, takes_any = form_of(function)
    arguments = {"response": _of_response, "batch": _of_batch, "columns": _of_columns}[form]

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        if clash := sorted(_reserved(form, named) & request["info"].keys()):
            return {"clash": clash[0]}
        given = arguments(request, named)
        try:
            result = function(**{key: value for key, value in given.items() if takes_any or key in named})
            values = [result] if form == "response" else list(result)
        except Exception as error:
            return {"raised": type(error).__name__, "at": _line_of(error)}
        if len(values) != len(request["completions"]):
            return {"returned": f"{len(values)} numbers for {len(request['completions'])} completions"}
        scores = []
        for value in values:
            try:
                number = float(value) if isinstance(value, numbers.Real) else math.nan
            except OverflowError:  # a whole number beyond every float
                number = math.nan
            if not math.isfinite(number):
                return {"returned": type(value).__name__}
            scores.append(number)
        return {"values": scores}

    return serve, form


def _imported(path: str, directories: list[str]) -> Callable[..., Any]:
    sys.path[:] = directories
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise Unusable(f"module {module_name!r} cannot be imported ({type(error).__name__}: {error})") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise Unusable(f"module {module_name!r} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def _rule(path: str, directories: list[str]) -> Serve:
    """Serve a site's rule about what leaves: {"card"} -> {"allow", "reason"}, or {"raised", "at"}, or {"returned"}."""
    function = _imported(path, directories)

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        try:
            result = function(request["card"])
        except Exception as error:
            return {"raised": type(error).__name__, "at": _line_of(error)}
        allow, reason = result if isinstance(result, tuple) and len(result) == 2 else (result, "")
        if not (allow is None or isinstance(allow, bool)) or not isinstance(reason, str):
            return {"returned": type(result).__name__}
        return {"allow": allow, "reason": reason[:500]}

    return serve


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def form_of(function: Callable[..., Any]) -> tuple[str, frozenset[str], bool]:
    """A reward function's form by the names of its arguments, these names, and whether it takes any other name.

    "response" has an argument `completion`; "batch" has `completions` and `answers`; "columns" has `completions`.

    Raises:
        Unusable: it has none of these forms, or more than one; the text says what to write.
    """
    forms = (
        "Write reward(completion, answer, **info) for one response, rewards(completions, answers, infos) for all of a "
        "problem, or reward(completions, **columns) as in TRL"
    )
    if inspect.iscoroutinefunction(function):
        raise Unusable(f"it is a coroutine function, and nobody awaits it. {forms}")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise Unusable(f"its signature cannot be read. {forms}") from None
    named = frozenset(name for name, p in parameters.items() if p.kind in _BY_NAME)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if bare := [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]:
        raise Unusable(f"its argument {bare[0]!r} cannot be given by name. {forms}")
    if ("completion" in named) == ("completions" in named):
        has = "both of" if "completion" in named else "neither of"
        raise Unusable(f"its signature is unclear: it has {has} the arguments completion and completions. {forms}")
    if "completion" in named:
        return "response", named, takes_any
    if not named & {"answers", "infos"}:
        return "columns", named, takes_any
    given = {"completions", "answers", "infos", "prompts", "finished"}
    needed = {n for n, p in parameters.items() if p.kind in _BY_NAME and p.default is p.empty}
    if strange := sorted(needed - given):
        raise Unusable(f"its signature is unclear: nothing is given for its argument {strange[0]!r}. {forms}")
    return "batch", named, takes_any


def _reserved(form: str, named: frozenset[str]) -> set[str]:
    """Keys that a problem's info may not have, since the function has these arguments already."""
    if form == "response":
        return {"completion", "answer"} | ({"prompt", "finished"} & named)
    return {"completions", "prompts", "answer", "finished"} if form == "columns" else set()


def _of_response(request: dict[str, Any], named: frozenset[str]) -> dict[str, Any]:
    more = {key: request[key] for key in ("prompt",) if key in named}
    if "finished" in named:
        more["finished"] = request["finished"][0]
    return {"completion": request["completions"][0], "answer": request["answer"], **request["info"], **more}


def _of_batch(request: dict[str, Any], named: frozenset[str]) -> dict[str, Any]:
    count = len(request["completions"])
    return {
        "completions": request["completions"],
        "answers": [request["answer"]] * count,
        "infos": [dict(request["info"]) for _ in range(count)],
        **{key: value for key, value in _beside(request).items() if key in named},
    }


def _of_columns(request: dict[str, Any], named: frozenset[str]) -> dict[str, Any]:
    count = len(request["completions"])
    columns = {key: [value] * count for key, value in request["info"].items()}
    for alias in {"solution", "ground_truth"} & named - columns.keys():
        columns[alias] = [request["answer"]] * count
    return {"completions": request["completions"], "answer": [request["answer"]] * count, **_beside(request), **columns}


def _beside(request: dict[str, Any]) -> dict[str, Any]:
    return {"prompts": [request["prompt"]] * len(request["completions"]), "finished": request["finished"]}


def _line_of(error: Exception) -> str:
    """File and line where an exception was raised, or the call that could not be made; no text of either."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "the call itself"


def _address_space() -> int:
    """Bytes of address space of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if size:
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
