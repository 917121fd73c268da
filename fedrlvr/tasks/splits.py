"""Train, public, validation and test stay apart by content: two problems with one `content_key` are one problem."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import combinations

from fedrlvr.errors import DataError
from fedrlvr.output import logger
from fedrlvr.seeds import stream
from fedrlvr.tasks.partition import by_source
from fedrlvr.tasks.problem import Problem

_log = logger("tasks")


def check_disjoint(**splits: Sequence[Problem]) -> None:
    """Make sure that no problem stands in two of the splits, which are given by name.

    Raises:
        DataError: names the two splits, how many problems they share, and one of them by both ids.
    """
    for (name, left), (other, right) in combinations(splits.items(), 2):
        ids = {problem.content_key: problem.id for problem in left}
        shared = [problem for problem in right if problem.content_key in ids]
        if shared:
            first = shared[0]
            raise DataError(
                f"The {name} and {other} splits share {len(shared)} problems by content, for example {name} "
                f"{ids[first.content_key]!r} and {other} {first.id!r}. Remove them from one side."
            )


def in_split(problems: Iterable[Problem], split: str) -> list[Problem]:
    """The problems of one split of a file that holds both: 80 of 100 buckets of the prompt's hash are `train`, the
    other 20 are `test`.

    The buckets are the same on every machine, and copies of one problem fall on one side. Only a problem without an
    answer is always `train`, since nobody could be tested on it; `drop_overlap` leaves it out where a copy with an
    answer is `test`.
    """
    return [p for p in problems if (not p.answer or int(p.content_key[:8], 16) % 100 < 80) == (split == "train")]


def drop_overlap(train: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """`train` without what also stands in `held_out`; how many went is logged (published sets do repeat problems)."""
    keys = {problem.content_key for problem in held_out}
    kept = [problem for problem in train if problem.content_key not in keys]
    if len(kept) < len(train):
        _log.info("left out %d of %d training problems that are also held out", len(train) - len(kept), len(train))
    return kept


def set_aside(train: Sequence[Problem], size: int, seed: int, *, setting: str) -> tuple[list[Problem], list[Problem]]:
    """Set `size` problems with an answer aside, spread over sources in proportion: (the rest, those), both in order.

    Further copies of a problem set aside leave the rest too, so the two sides share no content.

    setting: of the configuration, which says how many.

    Raises:
        DataError: fewer than `size` + 1 different problems are there, or fewer than `size` with an answer; the text
            names the setting.
    """
    if not size:
        return list(train), []
    answered = [problem for problem in train if problem.answer]
    there, known = ({problem.content_key for problem in group} for group in (train, answered))
    if size >= len(there):
        raise DataError(
            f"{setting} = {size}: so many problems cannot be set aside from {len(there)} different training problems "
            f"and leave any. Lower {setting} or give more problems."
        )
    if size > len(known):
        raise DataError(
            f"{setting} = {size}: problems that are set aside need an answer, which only {len(known)} of {len(there)} "
            f"different training problems have. Lower {setting} or add rows with answers."
        )
    public = sample(answered, size, seed)
    taken = {problem.content_key for problem in public}
    return [problem for problem in train if problem.content_key not in taken], public


def sample(problems: Sequence[Problem], size: int, seed: int) -> list[Problem]:
    """`size` different problems, with an answer or without, spread over sources in proportion, in order.

    Raises:
        ValueError: there are not so many different ones.
    """
    first = {problem.content_key: problem for problem in reversed(problems)}
    unique = [problem for problem in problems if first[problem.content_key] is problem]
    taken: set[str] = set()
    for source, count in _quotas({name: len(group) for name, group in by_source(unique).items()}, size).items():
        rng = random.Random(stream(seed, "public", source))
        group = [problem for problem in unique if problem.source == source]
        taken.update(problem.content_key for problem in rng.sample(group, count))
    return [problem for problem in unique if problem.content_key in taken]


def _quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` shared in proportion to `sizes`: rounded down, then one more by largest remainder, by name if equal."""
    whole = sum(sizes.values())
    quotas = {name: total * size // whole for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(total * sizes[name] % whole), name))
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas
