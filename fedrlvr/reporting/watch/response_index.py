"""The responses in a run's files responses.jsonl: an index that grows with the files, and texts read when asked for.

Texts stay on disk. The index of a client's file is made when its responses are first asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from fedrlvr.errors import printable
from fedrlvr.reporting.responses import LONGEST, LoggedResponse, response_files, shortened
from fedrlvr.reporting.scores import natural
from fedrlvr.reporting.watch.json_lines import UNFIT, JsonLines, parse_line
from fedrlvr.reporting.watch.run_files import shown_name

MOST_LISTED = 20
"""Number of responses of a page of the list."""
MOST_ROUNDS = 40
"""Number of newest responses to one problem that are shown side by side."""
LONGEST_ANSWER = 300
"""Largest number of characters of an answer on the page."""
_KEEP = "\n\t"
_RESPONSE = TypeAdapter(LoggedResponse)
_WRONG, _UNGRADED, _RIGHT = range(3)


class IndexEntry(NamedTuple):
    """The place of a response in its file, and what lists are sorted by.

    order: wrong ones first. problem: a hash of the problem's id, which may be of any length.
    """

    round: int
    order: int
    problem: str
    offset: int
    length: int


class _ClientFile:
    """The index of one client's file."""

    def __init__(self, path: Path) -> None:
        self._reset()
        self.lines = JsonLines(path, self._take, self._reset)

    def _take(self, value: Any, offset: int, length: int) -> None:
        response = _validated(value)
        problem = self._names.setdefault(key := _problem_key(response.problem), key)
        self.times[problem] += 1
        order = _WRONG if response.wrong else _UNGRADED if response.grade is None else _RIGHT
        self.entries.append(IndexEntry(response.round, order, problem, offset, length))

    def _reset(self) -> None:
        self.entries: list[IndexEntry] = []
        self.times: Counter[str] = Counter()
        self._names: dict[str, str] = {}


@dataclass(frozen=True)
class Listed:
    """A page of a list of responses. total: of the whole list. notes: on what could not be read."""

    responses: list[dict[str, Any]]
    total: int
    rounds: list[int]
    notes: list[str]


class ResponseIndex:
    """The responses of all clients of a run that are on this machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths: dict[str, Path] = {}
        self._files: dict[str, _ClientFile] = {}
        self._seen: Any = None

    def look(self) -> bool:
        """Look for files, and whether they have changed; nothing is read."""
        self._paths = response_files(self._directory)
        stamps = []
        for path in self._paths.values():
            try:
                status = path.stat()
            except OSError:
                continue
            stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
        changed, self._seen = stamps != self._seen, stamps
        return changed

    @property
    def clients(self) -> list[str]:
        """Names of the clients whose responses are here, in natural order."""
        return list(self._paths)

    def _read(self, client: str | None) -> dict[str, _ClientFile]:
        """The indices of one client's file, or of all, as they are now."""
        named = {name: path for name, path in self._paths.items() if client in (None, shown_name(name))}
        if client is not None and not named:
            raise KeyError(client)
        for name, path in named.items():
            self._files.setdefault(name, _ClientFile(path)).lines.read()
        return {name: self._files[name] for name in named}

    def listed(self, client: str | None, round_: int | None, shown: str, start: int) -> Listed:
        """A page of responses: of one client or all, of a round or of each client's newest; wrong ones first.

        shown: `all`, `wrong`, `right` or `ungraded`.

        Raises:
            KeyError: there are no responses of this client.
        """
        files = self._read(client)
        wanted = {"wrong": _WRONG, "right": _RIGHT, "ungraded": _UNGRADED}.get(shown)
        chosen = []
        rounds: set[int] = set()
        for name, file in files.items():
            last = max((entry.round for entry in file.entries), default=0) if round_ is None else round_
            rounds.update(entry.round for entry in file.entries)
            chosen += [(name, entry) for entry in file.entries if entry.round == last and wanted in (None, entry.order)]
        chosen.sort(key=lambda pair: (pair[1].order, natural(pair[0]), pair[1].offset))
        page = list(self._responses(chosen[start : start + MOST_LISTED]))
        notes = [f"{shown_name(name)}: {note}" for name, file in files.items() for note in file.lines.notes]
        return Listed(page, len(chosen), sorted(rounds), notes)

    def of_problem(self, client: str, problem: str) -> Listed:
        """The newest responses of a client to one problem, by the key of its id, in the order of the rounds.

        Raises:
            KeyError: there are no responses of this client.
        """
        files = self._read(client)
        chosen = [(name, entry) for name, file in files.items() for entry in file.entries if entry.problem == problem]
        page = list(self._responses(chosen[-MOST_ROUNDS:]))
        notes = [note for file in files.values() for note in file.lines.notes]
        return Listed(page, len(chosen), sorted({entry.round for _, entry in chosen}), notes)

    def _responses(self, chosen: list[tuple[str, IndexEntry]]) -> Iterator[dict[str, Any]]:
        for name, entry in chosen:
            try:
                with self._paths[name].open("rb") as file:
                    file.seek(entry.offset)
                    response = _validated(parse_line(file.read(entry.length)))
            except (OSError, *UNFIT):
                continue  # a run that goes on is replacing its lines; the page asks again
            yield {**shown_response(name, response), "times": self._files[name].times[entry.problem]}


def _validated(value: Any) -> LoggedResponse:
    try:
        return _RESPONSE.validate_python(value)
    except ValidationError as error:
        fields = sorted({".".join(map(str, item["loc"])) for item in error.errors(include_url=False)})
        raise ValueError(f"no response (fields: {', '.join(fields)})") from None


def shown_response(client: str, response: LoggedResponse) -> dict[str, Any]:
    """A response for the page: printable texts of a bounded length, and where its answer stands in the text."""
    text = printable(shortened(response.text, LONGEST), keep=_KEEP)
    answer = None if response.answer is None else printable(response.answer[:LONGEST_ANSWER], keep=_KEEP)
    return {
        "client": shown_name(client),
        "round": response.round,
        "problem": shown_name(response.problem),
        "problem_key": _problem_key(response.problem),
        "source": shown_name(response.source),
        "prompt": printable(shortened(response.prompt, LONGEST), keep=_KEEP),
        "text": _marked(text, answer),
        "answer": answer,
        "gold": None if response.gold is None else printable(response.gold[:LONGEST_ANSWER], keep=_KEEP),
        "reward": response.reward,
        "verdict": "ungraded" if response.grade is None else "wrong" if response.wrong else "right",
        "fate": shown_name(response.fate),
        "finished": response.finished,
        "tokens": response.tokens,
    }


def _problem_key(problem: str) -> str:
    return hashlib.sha256(problem.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _marked(text: str, answer: str | None) -> list[str]:
    """A text in three parts: before its answer, the answer as it stands there last, and after it. Two parts are empty
    where the answer does not stand in the text word for word."""
    place = text.rfind(answer) if answer else -1
    if not answer or place < 0:
        return [text, "", ""]
    return [text[:place], answer, text[place + len(answer) :]]
