"""Trackers: observers that copy each round's numbers into an experiment tracker.

`run.trackers` names them. Each is written to by a small class here, on this machine alone: TensorBoard and MLflow into
the run's directory, W&B into an offline directory there, trackio into its own local database. Only `run.mlflow_uri`
sends numbers elsewhere. The packages' own telemetry and error reports are switched off before they are imported.

What is logged are the numbers of metrics.jsonl, under `<client>/<number>`: no configuration, prompt, response or label.
A file `trackers/<tracker>.json` in the run's directory holds the tracker's run and the last round that it has, so that
a resumed run continues it and brings what it lacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedrlvr.config.sections import RunConfig
from fedrlvr.errors import ConfigError, MissingExtraError
from fedrlvr.files import atomic_text, read_json
from fedrlvr.output import logger
from fedrlvr.reporting.observer import AlsoMeasured, Event, Observer, PersonalEnded, RoundSaved, RunStarted
from fedrlvr.reporting.scores import evaluations

_log = logger("reporting")

MOST_WAITING = 64
"""Largest number of rounds that wait for a tracker that cannot be written to; older ones are dropped."""
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio", "wandb": "wandb"}
"""The package of each tracker, which is also the name of its extra."""
_SWITCHES = {
    "mlflow": {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    },
    "trackio": {"HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
}
"""Environment variables that are set before a tracker's package is imported: no telemetry, and no long wait."""
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables by which trackio sends numbers to another machine."""

Numbers = Mapping[str, float]
"""Numbers of a round by their names."""


class TrackerWriter(Protocol):
    """Writes to one tracker; made when the server is, opened when the run starts."""

    def open(self, known: str | None) -> str:
        """Open the tracker's run, or continue the known one; returns what names it."""

    def write(self, round_: int, numbers: Numbers) -> None:
        """Write the numbers of a round."""

    def close(self) -> None:
        """Write what is buffered, and close."""


class TensorBoardWriter:
    """Event files in `<run>/tensorboard`. A resumed run adds a file, and TensorBoard shows them as one run."""

    def __init__(self, directory: Path, settings: RunConfig) -> None:
        self._directory = directory / "tensorboard"
        self._writer: Any = None

    def open(self, known: str | None) -> str:
        """Open a new event file; the directory names the run."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory))
        return self._directory.name

    def write(self, round_: int, numbers: Numbers) -> None:
        """Write a scalar for each number, and flush."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, round_)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file of this start."""
        if self._writer is not None:
            self._writer.close()


class MlflowWriter:
    """A run of MLflow: in the database `<run>/mlflow/mlflow.db`, or at `run.mlflow_uri`.

    Raises (on construction):
        ConfigError: the server at `run.mlflow_uri` cannot be reached, or refuses.
    """

    def __init__(self, directory: Path, settings: RunConfig) -> None:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they announce each table of a new database
        self._settings = settings
        self._directory = directory / "mlflow"
        self._run = ""
        if settings.mlflow_uri is None:
            self._client = None
            return
        try:
            self._client = MlflowClient(tracking_uri=settings.mlflow_uri)
            self._client.search_experiments(max_results=1)
        except Exception as error:
            raise ConfigError(
                f"run.mlflow_uri = {settings.mlflow_uri!r} cannot be used by the tracker mlflow ({_brief(error)}). "
                "Start the tracking server, mend the address or its credentials (MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD), or leave run.mlflow_uri out: the extra mlflow then writes to the run's "
                "directory."
            ) from None

    def open(self, known: str | None) -> str:
        """Create a run in the experiment `run.name`, or continue the known one."""
        from mlflow import MlflowClient

        if self._client is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            place = (self._directory / "mlflow.db").absolute()
            self._client = MlflowClient(tracking_uri=f"sqlite:///{place}")
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return known
        experiment = self._client.get_experiment_by_name(self._settings.name)
        artifacts = (self._directory / "artifacts").absolute().as_uri() if self._settings.mlflow_uri is None else None
        number = (
            self._client.create_experiment(self._settings.name, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )
        name = f"{self._directory.absolute().parent.name}, seed {self._settings.seed}"
        self._run = self._client.create_run(number, run_name=name).info.run_id
        return self._run

    def write(self, round_: int, numbers: Numbers) -> None:
        """Write the numbers in batches; MLflow takes at most 1,000 at once."""
        from mlflow.entities import Metric

        assert self._client is not None
        now = int(time.time() * 1000)
        metrics = [Metric(mlflow_name(name), value, now, round_) for name, value in numbers.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])

    def close(self) -> None:
        """Mark the run of MLflow as finished."""
        if self._client is not None and self._run:
            self._client.set_terminated(self._run)


class TrackioWriter:
    """A run in trackio's local database: the project `run.name` in TRACKIO_DIR, or in trackio's own directory.

    Raises (on construction):
        ConfigError: the environment has trackio send numbers to another machine.
    """

    def __init__(self, directory: Path, settings: RunConfig) -> None:
        for name in _ELSEWHERE:
            if os.environ.get(name):
                raise ConfigError(
                    f"run.trackers: 'trackio' writes on this machine alone, and the environment variable {name} has it "
                    "send numbers to another one. Unset the variable, or leave the tracker out."
                )
        self._project = plain_name(settings.name)
        self._name = f"{plain_name(directory.absolute().name)}-seed-{settings.seed}"
        self._run: Any = None

    def open(self, known: str | None) -> str:
        """Create a run under a name that no other run of the project has, or continue the known one."""
        import trackio

        name = known or f"{self._name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(io.StringIO()):  # trackio announces itself over the live progress
            self._run = trackio.init(
                self._project, name=name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        return name

    def write(self, round_: int, numbers: Numbers) -> None:
        """Hand the numbers to trackio, whose thread writes them."""
        self._run.log(dict(numbers), step=round_)

    def close(self) -> None:
        """Wait until trackio has written everything."""
        if self._run is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._run.finish()
            with contextlib.suppress(ImportError, AttributeError):  # else trackio finishes it again when Python exits
                from trackio import context_vars

                context_vars.current_run.set(None)


class WandbWriter:
    """An offline run of W&B in `<run>/wandb`, which `wandb sync` uploads if its owner wants that.

    Nothing but the numbers is recorded: no git state, code, packages, console output or machine.
    """

    def __init__(self, directory: Path, settings: RunConfig) -> None:
        self._directory, self._settings = directory, settings
        self._run: Any = None

    def open(self, known: str | None) -> str:
        """Start an offline run; one that continues has the same id, so that both are uploaded as one run."""
        import wandb

        number = known or secrets.token_hex(4)
        settings = wandb.Settings(
            mode="offline",
            host="unknown",  # else the name of this machine stands in the file
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=plain_name(self._settings.name),
            name=f"{self._directory.absolute().name}, seed {self._settings.seed}",
            id=number,
            dir=str(self._directory),
            reinit="create_new",  # the federations of a sweep each have a run at the same time
            settings=settings,
        )
        return number

    def write(self, round_: int, numbers: Numbers) -> None:
        """Write the numbers at the step of the round."""
        self._run.log(dict(numbers), step=round_)

    def close(self) -> None:
        """Write what is buffered, and end W&B's process."""
        if self._run is not None:
            self._run.finish()


_WRITERS: dict[str, Callable[[Path, RunConfig], TrackerWriter]] = {
    "tensorboard": TensorBoardWriter,
    "mlflow": MlflowWriter,
    "trackio": TrackioWriter,
    "wandb": WandbWriter,
}


class Tracker(Observer):
    """Brings every saved round to one tracker, in order.

    A tracker that cannot be written to is one warning: rounds wait, and are tried again after the next round.

    kind: of `run.trackers`. earlier: reads the records of the rounds before a run that is resumed.
    """

    def __init__(
        self, kind: str, writer: TrackerWriter, directory: Path, earlier: Callable[[Path], Sequence[Mapping[str, Any]]]
    ) -> None:
        self.kind, self._writer, self._earlier = kind, writer, earlier
        self._state = directory / "trackers" / f"{kind}.json"
        self._waiting: list[tuple[int, Numbers]] = []
        self._known: str | None = None
        self._round = -1  # the last one that the tracker has
        self._newest = 0
        self._started = self._opened = self._warned = False

    def notify(self, event: Event) -> None:
        """Open the tracker's run when the run starts, and write each round as soon as it is saved."""
        match event:
            case RunStarted():
                self._started = True
                self._read_state()
                if event.first_round:
                    self._newest = event.first_round - 1
                    missing = [r for r in self._earlier(Path(event.directory)) if r["round"] > self._round]
                    self._waiting += [(r["round"], dict(flatten(r))) for r in missing if r["round"] < event.first_round]
            case RoundSaved():
                self._newest = event.round
                self._waiting.append((event.round, dict(flatten(event.record))))
            case PersonalEnded():
                numbers = {f"personal/{name}": value for name, value in flatten(event.record)}
                self._waiting.append((self._newest, numbers))
            case AlsoMeasured():
                self._waiting.append((self._newest, dict(_nested(event.record, "also"))))
            case _:
                return
        self._bring()

    def close(self) -> None:
        """Try once more to write what waits, then close the tracker's run."""
        if not self._started:
            return
        self._bring()
        if self._opened:
            self._try(self._writer.close)

    def _bring(self) -> None:
        del self._waiting[:-MOST_WAITING]
        self._try(self._write_waiting)

    def _write_waiting(self) -> None:
        if not self._opened:
            self._known = self._writer.open(self._known)
            self._opened = True
            self._write_state()
        while self._waiting:
            round_, numbers = self._waiting[0]
            self._writer.write(round_, numbers)
            del self._waiting[0]
            self._round = max(self._round, round_)
            self._write_state()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "The tracker %s cannot be written to (%s). The run goes on, and later rounds try again; "
                    "metrics.jsonl has every number.",
                    self.kind,
                    _brief(error),
                )

    def _read_state(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a missing or damaged file: a new run
            state = read_json(self._state)
            self._known, self._round = str(state["run"]), int(state["round"])

    def _write_state(self) -> None:
        atomic_text(self._state, json.dumps({"run": self._known, "round": self._round}) + "\n")


def flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of each client's numbers, each evaluation's pass@1 and their mean over sources, the exchanges, the
    server's step, the privacy loss and the seconds by phase."""
    for client, numbers in record.get("clients", {}).items():
        yield from ((f"{client}/{key}", value) for key, value in _numbers(numbers))
    for client, sources in record.get("evaluate", {}).items():
        for source, score in sources.items():
            if score["n"]:
                yield f"{client}/evaluate/{source}", score["total"] / score["n"]
    if "round" in record:
        yield from (("held-out/pass@1", overall.mean) for overall, _ in evaluations([record]).values())
    for place, exchange in enumerate(record.get("exchanges", ()), start=1):
        yield from ((f"exchange-{place}/{key}", value) for key, value in _numbers(exchange))
        for client, numbers in exchange.get("clients", {}).items():
            yield from ((f"{client}/exchange-{place}/{key}", value) for key, value in _numbers(numbers))
    for key, value in _numbers(record.get("server_step", {})):  # not the lengths and cosines of clients
        yield f"server_step/{key}", value
    for key, value in _numbers(record.get("privacy", {})):
        yield f"privacy/{key}", value
    for phase, seconds in record.get("seconds", {}).items():
        yield f"seconds/{phase}", seconds


def _numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a table, without its texts, lists and tables, such as those of a calibration."""
    yield from ((key, value) for key, value in tree.items() if isinstance(value, int | float))


def _nested(tree: Mapping[str, Any], place: str) -> Iterator[tuple[str, float]]:
    """The numbers of a table and of the tables in it, under the path of their keys."""
    yield from ((f"{place}/{key}", value) for key, value in _numbers(tree))
    for key, part in tree.items():
        if isinstance(part, Mapping):
            yield from _nested(part, f"{place}/{key}")


def mlflow_name(name: str) -> str:
    """A number's name as MLflow takes it: letters, digits and _ / - . : and spaces.

    "@" becomes "_at_". Where another character is replaced, a hash of the name follows, so that no two names are one.
    """
    readable = name.replace("@", "_at_")
    plain = re.sub(r"[^A-Za-z0-9_/\-.: ]", "_", readable)
    return plain if plain == readable else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def plain_name(name: str) -> str:
    """A name of letters, digits, dots, - and _, as trackers take it for a project."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "fedrlvr"


def _brief(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    first = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def check_trackers(settings: RunConfig) -> None:
    """Check that the package of each tracker is installed; nothing is imported.

    Raises:
        MissingExtraError: a package is missing; the text names the setting and the extra.
    """
    for kind in settings.trackers:
        try:
            missing = importlib.util.find_spec(_PACKAGES[kind]) is None
        except (ImportError, ValueError):
            missing = True
        if missing:
            raise MissingExtraError(
                f"run.trackers names {kind!r}, which needs the extra of that name: pip install 'fedrlvr[{kind}]'."
            )


def make_trackers(
    settings: RunConfig, directory: Path, earlier: Callable[[Path], Sequence[Mapping[str, Any]]]
) -> list[Tracker]:
    """The trackers of `run.trackers`, in their order.

    Raises:
        MissingExtraError: as `check_trackers`, or a package cannot be imported.
        ConfigError: a tracker cannot be used as it is configured; the text names the setting.
    """
    check_trackers(settings)
    trackers = []
    for kind in settings.trackers:
        for name, value in _SWITCHES.get(kind, {}).items():
            os.environ.setdefault(name, value)
        try:
            importlib.import_module(_PACKAGES[kind])
            writer = _WRITERS[kind](directory, settings)
        except ImportError as error:
            raise MissingExtraError(
                f"run.trackers names {kind!r}, whose package cannot be imported ({_brief(error)}). Install it again: "
                f"pip install 'fedrlvr[{kind}]'."
            ) from None
        trackers.append(Tracker(kind, writer, directory, earlier))
    return trackers
