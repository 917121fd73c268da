"""responses.jsonl: a few of a client's responses by round, on the client's own disk, for people to read.

    <run>/clients/<name>/responses.jsonl               in a simulation
    state/runs/<run>/clients/<name>/responses.jsonl    at an organisation whose site.toml asks for it

No message, log, metric or checkpoint has a line of it. A round that is done again replaces its lines and those of
later rounds, so a resumed run ends with the file of the uninterrupted one. The gold answer stands in a line only where
the client's ledger has paid for it, or where an audit knows every answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedrlvr.errors import CheckpointError, ConfigError, suggestion, validation_text
from fedrlvr.files import parse_json, private_directory
from fedrlvr.output import echo, echo_lines, logger
from fedrlvr.reporting.scores import natural

_log = logger("reporting")

FILE = "responses.jsonl"
LONGEST = 4_000
"""Largest number of characters of a text that is written; the middle of a longer text is left out."""
SHOWN_LENGTH, SHOWN_LINES = 1_500, 40
"""Largest numbers of characters and of lines of a text that a command shows, unless it is asked for the whole text."""
REWARDED_BY = {"known": "label", "queried": "label asked for", "trusted": "majority vote", "masked": "not trained on"}
"""Words for the source of a reward, by the fate of the response's problem (`supervision.types.Fate`)."""
_CORRECT = 1.0 - 1e-6


@dataclass(frozen=True)
class LoggedResponse:
    """One response, as a line of responses.jsonl holds it.

    round: counted from 1. prompt: the text that the model was asked, before any chat template. answer: what extraction
    finds in the text; None if nothing. gold: the true answer, where it is paid for or audited. reward: what was trained
    on. grade: the true reward, where it is known. fate: what the supervision did with the problem. finished: whether
    the response ended by itself. tokens: its length. mean_logp: of its tokens under the policy that sampled it.
    """

    round: int
    problem: str
    source: str
    prompt: str
    text: str
    answer: str | None
    gold: str | None
    reward: float
    grade: float | None
    fate: str
    finished: bool
    tokens: int
    mean_logp: float | None

    @property
    def wrong(self) -> bool:
        """Whether the response is known to be wrong."""
        return self.grade is not None and self.grade < _CORRECT

    @property
    def facts(self) -> str:
        """Reward, answers and length in one line."""
        verdict = "not graded" if self.grade is None else "wrong" if self.wrong else "right"
        parts = [f"reward {self.reward:g} ({REWARDED_BY.get(self.fate, self.fate)})", verdict]
        parts += ["no answer found" if self.answer is None else f"answer {self.answer}"]
        parts += [] if self.gold is None else [f"gold {self.gold}"]
        parts += [f"{self.tokens:,} tokens" + ("" if self.finished else ", cut at the length limit")]
        parts += [] if self.mean_logp is None else [f"mean log-prob {self.mean_logp:.2f}"]
        return ", ".join(parts)

    def line(self) -> str:
        """The response as a line of JSON in ASCII, with long texts shortened."""
        values = {key: shortened(value) if isinstance(value, str) else value for key, value in asdict(self).items()}
        return json.dumps(values) + "\n"


_RESPONSE = TypeAdapter(LoggedResponse)


def shortened(text: str, most: int = LONGEST, lines: int | None = None) -> str:
    """A text of at most about `most` characters and `lines` lines: its beginning and its end, where it is longer."""
    rows = text.split("\n")
    if lines is not None and len(rows) > lines:
        left_out = f"[{len(rows) - lines:,} lines left out]"
        text = "\n".join([*rows[: lines // 2], left_out, *rows[-(lines - lines // 2) :]])
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


@dataclass(frozen=True)
class ResponseLog:
    """The files responses.jsonl of a run's clients.

    run: directory of the run. count: responses of each round and client; 0 writes no file.
    """

    run: Path
    count: int

    def write(self, client: str, round_: int, responses: Sequence[LoggedResponse]) -> None:
        """Write a client's responses of a round in the place of those of this and later rounds.

        A file that cannot be written is a warning and no error: a run does not depend on it.
        """
        path = self.run / "clients" / client / FILE
        try:
            private_directory(path.parent)
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                os.fchmod(file.fileno(), 0o600)
                end = _end_of_earlier(file.read(), round_)
                file.truncate(end)
                file.seek(end)
                file.write("".join(response.line() for response in responses).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            _log.warning("%s: responses of round %d cannot be written (%s)", path, round_, error.strerror)


def _end_of_earlier(data: bytes, round_: int) -> int:
    """Length of the part of a file that holds whole lines of earlier rounds."""
    end = data.rfind(b"\n") + 1  # behind it stands what a kill cut short
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        try:
            if int(json.loads(data[start:end])["round"]) < round_:
                break
        except (ValueError, LookupError, TypeError):
            break  # a line that somebody has changed; reading it names it
        end = start
    return end


def read_logged(path: Path) -> list[LoggedResponse]:
    """The responses in a file; a last line that a kill cut short is left out.

    Raises:
        CheckpointError: the file cannot be read, or a line is no response; the text names the line.
    """
    try:
        lines = path.read_text("utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from None
    responses = []
    for number, line in enumerate(lines, start=1):
        try:
            responses.append(_RESPONSE.validate_python(parse_json(line)))
        except ValueError as error:
            why = validation_text(error, 3) if isinstance(error, ValidationError) else error
            raise CheckpointError(f"{path}, line {number}: {why}. Delete the line or the file.") from None
    return responses


def response_files(run: Path) -> dict[str, Path]:
    """The files responses.jsonl of a run's directory, by client in natural order."""
    files = {path.parent.name: path for path in run.glob(f"clients/*/{FILE}")}
    return {client: files[client] for client in sorted(files, key=natural)}


def choose_client(files: Mapping[str, Path], client: str | None) -> Mapping[str, Path]:
    """The files of one client, or of all if `client` is None.

    Raises:
        ConfigError: there is no file of this client.
    """
    if client is None:
        return files
    if client not in files:
        raise ConfigError(f"--client {client}: no responses of this client ({suggestion(client, list(files))}).")
    return {client: files[client]}


def newest(responses: Sequence[LoggedResponse], round_: int | None = None) -> list[LoggedResponse]:
    """The responses of a round; None is the newest."""
    last = max((response.round for response in responses), default=0) if round_ is None else round_
    return [response for response in responses if response.round == last]


def excerpt(run: Path, most: int) -> list[tuple[str, LoggedResponse]]:
    """Responses of the clients' newest rounds for a report, at most `most`, clients in turn.

    Raises:
        CheckpointError: as `read_logged`.
    """
    queues = [
        [(client, response) for response in newest(read_logged(path))] for client, path in response_files(run).items()
    ]
    in_turn = [
        queue[place] for place in range(max(map(len, queues), default=0)) for queue in queues if place < len(queue)
    ]
    chosen = in_turn[:most]
    return sorted(chosen, key=lambda pair: natural(pair[0]))


def show(
    files: Mapping[str, Path], *, round_: int | None = None, wrong: bool = False, most: int = 12, whole: bool = False
) -> None:
    """Print responses: of each client those of its newest round, or of `round_`.

    wrong: only responses that are known to be wrong. most: number of responses. whole: show long texts whole.

    Raises:
        CheckpointError: as `read_logged`. ConfigError: no client has responses of the round.
    """
    by_client = {client: read_logged(path) for client, path in files.items()}
    chosen = [(client, response) for client, rs in by_client.items() for response in newest(rs, round_)]
    if not chosen:
        rounds = sorted({response.round for responses in by_client.values() for response in responses})
        known = f"{rounds[0]} to {rounds[-1]}" if rounds else "none"
        raise ConfigError(f"No responses of round {round_ or 1} are written here (rounds: {known}).")
    ungraded = sum(response.grade is None for _, response in chosen)
    listed = [pair for pair in chosen if pair[1].wrong] if wrong else chosen
    for client, response in listed[:most]:
        echo_lines("\n".join(_lines(client, response, whole)))
        echo()
    echo(
        f"{min(most, len(listed))} of {len(listed)} {'wrong ' * wrong}responses"
        + (f"; --most {len(listed)} shows all of them" if len(listed) > most else "")
    )
    if ungraded:
        echo(f"{ungraded} of {len(chosen)} responses have no grade, since no label of their problem was paid for.")


def _lines(client: str, response: LoggedResponse, whole: bool) -> Iterator[str]:
    yield f"{client}, round {response.round}, problem {response.problem} ({response.source})"
    yield f"  {response.facts}"
    for title, text in (("prompt", response.prompt), ("response", response.text)):
        yield f"  {title}:"
        shown = text if whole else shortened(text, SHOWN_LENGTH, SHOWN_LINES)
        yield from (f"    {row}" for row in shown.split("\n"))
