"""The user's own problems: JSON lines, one object each.

    {"prompt": "...", "answer": "...", "id"?: "...", "source"?: "...", "info"?: {...}, "kind"?: "math"}

`question`, `problem` and `messages` stand for prompt, which may be a list of chat messages (`conversation.py`);
`solution`, `ground_truth`, `reward_model.ground_truth` and a `ground_truth` inside `reward_model` stand for answer. Of
other keys only `info` and `extra_info` reach a reward function: the keys of the first as arguments of their own, the
second as the argument of that name; and those that the option `columns` names reach a prompt's template.

Unlike in the published data sets no row is skipped: one that cannot be used is an error. Where people give the labels a
training row may do without an answer: missing, null or empty are the same. Rows that repeat a prompt are one problem
if their answers agree, and an error if not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from fedrlvr.errors import ConfigError, DataError, GradingError
from fedrlvr.output import logger
from fedrlvr.tasks.conversation import conversation
from fedrlvr.tasks.extraction import wrap
from fedrlvr.tasks.files import DataRow, answer_text, clean_text, read_rows, text_field, type_name
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import KINDS, Column, Kind, Problem, Turn, conversation_text
from fedrlvr.tasks.splits import in_split
from fedrlvr.tasks.task import Task, check_options

_log = logger("tasks")
_PROMPTS = ("prompt", "question", "problem", "messages")
_ANSWERS = ("answer", "solution", "ground_truth", "reward_model")
_NO_COLUMNS = {*_PROMPTS, *_ANSWERS, "response", "kind", "instruction", "id", "source", "info", "extra_info"}
"""Keys of a row that are no columns: answers, what may hold one, and what a template has anyway."""
_DESK = " Or let people give the answers: set supervision.labels_from = 'desk'."
_HELD_OUT = " Held-out problems need one, whoever gives the labels."


class OwnTask(Task):
    """The user's own problems: a JSONL file, or a directory with train.jsonl and test.jsonl."""

    name = "jsonl"
    kinds = get_args(Kind)

    def load(
        self, path: Path | None, split: str, *, unlabelled: bool = False, options: Mapping[str, Any]
    ) -> list[Problem]:
        """Load an organisation's own problems. A single file is split by content."""
        check_options(self.name, options, {"kind", "columns"})
        columns = _columns(options.get("columns", []))
        kind = options.get("kind", "math")
        if kind not in KINDS:
            raise ConfigError(f"jsonl: the option kind is {kind!r}. Use one of {', '.join(KINDS)}.")
        if path is None:
            raise ConfigError(
                "Data set 'jsonl' needs a path: a .jsonl file, or a directory with train.jsonl and test.jsonl."
            )
        if path.is_dir():
            file, held_out = path / f"{split}.jsonl", split == "test"
            return read_own(file, kind, unlabelled=unlabelled, held_out=held_out, columns=columns)
        problems = read_own(path, kind, unlabelled=unlabelled, log=split == "train", columns=columns)
        chosen = in_split(problems, split)
        lacking = sum(not problem.answer for problem in problems)
        if lacking and not chosen and split == "test":
            raise DataError(
                f"{path} leaves no problem to hold out: {lacking} of {len(problems)} rows have no answer, and the "
                "others fall to training. Add rows with answers, or give a directory with train.jsonl and test.jsonl."
            )
        return chosen


def _columns(names: Any) -> list[str]:
    """
    Raises:
        ConfigError: they are no list of names, or one of them holds the answer or another field of a problem.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ConfigError("jsonl: the option columns is a list of names that a template can use, such as ['unit'].")
    if taken := sorted(_NO_COLUMNS & set(names)):
        raise ConfigError(
            f"jsonl: the option columns names {taken[0]!r}, which no template sees as a column. A column is "
            "public to the model; leave out whatever holds the answer."
        )
    return names


def read_own(
    path: Path,
    kind: Kind,
    *,
    unlabelled: bool = False,
    held_out: bool = False,
    log: bool = True,
    columns: Sequence[str] = (),
) -> list[Problem]:
    """Every problem of a JSONL file; `kind` is for rows that state none.

    unlabelled: a row without an answer is a problem with the answer "", not an error. held_out: the file's problems
    are only tested on, so each needs an answer whatever `unlabelled` says. log: say how many rows were merged.
    columns: keys of a row that templates may use.

    Raises:
        DataError: a row that cannot be used, with file, line and what to do; or rows that contradict each other, all
            at once.
    """
    read = []
    for row in read_rows(path):
        problem = own(row, kind, unlabelled=unlabelled, held_out=held_out, columns=columns)
        read.append(_Read(problem, row.where.rpartition(", ")[2], row.data.get("id") is not None))
    kept = _merged(read, path)
    if log and len(kept) < len(read):
        _log.warning(
            "%s: merged %d rows that repeat a prompt and its answer: %d problems are left",
            path,
            len(read) - len(kept),
            len(kept),
        )
    return kept


class _Read(NamedTuple):
    """A row's problem, its place in the file, and whether it states its id itself."""

    problem: Problem
    place: str
    named: bool


def _merged(rows: Sequence[_Read], path: Path) -> list[Problem]:
    """One problem for all rows of a prompt: the first one, or the first that has an answer.

    Raises:
        DataError: rows of one prompt whose answers or kinds differ, or rows of one id; all of them are listed.
    """
    kept: list[_Read] = []
    by_prompt: dict[str, list[int]] = {}
    differing: dict[str, list[str]] = {}
    for row in rows:
        places = by_prompt.setdefault(row.problem.content_key, [])
        repeated = next((index for index in places if _is_repeat(kept[index], row)), None)
        if repeated is None:
            places.append(len(kept))
            kept.append(row)
        elif not _same_gold(kept[repeated].problem, row.problem):
            differing.setdefault(kept[repeated].place, []).append(row.place)
        elif row.problem.answer and not kept[repeated].problem.answer:
            kept[repeated] = row
    if differing:
        raise DataError(
            f"{path}: rows of one prompt have different answers or kinds: {_listed(differing)}. Correct them, or "
            "remove the wrong ones."
        )
    first: dict[str, str] = {}
    sharing: dict[str, list[str]] = {}
    for row in kept:
        if row.problem.id in first:
            sharing.setdefault(first[row.problem.id], []).append(row.place)
        first.setdefault(row.problem.id, row.place)
    if sharing:
        raise DataError(f"{path}: different problems have one id: {_listed(sharing)}. Give each row an id of its own.")
    return [row.problem for row in kept]


def _is_repeat(row: _Read, other: _Read) -> bool:
    """Whether two rows of one prompt are meant as one problem: not where both are named apart and `info` differs."""
    apart = row.named and other.named and row.problem.id != other.problem.id
    return not (apart and row.problem.info != other.problem.info)


def _same_gold(problem: Problem, other: Problem) -> bool:
    if problem.kind != other.kind:
        return False
    if not problem.answer or not other.answer or problem.answer == other.answer:
        return True
    return grade(wrap(other.answer, problem.kind), problem.answer, problem.kind) == 1.0


def _listed(places: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(" and ".join([", ".join([first, *more[:-1]]), more[-1]]) for first, more in places.items())


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
                row: dict[str, Any] = {"prompt": p.prompt, "answer": p.answer}
                row |= {"id": p.id, "source": p.source, "kind": p.kind, **p.columns}
                if p.messages:
                    row["prompt"] = [turn._asdict() for turn in p.messages]
                info = {"info": dict(p.info)} if p.info else {}
                response = {"response": p.response} if p.response else {}
                file.write(json.dumps({**row, **info, **response}, ensure_ascii=False) + "\n")
    except OSError as error:
        if path.exists():
            raise DataError(f"{path} exists already. Give another directory.") from None
        raise DataError(f"{path} cannot be written ({error.strerror}).") from None


def own(
    row: DataRow, kind: Kind, *, unlabelled: bool = False, held_out: bool = False, columns: Sequence[str] = ()
) -> Problem:
    """Convert one row to a problem; raises DataError as `read_own` does."""
    data, where = row.data, row.where
    prompt, messages = _prompt(data, where)
    stated = data.get("kind") or kind
    if stated not in KINDS:
        raise DataError(f"{where}: kind {stated!r} is unknown. Use one of {', '.join(KINDS)}.")
    answer = _answer(data, where, unlabelled and not held_out, _HELD_OUT if held_out else _DESK)
    if answer:
        _check_gold(answer, stated, where)
    info = _object(data, "info", where)
    if data.get("extra_info") is not None:
        info = {**info, "extra_info": _object(data, "extra_info", where)}
    named = data.get("id") is not None
    source = text_field(data, ["source"], where) if data.get("source") is not None else "jsonl"
    public = {name: _column(data[name], name, where) for name in columns if name in data}
    response = _response(data, where)
    problem = Problem(prompt, answer, "", source, cast(Kind, stated), info, response, messages, public)
    name = answer_text(data["id"], "id", where) if named else problem.content_key[:16]
    return replace(problem, id=name)


def _prompt(data: Mapping[str, Any], where: str) -> tuple[str, tuple[Turn, ...]]:
    """The text of a prompt, and its conversation where it is one of more than a question."""
    for name in _PROMPTS:
        if isinstance(data.get(name), list):
            answered = name == "messages" and any(value not in (None, "") for _, value in _stated_answers(data))
            turns = conversation(data[name], name, where, may_end_answered=answered)
            return conversation_text(turns), turns if len(turns) > 1 else ()
        if data.get(name) is not None:
            break
    return text_field(data, _PROMPTS, where), ()


def _column(value: Any, name: str, where: str) -> Column:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return clean_text(value, name, where) if value.strip() else ""
    raise DataError(
        f"{where}: {name!r} is {type_name(value)}, and data.options.columns names it for templates. It must be text, a "
        "number, true or false."
    )


def _response(data: Mapping[str, Any], where: str) -> str:
    """The response to imitate, white space included; "" where the row has none."""
    if data.get("response") is None:
        return ""
    text_field(data, ["response"], where)
    return str(data["response"])


def _object(data: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = data.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"{where}: {name!r} is not an object. Write it as {{...}} or leave it out.")
    return dict(value or {})


def _check_gold(answer: str, kind: Kind, where: str) -> None:
    if "####" in answer and kind not in ("exact", "whole"):
        raise DataError(
            f"{where}: the answer holds '####', which in GSM8K's files stands before the final answer. Keep only what "
            "follows it, or load GSM8K's own files with data.name = 'gsm8k'."
        )
    try:
        grade("", answer, kind)
    except GradingError:
        hint = {"choice": "Write the option's letter. ", "yes_no_maybe": "Write yes, no or maybe. "}.get(kind, "")
        raise DataError(
            f"{where}: the answer is not of kind {kind!r}, so no response could be right. {hint}Mend it, or state "
            "another kind."
        ) from None


def _stated_answers(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Each field that may hold the answer, and its value; None where it is missing."""
    stated = [(name, data.get(name)) for name in ("answer", "solution", "ground_truth", "reward_model.ground_truth")]
    if isinstance(nested := data.get("reward_model"), Mapping):
        stated.append(("reward_model.ground_truth", nested.get("ground_truth")))
    return stated


def _answer(data: Mapping[str, Any], where: str, may_lack: bool, remedy: str) -> str:
    """The first answer the row states; "" only if it `may_lack` one, and then an empty one is none."""
    for name, value in _stated_answers(data):
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
