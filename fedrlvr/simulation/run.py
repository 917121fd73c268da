"""One run on this machine, from a config to a run directory: the local engine. What it shares with a run over Flower
is in server/run.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict

from fedrlvr.client.app import CohortApp
from fedrlvr.client.request import Release
from fedrlvr.config import Config, load_resolved
from fedrlvr.errors import ConfigError
from fedrlvr.policy.base import load_base, threads_here
from fedrlvr.policy.choices import choices
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.observer import EngineChosen, Observer
from fedrlvr.reporting.responses import ResponseLog
from fedrlvr.reporting.trackers import check_trackers
from fedrlvr.seeds import stream
from fedrlvr.server.exchange import PublicSet
from fedrlvr.server.run import Also, RunResult, Server, Wrap, public_set
from fedrlvr.server.run_directory import check_local, check_rounds, check_unused, locked, new_directory
from fedrlvr.server.starting_adapter import beginning
from fedrlvr.simulation.grid import RUN_ID, Handler, LocalGrid
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deal import check_dealt, deal, fit_prompts
from fedrlvr.tasks.demonstrations import demonstrations_digest, with_demonstrations
from fedrlvr.tasks.partition import who_holds_what

__all__ = ["Federation", "RunResult", "Wrap", "new_cohort", "resume", "run", "settled"]


After = Callable[[RunResult, Cohort], None]
"""Continuation of a run that has ended, on the same cohort."""


def run(config: Config, *, observer: Observer | None = None, after: After | None = None) -> RunResult:
    """Run a federation on this machine, as one cohort.

    after: is called when the run has ended, while its directory is still locked.

    Raises:
        FedrlvrError: whatever is wrong with the config, the data, the model, a round or the disk; rounds that are done
            stay done.
    """
    directory = config.run.directory or new_directory(config.run.name)
    with locked(directory):
        check_unused(directory)
        return _go(settled(config, directory), directory, observer, after, resume=False)


def resume(
    directory: Path, overrides: Sequence[str] = (), *, observer: Observer | None = None, after: After | None = None
) -> RunResult:
    """Go on with the run in a directory, exactly as if it had never stopped.

    overrides: `train.rounds=N`, to go on for longer. The learning rate then follows its schedule over N rounds, from
        the first new round on. after: as for `run`.

    Raises:
        ConfigError: the directory holds no run or one of organisations on their own machines, more rounds than
            train.rounds are done, or an override is of another setting.
        CheckpointError: a checkpoint or memory is missing or damaged, or another process is at work on the run.
        FedrlvrError: as `run`.
    """
    config = load_resolved(directory / "config.json", overrides)
    check_local(directory)
    here = config.run.model_copy(update={"directory": directory.absolute()})  # it may have been moved
    config = config.model_copy(update={"run": here})
    with locked(directory):
        check_rounds(directory, config)
        return _go(config, directory, observer, after, resume=True)


def settled(config: Config, directory: Path) -> Config:
    """The config with the values that are fixed when a run starts: its directory, its paths (relative to the working
    directory until then), and its threads."""
    # The number of threads decides how sums are rounded, and a resumed run must round alike.
    engine = config.engine.model_copy(update={"threads": config.engine.threads or threads_here(config.model)})
    where = config.run.model_copy(update={"directory": directory})
    return config.model_copy(update={"run": where, "engine": engine}).with_absolute_paths()


def new_cohort(config: Config) -> Cohort:
    """The base model and the cohort that sits on it, checked before any data is read; sets torch's threads.

    Raises:
        ModelError: as `load_base` and `Cohort.self_check`.
    """
    torch.set_num_threads(config.engine.threads or threads_here(config.model))
    cohort = Cohort(load_base(config.model, config.prompt), config.lora, config.engine)
    cohort.self_check(config.run.seed)
    return cohort


def _go(config: Config, directory: Path, observer: Observer | None, after: After | None, *, resume: bool) -> RunResult:
    check_trackers(config.run)  # before a model is loaded
    observer, cohort = observer or Observer(), new_cohort(config)
    observer.notify(EngineChosen(choices(cohort)))
    federation = Federation(config, directory, cohort, observer)
    result = federation.go(resume=resume)
    if after is not None:
        after(result, federation.cohort)
    return result


def with_secrets(clients: Sequence[ClientData], directory: Path | None) -> list[ClientData]:
    """Clients that mix the secrets in a directory into their streams.

    Raises:
        ConfigError: a client's secret is missing, or empty.
    """
    if directory is None:
        return list(clients)
    secrets = {client.name: directory / f"{client.name}.secret" for client in clients}
    try:
        read = {name: path.read_bytes() for name, path in secrets.items()}
    except OSError as error:
        raise ConfigError(f"run.secrets: {error.filename} cannot be read ({error.strerror}).") from None
    if empty := [name for name, secret in read.items() if not 0 < len(secret) <= 64]:
        raise ConfigError(f"run.secrets: {secrets[empty[0]]} does not hold 1 to 64 bytes.")
    return [replace(client, secret=read[client.name]) for client in clients]


def also_of(config: Config, cohort: Cohort) -> Also | None:
    """The measurement of a run's model at its end that `evaluate.also` names; None if there is none.

    Raises:
        ConfigError, DataError, GradingError: the text or the task cannot be used.
    """
    if config.evaluate.also is None:
        return None
    from fedrlvr.simulation.also import AlsoCheck

    return partial(AlsoCheck(config, cohort.base).both, cohort)


class Federation:
    """All parts of a run, put together. Several federations may share one cohort, each with a name of its own (a
    sweep).

    wrap: makes of the strategy the one whose hooks are called (Flower's differential privacy, say).
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        cohort: Cohort,
        observer: Observer,
        name: str = "",
        wrap: Wrap | None = None,
    ) -> None:
        self.config = config
        self.cohort = cohort
        self.dealt = fit_prompts(deal(config), cohort.base, config)
        check_dealt(self.dealt, config.data)
        self._imitates = getattr(config.supervision, "responses", None) == "data"
        if self._imitates:
            self.dealt = with_demonstrations(self.dealt, cohort.base, config.sampling.max_new_tokens)
        begin = beginning(config, directory, cohort.fresh_adapter(stream(config.run.seed, "adapter")))
        self.initial = begin.adapter
        clients = dict(enumerate(with_secrets(self.dealt.clients, config.run.secrets), start=1))
        self.names = {node: client.name for node, client in clients.items()}
        self.server = Server(
            config,
            directory,
            cohort.base,
            begin,
            self._public_set(),
            observer,
            asks=self._effective(),
            wrap=wrap,
            also=also_of(config, cohort),
        )
        # With their secrets, organisations are repeated as they train.
        release = Release(scale_free=config.run.secrets is not None)
        log = ResponseLog(directory, config.run.responses)
        self.app = CohortApp(cohort, clients, self.initial, self.server.observer, name, release, log)

    def go(self, *, resume: bool, handler: Handler | None = None) -> RunResult:
        """Run all rounds that are not done, and return the result.

        handler: what answers the messages; None is this federation's own client code.
        """
        contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in self.names}
        memories = {self.names[node]: context for node, context in contexts.items()}
        grid = LocalGrid(handler or self.app, contexts)
        return self.server.go(grid, self.names, self._holdings(), memories, resume=resume)

    def _holdings(self) -> dict[str, Any]:
        digest = demonstrations_digest(self.dealt) if self._imitates else self.dealt.digest
        holdings: dict[str, Any] = {"digest": digest}
        validation = who_holds_what({client.name: client.validation for client in self.dealt.clients})
        tables = {"train": self.dealt.train_table, "validation": validation, "test": self.dealt.test_table}
        for key, table in tables.items():
            if table or key != "validation":
                holdings[key] = [[h.client, h.source, h.problems] for h in table]
        return holdings

    def _public_set(self) -> PublicSet | None:
        reward = self.dealt.clients[0].reward  # everybody's, the server's included
        return public_set(self.dealt.public, self.cohort.base, reward)

    def _effective(self) -> Config:
        """The central arm's one client takes as many problems a step as all clients that train would together."""
        if self.config.federation.arm != "central":
            return self.config
        train = self.config.train
        many = train.problems_per_step * len(self.config.federation.training)
        return self.config.model_copy(update={"train": train.model_copy(update={"problems_per_step": many})})
