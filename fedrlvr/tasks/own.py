"""The user's own problems: JSON lines, one object each.

    {"prompt": "...", "answer": "...", "id"?: "...", "source"?: "...", "info"?: {...}, "kind"?: "math"}

`question` and `problem` stand for prompt; `solution`, `reward_model.ground_truth` and a `ground_truth` inside
`reward_model` stand for answer. Other keys are left alone: only `info` reaches a reward function.
Unlike in the published data sets no row is skipped: one that cannot be used is an error. Where people give the
labels a training row may do without an answer: missing, null or empty are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks.files import DataRow, answer_text, read_rows, text_field
from fedrlvr.tasks.grading import canonical
from fedrlvr.tasks.problem import KINDS, Kind, Problem
from fedrlvr.tasks.splits import in_split
from fedrlvr.tasks.task import Task, check_options

_DESK = " Or let people give the answers: set supervision.labels_from = 'desk'."
_HELD_OUT = " Held-out problems need one, whoever gives the labels."


class OwnTask(Task):
    """The user's own problems: a JSONL file, or a directory with train.jsonl and test.jsonl."""

    name = "jsonl"

    def load(
        self, path: Path | None, split: str, *, unlabelled: bool = False, options: Mapping[str, Any]
    ) -> list[Problem]:
        """As `Task.load`. A single file is split by content."""
        check_options(self.name, options, {"kind"})
        kind = options.get("kind", "math")
        if kind not in KINDS:
            raise ConfigError(f"jsonl: the option kind is {kind!r}. Use one of {', '.join(KINDS)}.")
        if path is None:
            raise ConfigError(
                "Data set 'jsonl' needs a path: a .jsonl file, or a directory with train.jsonl and test.jsonl."
            )
        if path.is_dir():
            return read_own(path / f"{split}.jsonl", kind, unlabelled=unlabelled, held_out=split == "test")
        problems = read_own(path, kind, unlabelled=unlabelled)
        chosen = in_split(problems, split)
        lacking = sum(not problem.answer for problem in problems)
        if lacking and not chosen and split == "test":
            raise DataError(
                f"{path} leaves no problem to hold out: {lacking} of {len(problems)} rows have no answer, and the "
                "others fall to training. Add rows with answers, or give a directory with train.jsonl and test.jsonl."
            )
        return chosen


def read_own(path: Path, kind: Kind, *, unlabelled: bool = False, held_out: bool = False) -> list[Problem]:
    """Every problem of a JSONL file; `kind` is for rows that state none.

    unlabelled: a row without an answer is a problem with the answer "", not an error. held_out: the file's problems
    are only tested on, so each needs an answer whatever `unlabelled` says.

    Raises:
        DataError: a row that cannot be used, with file, line and what to do.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for row in read_rows(path):
        problem = own(row, kind, unlabelled=unlabelled, held_out=held_out)
        if problem.id in seen:
            raise DataError(
                f"{row.where} has the id {problem.id!r} of {seen[problem.id]}. Give each row its own id; rows without "
                "one are named by their prompt, so two such rows with one prompt are one problem: remove one."
            )
        seen[problem.id] = row.where.rpartition(", ")[2]
        problems.append(problem)
    return problems


def write_own(path: Path, problems: Iterable[Problem]) -> None:
    """Problems as such a file, readable by its owner alone; `read_own` gives the same problems.

    Raises:
        DataError: the file is there already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for p in problems:
                row = {"prompt": p.prompt, "answer": p.answer, "id": p.id, "source": p.source, "kind": p.kind}
                file.write(json.dumps({**row, "info": dict(p.info)} if p.info else row, ensure_ascii=False) + "\n")
    except OSError as error:
        if path.exists():
            raise DataError(f"{path} exists already. Give another directory.") from None
        raise DataError(f"{path} cannot be written ({error.strerror}).") from None


def own(row: DataRow, kind: Kind, *, unlabelled: bool = False, held_out: bool = False) -> Problem:
    """One row to a problem; raises DataError as `read_own` does."""
    data, where = row.data, row.where
    prompt = text_field(data, ["prompt", "question", "problem"], where)
    stated = data.get("kind") or kind
    if stated not in KINDS:
        raise DataError(f"{where}: kind {stated!r} is unknown. Use one of {', '.join(KINDS)}.")
    answer = _answer(data, where, unlabelled and not held_out, _HELD_OUT if held_out else _DESK)
    if answer and canonical(answer, stated) is None:
        raise DataError(f"{where}: the answer is not of kind {stated!r}, so no response could be right. Mend it.")
    info = data.get("info")
    if info is not None and not isinstance(info, Mapping):
        raise DataError(f"{where}: 'info' is not an object. Write it as {{...}} or leave it out.")
    named = data.get("id") is not None
    source = text_field(data, ["source"], where) if data.get("source") is not None else "jsonl"
    problem = Problem(prompt, answer, "", source, cast(Kind, stated), dict(info or {}))
    name = answer_text(data["id"], "id", where) if named else problem.content_key[:16]
    return Problem(prompt, answer, name, source, problem.kind, problem.info)


def _answer(data: Mapping[str, Any], where: str, may_lack: bool, remedy: str) -> str:
    """The first answer the row states; "" only if it `may_lack` one, and then an empty one is none."""
    given = [(name, data.get(name)) for name in ("answer", "solution", "reward_model.ground_truth")]
    if isinstance(nested := data.get("reward_model"), Mapping):
        given.append(("reward_model.ground_truth", nested.get("ground_truth")))
    for name, value in given:
        if isinstance(value, str) and not value.strip():
            if may_lack:
                continue
            raise DataError(f"{where}: {name!r} is empty. Fill it in or remove the row.{remedy}")
        if value is not None:
            return answer_text(value, name, where)
    if may_lack:
        return ""
    raise DataError(
        f"{where} has no answer. Add 'answer' (or 'solution', or 'reward_model': {{'ground_truth': ...}}) or remove "
        f"the row.{remedy}"
    )
