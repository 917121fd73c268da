"""`load`: a data set's name, a path or the hub, and a split, to a list of problems.

Splits. A directory is read by its published files; where the publisher names no test set (SVAMP, MedMCQA's dev file),
and for any single file given as `path`, problems are split by content: 80 of 100 buckets of the prompt's hash are
train, 20 are test. That is the same on every machine, and copies of one problem fall on one side. Only a problem
without an answer is always train, since nobody could be tested on it; `drop_overlap` takes it out where a copy with
an answer is test.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedrlvr.errors import ConfigError, DataError, MissingExtraError
from fedrlvr.tasks import rows
from fedrlvr.tasks.own import read_own
from fedrlvr.tasks.problem import KINDS, Kind, Problem
from fedrlvr.tasks.reading import Row, read_rows

_log = logging.getLogger("fedrlvr.tasks")
_ToProblem = Callable[[Row, str], Problem | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """Where a published data set lies. Each pair is (train, test); one file or hub split for both is split by content.

    files: names in a directory. hub: id and configuration of either split, then the two split names.
    """

    to_problem: Callable[..., Problem | None]
    files: tuple[str, str]
    hub: tuple[tuple[str, str | None], tuple[str, str | None]]
    hub_splits: tuple[str, str] = ("train", "test")


_KNOWN = {
    "gsm8k": _Known(rows.gsm8k, ("train.jsonl", "test.jsonl"), (("openai/gsm8k", "main"),) * 2),
    "math": _Known(
        rows.math,
        ("math_train.json", "math500_test.jsonl"),
        (("DigitalLearningGmbH/MATH-lighteval", None), ("HuggingFaceH4/MATH-500", None)),
    ),
    "svamp": _Known(rows.svamp, ("SVAMP.json", "SVAMP.json"), (("ChilleD/SVAMP", None),) * 2),
    "medqa": _Known(rows.medqa, ("dev_mediq.jsonl", "test.jsonl"), (("GBaker/MedQA-USMLE-4-options", None),) * 2),
    "medmcqa": _Known(
        rows.medmcqa,
        ("dev.jsonl", "dev.jsonl"),
        (("openlifescienceai/medmcqa", None),) * 2,
        ("train", "validation"),
    ),
    "pubmedqa": _Known(
        rows.pubmedqa,
        ("ori_pqal.json", "ori_pqal.json"),
        (("qiaojin/PubMedQA", "pqa_labeled"),) * 2,
        ("train", "train"),
    ),
}
_PUBMEDQA_TEST_IDS = "test_ground_truth.json"
_GYM = "reasoning_gym:"


def load(
    name: str, path: Path | str | None = None, split: str = "train", *, unlabelled: bool = False, **options: Any
) -> list[Problem]:
    """The problems of one split of a data set, in the order of its file.

    name: gsm8k, math, svamp, medqa, medmcqa, pubmedqa, jsonl, embedded, or `reasoning_gym:<family>`.
    path: a directory laid out as published, or one file; None takes the hub, by the `datasets` library.
    split: train or test; `embedded` also has public.
    unlabelled: own rows (jsonl) for training may do without an answer and become problems with the answer "", as where
        people give the labels. Other data sets have answers, and it changes nothing there.
    options: hub (an id other than the well-known one; a local directory works too), cop_from (medmcqa: the number of
        the first option; 1 in the published file, 0 on the hub), kind (jsonl: of rows that state none, default math);
        `embedded` and `reasoning_gym` take their own (size, seed, ...).

    Raises:
        ConfigError: an unknown name, split or option, or one that would have no effect.
        DataError: a file or row that cannot be used, with its place.
        MissingExtraError: the hub or reasoning-gym is asked for and its extra is not installed.
    """
    splits = ("train", "public", "test") if name == "embedded" else ("train", "test")
    if split not in splits:
        raise ConfigError(f"Data set {name!r} has no split {split!r}. Use one of {', '.join(splits)}.")
    location = None if path is None else Path(path).expanduser()
    if name == "embedded" or name.startswith(_GYM):
        if location is not None:
            raise ConfigError(
                f"Data set {name!r} is generated: a path ({location}) would have no effect. Leave it out."
            )
        problems = _embedded(split, options) if name == "embedded" else _gym(name, split, options)
    elif name == "jsonl":
        problems = _own(location, split, unlabelled, options)
    elif name in _KNOWN:
        problems = _known(name, location, split, options)
    else:
        raise ConfigError(f"There is no data set {name!r}.{_nearest(name, [*_KNOWN, 'jsonl', 'embedded'])}")
    if not problems:
        raise DataError(
            f"Data set {name!r} ({location or 'no path'}) has no problem in split {split!r}. A single file is split by "
            "content, 80 to 20: give more rows, or a directory with a file for each split."
        )
    _check_ids(problems, name)
    return problems


def in_split(problems: Iterable[Problem], split: str) -> list[Problem]:
    """The problems whose content falls into `train` (80 of 100 buckets of the hash) or `test` (20).

    Those without an answer are all `train`.
    """
    return [p for p in problems if (not p.answer or int(p.content_key[:8], 16) % 100 < 80) == (split == "train")]


def _known(name: str, path: Path | None, split: str, options: dict[str, Any]) -> list[Problem]:
    known, side = _KNOWN[name], int(split == "test")
    allowed = {"hub", "cop_from"} if name == "medmcqa" else {"hub"}
    _check_options(name, options, allowed)
    if path is not None and "hub" in options:
        raise ConfigError(
            f"Data set {name!r} has a path ({path}), so the option hub would have no effect. Leave one out."
        )
    to_problem: _ToProblem = known.to_problem
    if name == "medmcqa":
        cop_from = options.get("cop_from", 0 if path is None else 1)
        if cop_from not in (0, 1):
            raise ConfigError(f"medmcqa: the option cop_from is {cop_from!r}. It must be 0 or 1.")
        to_problem = partial(known.to_problem, cop_from=cop_from)
    if path is None:
        where, raw = _hub_rows(known, side, options.get("hub"))
        problems = _problems(raw, to_problem, split, where)
        return in_split(problems, split) if len(set(known.hub_splits)) == 1 else problems
    file = path / known.files[side] if path.is_dir() else path
    problems = _problems(read_rows(file), to_problem, split, str(file))
    ids = file.with_name(_PUBMEDQA_TEST_IDS)
    if name == "pubmedqa" and ids.is_file():
        held_out = _test_ids(ids)
        return [p for p in problems if (p.id in held_out) == (split == "test")]
    if path.is_dir() and known.files[0] != known.files[1]:
        return problems
    return in_split(problems, split)


def _problems(raw: Iterable[Row], to_problem: _ToProblem, split: str, where: str) -> list[Problem]:
    problems, skipped = [], []
    for row in raw:
        problem = to_problem(row, split)
        if problem is None:
            skipped.append(row.index)
        else:
            problems.append(problem)
    if skipped:
        listed = ", ".join(map(str, skipped[:20])) + (", ..." if len(skipped) > 20 else "")
        _log.info("%s: skipped %d rows without an answer (counted from 0): %s", where, len(skipped), listed)
    return problems


def _test_ids(path: Path) -> set[str]:
    try:
        ids = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). It should hold an object with the test ids as keys."
        ) from None
    if not isinstance(ids, dict):
        raise DataError(f"{path} does not hold an object with the test ids as keys.")
    return set(ids)


def _hub_rows(known: _Known, side: int, override: str | None) -> tuple[str, Iterator[Row]]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(
            "Data sets from the hub need the `datasets` library. Run `pip install 'fedrlvr[hub]'`, or give data.path."
        ) from None
    name, config = (override, None) if override else known.hub[side]
    try:
        table = datasets.load_dataset(name, config, split=known.hub_splits[side])
    except Exception as error:  # the library raises a dozen kinds, its own and its dependencies'
        raise DataError(
            f"The hub data set {name!r} cannot be loaded ({type(error).__name__}: {error}). Check the id and the "
            "connection, or give a local path."
        ) from error
    return str(name), (Row(f"{name}, row {index} (from 0)", index, row) for index, row in enumerate(table))


def _own(path: Path | None, split: str, unlabelled: bool, options: dict[str, Any]) -> list[Problem]:
    _check_options("jsonl", options, {"kind"})
    kind: Kind = options.get("kind", "math")
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
            f"{path} leaves no problem to hold out: {lacking} of {len(problems)} rows have no answer, and the others "
            "fall to training. Add rows with answers, or give a directory with train.jsonl and test.jsonl."
        )
    return chosen


def _embedded(split: str, options: dict[str, Any]) -> list[Problem]:
    from fedrlvr.zoo import problems

    _check_options("embedded", options, {"size", "seed", "families", "levels"}, needed={"size", "seed"})
    return list(problems(split=split, **options))  # type: ignore[arg-type]


def _gym(name: str, split: str, options: dict[str, Any]) -> list[Problem]:
    from fedrlvr.tasks.gym import generate

    return generate(name.removeprefix(_GYM), split, **options)


def _check_options(
    name: str, options: dict[str, Any], allowed: AbstractSet[str], needed: AbstractSet[str] = frozenset()
) -> None:
    for key in options:
        if key not in allowed:
            raise ConfigError(f"Data set {name!r} has no option {key!r}.{_nearest(key, sorted(allowed))}")
    if missing := sorted(needed - options.keys()):
        raise ConfigError(f"Data set {name!r} needs the option {missing[0]!r}.")


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Use one of {', '.join(names)}."


def _check_ids(problems: list[Problem], name: str) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"Data set {name!r}: two problems have the id {problem.id!r}. Give each its own.")
        seen.add(problem.id)
