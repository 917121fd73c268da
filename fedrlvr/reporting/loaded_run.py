"""A run's directory read back: its settings, its numbers as tables, and its figures. `fedrlvr.load_run` gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedrlvr.config import Config, load_resolved
from fedrlvr.errors import ConfigError, printable
from fedrlvr.files import atomic_text, read_json
from fedrlvr.reporting import run_tables
from fedrlvr.reporting.figures import Curve, draw_curves, draw_evaluations, standalone
from fedrlvr.reporting.provenance import latest_versions, read_about
from fedrlvr.reporting.scores import evaluations, series
from fedrlvr.reporting.story import History, tell
from fedrlvr.reporting.verdict import read_verdict
from fedrlvr.server.metrics_log import read_metrics

Table = Any
"""A pandas DataFrame where pandas is installed, else a list of dicts, one for each row."""

CURVES = {
    "reward": Curve("reward", "Mean reward in training"),
    "pass@1": Curve("pass@1", "pass@1 in training", percent=True),
    "response_length": Curve("response_length", "Response length, tokens"),
    "kl_to_base": Curve("kl_to_base", "KL to the base model, per token"),
    "zero_variance_groups": Curve("zero_variance_groups", "Groups whose rewards are all equal", percent=True),
}
"""Figures of the clients' numbers over the rounds, beside that of held-out pass@1."""


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG, which a notebook shows as it is.

    names: of the lines, in the order of their colours; none where a figure has more lines than colours.
    """

    title: str
    svg: str
    names: Sequence[str] = ()

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: Path | str) -> Path:
        """Write the figure to a file, which any browser opens, and return its path.

        Raises:
            CheckpointError: the file cannot be written.
        """
        atomic_text(Path(path), self.svg)
        return Path(path)


@dataclass(frozen=True)
class LoadedRun:
    """A run as its directory holds it, finished or not.

    settings: the tree of config.json, also of another release. records: the lines of metrics.jsonl. about: the command,
    versions and machine; empty where the run did not write them.
    """

    directory: Path
    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> Config:
        """The configuration that the run was started with.

        Raises:
            ConfigError: another release has written it, with settings that this one does not know.
        """
        return load_resolved(self.directory / "config.json")

    @property
    def finished(self) -> bool:
        """Whether all rounds are done and the adapter is exported."""
        return (self.directory / "adapter").is_dir() and (self.directory / "report.html").exists()

    @property
    def version(self) -> str | None:
        """The release of fedrlvr that the run was last continued with; None where that is not known."""
        return latest_versions(self.about).get("fedrlvr")

    @property
    def story(self) -> list[str]:
        """The report's sentences on what happened."""
        planned = int(self.settings.get("train", {}).get("rounds", 0))
        sentences = tell(History(self.records, planned, read_verdict(self.directory, planned)))
        return [printable(sentence) for sentence in sentences.values()]

    @property
    def rounds(self) -> Table:
        """A row for each round: pass@1 with its interval, means and sums over the clients, seconds."""
        return self._table(run_tables.round_rows)

    @property
    def clients(self) -> Table:
        """A row for each round and client, with all numbers that the client reported (docs/report.md)."""
        return self._table(run_tables.client_rows)

    @property
    def evaluations(self) -> Table:
        """A row for each evaluated round, client and source: n, pass@1 and its 95 % interval."""
        return self._table(run_tables.evaluation_rows)

    @property
    def exchanges(self) -> Table:
        """A row for each round, exchange of public responses and client; empty without exchanges."""
        return self._table(run_tables.exchange_rows)

    @property
    def labels(self) -> Table:
        """A row for each client that buys labels: asked for, used, in the ledger; empty where every label is there."""
        return self._table(run_tables.label_rows)

    @property
    def left_out(self) -> Table:
        """A row for each round and client whose reply was not used, with the reason."""
        return self._table(run_tables.left_out_rows)

    @property
    def seconds(self) -> Table:
        """A row for each round, with the server's wall-clock seconds by phase."""
        return self._table(run_tables.second_rows)

    @property
    def figures(self) -> dict[str, Drawing]:
        """Figures by name: `held-out` pass@1 over the rounds, and the clients' numbers of `CURVES` that the run has."""
        drawings = {}
        scored = evaluations(self.records)
        if len(scored) > 1:
            overall = {round_: value for round_, (value, _) in scored.items()}
            title = "Held-out pass@1 by round"
            drawings["held-out"] = Drawing(title, standalone(draw_evaluations(title, overall, {})))
        for name, curve in CURVES.items():
            if lines := series(self.records, curve.key):
                drawings[name] = Drawing(curve.title, standalone(draw_curves(curve, lines)), list(lines))
        return drawings

    def _table(self, rows: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]) -> Table:
        table = rows(self.records)
        try:
            import pandas
        except ImportError:
            return table
        return pandas.DataFrame(table, columns=run_tables.columns(table))


def load_run(directory: Path | str) -> LoadedRun:
    """Read a run's directory. Nothing is changed, and the run may be under way or of another release.

    Raises:
        ConfigError: the directory holds no run; the text names it.
        CheckpointError: metrics.jsonl is damaged; the text names the line.
    """
    directory = Path(directory).expanduser()
    path = directory / "config.json"
    try:
        settings = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{directory} is not a run directory: there is no {path}.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in ("run", "train")):
        raise ConfigError(f"{directory} is not a run directory: {printable(str(path))} is no run's configuration.")
    records = read_metrics(directory) if (directory / "metrics.jsonl").exists() else []
    return LoadedRun(directory, settings, records, read_about(directory))
