"""The user's own problems: JSON lines, one object each.

    {"prompt": "...", "answer": "...", "id"?: "...", "source"?: "...", "info"?: {...}, "kind"?: "math"}

`question` and `problem` stand for prompt; `solution`, `reward_model.ground_truth` and a `ground_truth` inside
`reward_model` stand for answer. Other keys are left alone: only `info` reaches a reward function.
Unlike in the published data sets no row is skipped: one that cannot be used is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fedrlvr.errors import DataError
from fedrlvr.tasks.grading import canonical
from fedrlvr.tasks.problem import KINDS, Kind, Problem
from fedrlvr.tasks.reading import Row, answer_text, read_rows, text_field


def read_own(path: Path, kind: Kind) -> list[Problem]:
    """Every problem of a JSONL file; `kind` is for rows that state none.

    Raises:
        DataError: a row that cannot be used, with file, line and what to do.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for row in read_rows(path):
        problem = own(row, kind)
        if problem.id in seen:
            raise DataError(
                f"{row.where} has the id {problem.id!r} of {seen[problem.id]}. Give each row its own id; rows without "
                "one are named by their prompt, so two such rows with one prompt are one problem: remove one."
            )
        seen[problem.id] = row.where.rpartition(", ")[2]
        problems.append(problem)
    return problems


def own(row: Row, kind: Kind) -> Problem:
    """One row to a problem; raises DataError as `read_own` does."""
    data, where = row.data, row.where
    prompt = text_field(data, ["prompt", "question", "problem"], where)
    stated = data.get("kind") or kind
    if stated not in KINDS:
        raise DataError(f"{where}: kind {stated!r} is unknown. Use one of {', '.join(KINDS)}.")
    answer = _answer(data, where)
    if canonical(answer, stated) is None:
        raise DataError(f"{where}: the answer is not of kind {stated!r}, so no response could be right. Mend it.")
    info = data.get("info")
    if info is not None and not isinstance(info, Mapping):
        raise DataError(f"{where}: 'info' is not an object. Write it as {{...}} or leave it out.")
    named = data.get("id") is not None
    source = text_field(data, ["source"], where) if data.get("source") is not None else "jsonl"
    problem = Problem(prompt, answer, "", source, cast(Kind, stated), dict(info or {}))
    name = answer_text(data["id"], "id", where) if named else problem.content_key[:16]
    return Problem(prompt, answer, name, source, problem.kind, problem.info)


def _answer(data: Mapping[str, Any], where: str) -> str:
    for name in ("answer", "solution", "reward_model.ground_truth"):
        if data.get(name) is not None:
            return answer_text(data[name], name, where)
    nested = data.get("reward_model")
    if isinstance(nested, Mapping) and nested.get("ground_truth") is not None:
        return answer_text(nested["ground_truth"], "reward_model.ground_truth", where)
    raise DataError(
        f"{where} has no answer. Add 'answer' (or 'solution', or 'reward_model': {{'ground_truth': ...}}) or remove "
        "the row."
    )
