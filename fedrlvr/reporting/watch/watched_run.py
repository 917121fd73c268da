"""One run as the page knows it: its numbers so far, who took part, and how far it is.

The lines of metrics.jsonl are taken one after another as they are written, and no line is kept as a whole.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrlvr.errors import CheckpointError
from fedrlvr.reporting.absence import Standing, absence
from fedrlvr.reporting.advice import RoundMeans, round_means
from fedrlvr.reporting.curves import CURVES, IMITATION_CURVES, LABEL_CURVES
from fedrlvr.reporting.scores import FATES, Estimate, dropped_responses, evaluations, natural
from fedrlvr.reporting.under_way import FILE as UNDER_WAY_FILE
from fedrlvr.reporting.under_way import UnderWay, read_under_way
from fedrlvr.reporting.verdict import VERDICT_FILE, Verdict, read_verdict
from fedrlvr.reporting.watch.json_lines import JsonLines
from fedrlvr.reporting.watch.number_table import NumberTable
from fedrlvr.reporting.watch.response_index import ResponseIndex
from fedrlvr.reporting.watch.run_files import RunSettings, RunState, read_settings, read_state, run_id, shown_name

STANDING, NORM, OWN_SECONDS = "standing", "norm", "own_seconds"
"""Keys of numbers that this module adds: what a client did, the length of its change, and its own seconds."""
_SECONDS = tuple(f"seconds_{phase}" for phase in ("sample", "grade", "train", "evaluate", "probes"))
REWARDS = tuple(f"reward_{number}" for number in range(1, 9))
KEPT = tuple(
    dict.fromkeys(
        [
            *(key for curve in (*CURVES, *IMITATION_CURVES, *LABEL_CURVES) for key in (curve.key, curve.dashed) if key),
            *FATES,
            *REWARDS,
            "rescued",
            "bytes_up",
            "bytes_down",
            "tokens_sampled",
            "tokens_trained",
            "num-examples",
            *_SECONDS,
            STANDING,
            NORM,
            OWN_SECONDS,
        ]
    )
)
"""Keys of the clients' numbers that the page shows."""
MOST_ABSENCES = 200
"""Number of newest absences whose reasons are kept."""
RECENT_ROUNDS = 10
"""Number of newest rounds by whose seconds the time left is estimated."""


@dataclass(frozen=True)
class Absence:
    """A client that was left out of a round, with the reason that the server wrote down."""

    round: int
    client: str
    standing: Standing
    reason: str


class WatchedRun:
    """The data of a run's directory, which is followed while the run goes on.

    clock: unix seconds. version: rises whenever something has changed. data_version: the same without what is under
    way, `now`. Callers hold `lock` while they read.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.directory, self.id = directory, run_id(directory)
        self.lock = threading.RLock()
        self.version = self.data_version = 0
        self.now: UnderWay | None = None
        self.loaded = False
        self.settings, self.state = RunSettings(), RunState.INTERRUPTED
        self.changed_at = 0.0
        self.verdict: Verdict | None = None
        self.verdict_note = ""
        self.responses = ResponseIndex(directory)
        self._clock = clock
        self._config_seen: Any = None
        self._verdict_seen: Any = None
        self._under_way_seen: Any = None
        self._metrics = JsonLines(directory / "metrics.jsonl", self._take, self._reset)
        self._reset()

    def _reset(self) -> None:
        self.table = NumberTable(KEPT)
        self.means: list[RoundMeans] = []
        self.evaluated: dict[int, tuple[Estimate, dict[str, Estimate]]] = {}
        self.client_scores: dict[int, dict[str, float]] = {}
        self.absences: deque[Absence] = deque(maxlen=MOST_ABSENCES)
        self.absent_rounds: Counter[str] = Counter()
        self.seconds: list[dict[str, float]] = []
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.cosines: dict[int, dict[str, dict[str, float]]] = {}
        self.exchanges: list[tuple[float, dict[str, float]]] = []
        self.dropped: dict[str, tuple[int, Counter[str]]] = {}

    # The files.

    def refresh(self) -> bool:
        """Read what is new. Whether anything has changed."""
        with self.lock:
            before = self.state
            changed = self._metrics.read()
            changed |= self._read_settings()
            changed |= self._read_verdict()
            changed |= self.responses.look()
            self.state = read_state(self.directory, self.done, self.settings.rounds)
            changed |= self.state != before or not self.loaded
            self.loaded = True
            self.data_version += changed
            changed |= self._read_under_way()
            self.version += changed
            return changed

    @property
    def notes(self) -> list[str]:
        """Sentences on what could not be read."""
        return [*self._metrics.notes, *([self.verdict_note] if self.verdict_note else [])]

    def _read_settings(self) -> bool:
        seen = _stamp(self.directory / "config.json")
        if seen == self._config_seen:
            return False
        self._config_seen, self.settings = seen, read_settings(self.directory)
        return True

    def _read_under_way(self) -> bool:
        seen = _stamp(self.directory / UNDER_WAY_FILE) if self.state is RunState.RUNNING else None
        if seen == self._under_way_seen:
            return False
        self._under_way_seen, self.now = seen, None if seen is None else read_under_way(self.directory)
        return True

    def _read_verdict(self) -> bool:
        seen = _stamp(self.directory / VERDICT_FILE), self.settings.rounds
        if seen == self._verdict_seen:
            return False
        self._verdict_seen, self.verdict, self.verdict_note = seen, None, ""
        try:
            self.verdict = read_verdict(self.directory, self.settings.rounds or 0)
        except CheckpointError as error:
            self.verdict_note = str(error)
        return True

    # The records.

    def _take(self, record: Any, _offset: int, _length: int) -> None:
        """Take a line of metrics.jsonl: all of it, or nothing where it is no round's record."""
        round_ = record["round"]
        if not isinstance(round_, int) or isinstance(round_, bool) or not 0 <= round_ <= 10**7:
            raise ValueError("its round is no number of a round")
        left_out = {str(client): str(reason) for client, reason in record.get("left_out", {}).items()}
        absent = [Absence(round_, client, absence(reason), reason) for client, reason in left_out.items()]
        step = dict(record.get("server_step", {}))
        norms = dict(step.get("norms", {}))
        clients = {str(client): dict(numbers) for client, numbers in record["clients"].items()}
        for client, numbers in clients.items():
            took_part = any(numbers.get(key) is not None for key in ("num-examples", "tokens_sampled"))
            numbers[STANDING] = Standing.TOOK_PART if took_part and client not in left_out else Standing.NOT_ASKED
            numbers[NORM] = norms.get(client)
            spent = [seconds for key in _SECONDS if (seconds := numbers.get(key)) is not None]
            numbers[OWN_SECONDS] = sum(spent) if spent else None
        for missing in absent:
            clients.setdefault(missing.client, {})[STANDING] = missing.standing
        if not round_:  # nobody trains before the first round
            for numbers in clients.values():
                numbers[STANDING] = None
        means = round_means({**record, "clients": clients})
        evaluated = evaluations([record])
        scores = {
            str(client): sum(score["total"] / score["n"] for score in scored) / len(scored)
            for client, sources in record.get("evaluate", {}).items()
            if (scored := [score for score in sources.values() if score["n"]])
        }
        seconds = {str(phase): float(value) for phase, value in record.get("seconds", {}).items()}
        rates = {key: float(step[key]) for key in ("learning_rate", "mean_cosine", "mean_norm") if key in step}
        cosines = {
            str(client): {str(other): float(value) for other, value in row.items()}
            for client, row in step.get("cosines", {}).items()
        }
        exchanges = [
            {key: float(exchange[key]) for key in ("pool", "unsolved", "problems") if key in exchange}
            for exchange in record.get("exchanges", ())
        ]
        dropped = dropped_responses([record])
        self.table.add(round_, clients)  # the last that can fail
        self.means.append(means)
        self.evaluated |= evaluated
        if scores:
            self.client_scores[round_] = scores
        self.absences.extend(absent)
        self.absent_rounds.update(left_out.keys())
        self.seconds.append(seconds)
        if rates:
            self.steps.append((round_, rates))
        if cosines:
            self.cosines[round_] = cosines
        self.exchanges += [(round_ - 1 + (i + 1) / len(exchanges), exchange) for i, exchange in enumerate(exchanges)]
        for client, sent, counts in dropped:
            before, counted = self.dropped.get(client, (0, Counter()))
            self.dropped[client] = before + sent, counted + Counter(counts)
        self.changed_at = _modified(self.directory / "metrics.jsonl")

    # How far it is.

    @property
    def done(self) -> int | None:
        """The newest round that is written down; None before round 0 is."""
        return self.means[-1].round if self.means else None

    @property
    def name(self) -> str:
        """The run's name, or else that of its directory."""
        return self.settings.name or shown_name(self.directory.name)

    @property
    def clients(self) -> list[str]:
        """Every client of the run, in natural order."""
        return sorted({*self.settings.clients, *self.table.clients}, key=natural)

    @property
    def elapsed(self) -> float:
        """Seconds of all rounds that are written down."""
        return sum(sum(phases.values()) for phases in self.seconds)

    @property
    def under_way(self) -> float | None:
        """Seconds since the newest round was written down, in a run that is under way."""
        if self.state is not RunState.RUNNING or not self.changed_at:
            return None
        return max(self._clock() - self.changed_at, 0.0)

    @property
    def now_seconds(self) -> float | None:
        """Seconds for which the server has waited for the replies of the clients that it asked last."""
        return max(self._clock() - self.now.since, 0.0) if self.now and self.now.since else None

    @property
    def round_seconds(self) -> float | None:
        """Mean seconds of the newest rounds of training; None before there is one."""
        pairs = zip(self.means, self.seconds, strict=True)
        rounds = [sum(phases.values()) for means, phases in pairs if means.round][-RECENT_ROUNDS:]
        return sum(rounds) / len(rounds) if rounds else None

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end of a run that is under way; None where nothing is known yet."""
        rounds, seconds, since = self.settings.rounds, self.round_seconds, self.under_way
        if rounds is None or seconds is None or since is None or self.done is None:
            return None
        ahead = rounds - self.done
        return ahead * seconds - min(since, seconds) if ahead > 0 else None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _modified(path: Path) -> float:
    stamp = _stamp(path)
    return stamp[2] / 1e9 if stamp else 0.0


def finite(value: float | None, digits: int = 6) -> float | None:
    """A number for JSON, to so many significant digits; None for what is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def finite_all(values: Any) -> list[float | None]:
    """Numbers for JSON, as `finite` gives them."""
    return [finite(value) for value in values]


def shown_mapping(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers by name for JSON, each name printable."""
    return {shown_name(name): finite(value) for name, value in values.items()}
