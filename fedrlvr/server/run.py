"""The server of a run: rounds over a Flower grid, from a config to a run directory.

config.json   about.json   metrics.jsonl   holdings.json   checkpoints/   clients/   adapter/   report.html

The local engine (run.py) gives it a grid of clients in this process, `fedrlvr.deployment` one of organisations.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrlvr.adapter import Adapter
from fedrlvr.client.state import OWN_ADAPTER, arrays_in
from fedrlvr.client.supervisor import shared_numbers
from fedrlvr.config import Config
from fedrlvr.errors import CheckpointError, ConfigError, DataError
from fedrlvr.files import atomic_directory, atomic_text, read_json
from fedrlvr.out_of_memory import memory_limit
from fedrlvr.policy.base import Base
from fedrlvr.policy.peft_format import base_reference, save_peft
from fedrlvr.reporting.advice import Adviser, trained_nothing
from fedrlvr.reporting.observer import AlsoMeasured, Listeners, Observer, PersonalEnded, RunEnded, RunFailed, RunStarted
from fedrlvr.reporting.provenance import write_about
from fedrlvr.reporting.report import ReportWriter
from fedrlvr.reporting.trackers import make_trackers
from fedrlvr.reporting.under_way import UnderWayNote
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.server.exchange import PublicSet
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.server.metrics_log import MetricsLog, read_metrics
from fedrlvr.server.personal import export_personal, personal_adapters
from fedrlvr.server.run_directory import personal_directory
from fedrlvr.server.starting_adapter import START, Beginning
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.rewards import Reward
from fedrlvr.wire.messages import arrays_to_adapter

Also = Callable[[GlobalModel], Mapping[str, Any]]
"""Numbers of a model at the end of a run, for the last line of metrics.jsonl."""
Wrap = Callable[[FederatedRLVR], Strategy]


@dataclass(frozen=True)
class RunResult:
    """A finished run: where it lies, and its records (the lines of metrics.jsonl)."""

    directory: Path
    config: Config
    records: list[dict[str, Any]]

    @property
    def trained_nothing(self) -> bool:
        """Whether no optimizer step had a gradient, so that the adapter is the one that the run started from."""
        return trained_nothing(self.records)


def public_set(problems: Sequence[Problem], base: Base, reward: Reward) -> PublicSet | None:
    """The public problems with the data to check responses to them; None if there are none."""
    if not problems:
        return None
    return PublicSet(
        problems,
        base.decode,
        reward,
        base.model_id,
        base.tokenizer_id,
        base.vocabulary,
        eos_ids=base.eos_ids,
        special_ids=base.special_ids,
        stops=base.stops,
    )


def _settled(config: Config, adapter: Adapter, *, wrapped: bool) -> Config:
    """The config with the number format that `aggregation.precision = "auto"` chooses for these adapters.

    wrapped: a strategy around ours sees adapters in float32, and the plain mean, where the config sets neither.
    """
    how = config.aggregation
    if wrapped and config.federation.arm == "federated":  # elsewhere nothing of the section may be set
        given = {"server_learning_rate": how.server_learning_rate, "precision": how.precision}
        plain = {"server_learning_rate": 1.0, "precision": "float32"}
        how = how.model_copy(update={name: plain[name] for name, value in given.items() if value in (None, "auto")})
    return config.model_copy(update={"aggregation": how.settled(config, adapter.nbytes)})


class Server:
    """Runs the rounds of one federation, and writes them down.

    begin: what everybody begins with. public: what exchanges are about, if any.
    asks: the config that clients are asked by, where it differs from what is written down (the arm `central`).
    wrap: makes of the strategy the one whose hooks are called (Flower's differential privacy, say), which sees the
        plain mean unless the config sets a server's step.
    also: measures the model at the end of the run (`evaluate.also`); None: nothing else is measured.
    observer: the last of the run's listeners (`self.observer`), which the server closes at the end; but for advice.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        base: Base,
        begin: Beginning,
        public: PublicSet | None,
        observer: Observer,
        *,
        asks: Config | None = None,
        wrap: Wrap | None = None,
        also: Also | None = None,
    ) -> None:
        self.config = _settled(config, begin.adapter, wrapped=wrap is not None)
        self.asks = self.config if asks is None else _settled(asks, begin.adapter, wrapped=wrap is not None)
        self.directory = directory
        self.base = base
        self.begin = begin
        self.initial = begin.adapter
        self.public = public
        self.wrap = wrap
        self.also = also
        self.observer = Listeners(
            [
                MetricsLog(directory),  # first, so that nobody hears of a round whose line is not on disk
                *make_trackers(config.run, directory, read_metrics),
                ReportWriter(directory, self.config),
                UnderWayNote(directory),
                observer,
                Adviser(observer, read_metrics),  # after the observer, so that a round's line stands before its advice
            ]
        )

    def go(
        self,
        grid: Grid,
        names: Mapping[int, str],
        holdings: Mapping[str, Any],
        memories: Mapping[str, Context],
        *,
        resume: bool,
    ) -> RunResult:
        """Run all rounds that are not done, and return the result.

        names: the clients by node id. holdings: what is known of who holds what, with a `digest` that is the same when
        a run goes on. memories: of those clients whose memory this process keeps; a resume fills them.

        Raises:
            FedrlvrError: whatever is wrong with the config, the data, a round or the disk; rounds that are done stay.
        """
        withdrawn = self.config.federation.withdrawn
        memories = {name: context for name, context in memories.items() if name not in withdrawn}
        with self._closing_listeners():
            first_round = 0
            checkpoints = Checkpoints(self.directory, self.config.run.keep_checkpoints, memories)
            checkpoint = checkpoints.load() if resume else None
            if checkpoint is not None:
                first_round = checkpoint.round + 1
                checkpoint.adapter.check_like(self.initial, place=f"the checkpoint of round {checkpoint.round}")
                for name, context in memories.items():
                    context.state = checkpoints.load_memory(checkpoint.round, name)
            self._write_down(holdings, same_problems=checkpoint is not None)
            write_about(self.directory, first_round)
            probes = shared_numbers(self.base, self.config)
            strategy = FederatedRLVR(self.asks, names, self.initial, self.observer, self.public, probes)
            if self.begin.given is not None:
                strategy.model.begin_with(self.begin.change)
            for part, declared in strategy.participation.declared.items():
                for client, _, problems in holdings.get(part, ()):
                    declared[client] = declared.get(client, 0) + problems
            if checkpoint is not None:
                strategy.restore(checkpoint)
            if self.wrap and probes is not None:
                raise ConfigError(
                    "supervision.share_probes: a strategy around this one sees adapters, and whatever it does to them "
                    "(noise, clipping, secure sums) the probes would escape. Set share_probes = false."
                )
            if self.wrap and self.config.personal.method.beside_others:
                raise ConfigError(
                    f"personal.type = {self.config.personal.type!r}: a strategy around this one sees the mean of all "
                    "adapters, and whatever it does to it (noise, clipping, secure sums) the means that clients are "
                    "sent would escape. Choose another personal.type."
                )
            if self.wrap and self.config.aggregation.keep_adapters:
                raise ConfigError(
                    "aggregation.keep_adapters: a strategy around this one replaces the mean, from which the kept "
                    "adapters could not be subtracted. Set keep_adapters = false."
                )
            if self.wrap and self.config.aggregation.precision_down != "float32":
                raise ConfigError(
                    f"aggregation.precision_down = {self.config.aggregation.precision_down!r}: a strategy around this "
                    "one measures changes from the server's adapter, and clients change what they received. Set "
                    "'float32'."
                )
            hooks = self.wrap(strategy) if self.wrap else None
            train, timeout = self.config.train, self.config.federation.deadline
            clients = list(names.values())
            self.observer.notify(
                RunStarted(str(self.directory), clients, train.rounds, train.local_steps, first_round=first_round)
            )
            strategy.start(grid, checkpoints, first_round=first_round, timeout=timeout, hooks=hooks)
            if self.config.personal.method.makes_adapters:
                self._personal(strategy, grid, memories, timeout)
            if self.also is not None and "also" not in read_metrics(self.directory)[-1]:
                self.observer.notify(AlsoMeasured(self.also(strategy.model)))
            self._export(strategy.model, memories)
            records = read_metrics(self.directory)
            self.observer.notify(RunEnded(records))
            return RunResult(self.directory, self.config, records)

    @contextlib.contextmanager
    def _closing_listeners(self) -> Iterator[None]:
        try:
            with memory_limit():  # the server's own; clients name their phase
                yield
        except Exception as error:
            self.observer.notify(RunFailed(str(error)))
            raise
        finally:
            self.observer.close()

    def _write_down(self, holdings: Mapping[str, Any], *, same_problems: bool) -> None:
        """Write the given adapter, config and holdings; a run that goes on must have the problems it began with."""
        path = self.directory / "holdings.json"
        if same_problems and _digest_in(path) not in (None, holdings["digest"]):
            raise DataError(
                f"{self.directory}: the problems are not those the run was started with, so it cannot go on exactly. "
                "Restore the data, or start a new run."
            )
        if self.begin.given is not None and not (self.directory / START).is_dir():
            with atomic_directory(self.directory / START) as directory:
                save_peft(self.begin.given, directory, base_name=base_reference(self.config.model.name))
        atomic_text(self.directory / "config.json", self.config.model_dump_json(indent=2) + "\n")
        atomic_text(path, json.dumps(holdings, indent=1) + "\n")

    def _personal(self, strategy: FederatedRLVR, grid: Grid, memories: Mapping[str, Context], timeout: float) -> None:
        """Have the clients make their personal adapters, unless that is done."""
        last = read_metrics(self.directory)[-1]
        if not self.config.personal.method.finishes:  # the last evaluation has made them
            without = {
                *last.get("left_out", ()),
                *self.config.federation.excluded,
            }  # who are measured, and keep nothing
            export_personal(self.directory, strategy, self.base, memories, without)
            return
        done = last.get("personal")
        if done is not None:
            made = set(memories) - set(done.get("left_out", ()))
            if all(personal_directory(self.directory, client).is_dir() for client in made):
                return
        record = personal_adapters(strategy, grid, timeout)
        export_personal(self.directory, strategy, self.base, memories, record.get("left_out", ()))
        self.observer.notify(PersonalEnded(record))

    def _export(self, model: GlobalModel, memories: Mapping[str, Context]) -> None:
        base_name, fused = base_reference(self.config.model.name), self.base.fused_experts
        try:
            with atomic_directory(self.directory / "adapter") as directory:  # once it is there the run is finished
                if self.config.federation.arm != "local":
                    save_peft(model.whole(), directory, base_name=base_name, fused_experts=fused)
                    return
                for name, context in memories.items():
                    like = self.initial.at_rank(self.config.lora.rank_of(name))
                    arrays = arrays_in(context, OWN_ADAPTER)  # a client that is excluded has none of its own
                    adapter = like if arrays is None else arrays_to_adapter(arrays, like, place=name)
                    save_peft(adapter, directory / name, base_name=base_name, fused_experts=fused)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} All rounds are done and checkpointed: make room, then --resume writes it."
            ) from error


def _digest_in(path: Path) -> str | None:
    """The digest of a run's problems; None where it was not written, or cannot be read any more."""
    try:
        return str(read_json(path)["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
