"""One run on this machine, from a config to a run directory: the local engine.

config.json   metrics.jsonl   holdings.json   checkpoints/   clients/   adapter/   report.html
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import Strategy

from fedrlvr.config import Config, load_resolved
from fedrlvr.errors import CheckpointError, ConfigError, DataError
from fedrlvr.federation.checkpoint import Checkpoints, atomic_text
from fedrlvr.federation.client import CohortApp
from fedrlvr.federation.exchange import PublicSet
from fedrlvr.federation.globalmodel import GlobalModel
from fedrlvr.federation.localgrid import RUN_ID, Handler, LocalGrid
from fedrlvr.federation.memory import OWN_ADAPTER
from fedrlvr.federation.messages import arrays_to_adapter
from fedrlvr.federation.record import RunLog, read_metrics
from fedrlvr.federation.sites import deal, fit_prompts
from fedrlvr.federation.strategy import FederatedRLVR
from fedrlvr.federation.supervising import shared_numbers
from fedrlvr.policy.base import load_base, threads_here
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import base_reference, save_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.reporting.report import write_report
from fedrlvr.reporting.trackers import make_tracker
from fedrlvr.seeds import stream

Wrap = Callable[[FederatedRLVR], Strategy]


@dataclass(frozen=True)
class RunResult:
    """A finished run: where it lies, and its records (the lines of metrics.jsonl)."""

    directory: Path
    config: Config
    records: list[dict[str, Any]]


def run(config: Config, *, observer: Observer | None = None) -> RunResult:
    """Run a federation on this machine, as one cohort.

    Raises:
        FedrlvrError: whatever is wrong with the config, the data, the model, a round or the disk; rounds that are done
            stay done.
    """
    directory = config.run.directory or _new_directory(config.run.name)
    if (directory / "config.json").exists():
        raise ConfigError(f"{directory} already holds a run. Go on with --resume, or give another run.directory.")
    return _alone(settled(config, directory), directory, observer, resume=False)


def resume(directory: Path, *, observer: Observer | None = None) -> RunResult:
    """Go on with the run in a directory, exactly as if it had never stopped.

    Raises:
        ConfigError: the directory holds no run.
        CheckpointError: a checkpoint or memory is missing or damaged.
        FedrlvrError: as `run`.
    """
    return _alone(load_resolved(directory / "config.json"), directory, observer, resume=True)


def settled(config: Config, directory: Path) -> Config:
    """The config with what is settled when a run starts, as it is written down: its directory and threads."""
    # The number of threads decides how sums are rounded, and a resumed run must round alike.
    engine = config.engine.model_copy(update={"threads": config.engine.threads or threads_here(config.model)})
    where = config.run.model_copy(update={"directory": directory})
    return config.model_copy(update={"run": where, "engine": engine})


def new_cohort(config: Config) -> Cohort:
    """The base model and the cohort that sits on it, unchecked (`Federation.self_check`); sets torch's threads.

    Raises:
        ModelError: as `load_base`.
    """
    torch.set_num_threads(config.engine.threads or threads_here(config.model))
    return Cohort(load_base(config.model), config.lora, config.engine)


def _alone(config: Config, directory: Path, observer: Observer | None, *, resume: bool) -> RunResult:
    federation = Federation(config, directory, new_cohort(config), observer or Observer())
    federation.self_check()
    return federation.go(resume=resume)


class Federation:
    """What a run is made of, put together. Several may stand on one cohort, each with a name of its own (a sweep).

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
        self.wrap = wrap
        self.directory = directory
        self.cohort = cohort
        self.observer = observer
        self.dealt = fit_prompts(deal(config), cohort.base, config)
        self.initial = cohort.fresh_adapter(stream(config.run.seed, "adapter"))
        self.checkpoints = Checkpoints(directory, config.run.keep_checkpoints)
        sites = dict(enumerate(self.dealt.sites, start=1))
        self.names = {node: site.name for node, site in sites.items()}
        self.app = CohortApp(cohort, sites, self.initial, observer, name)

    def self_check(self) -> None:
        """Assert that adapters reach the sampler, on a problem of the first site; once for each cohort.

        Raises:
            ModelError: as `Cohort.self_check`.
        """
        first = self.dealt.sites[0]
        prompt = self.cohort.base.encode(first.train[0].prompt, first.instruction)
        self.cohort.self_check(prompt, self.config.run.seed)

    def go(self, *, resume: bool, handler: Handler | None = None) -> RunResult:
        """All rounds that are not done, and the result.

        handler: what answers the messages; None is this federation's own client code.
        """
        names = self.names
        first_round = 0
        contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in names}
        checkpoint = self.checkpoints.load() if resume else None
        if checkpoint is not None:
            first_round = checkpoint.round + 1
            checkpoint.adapter.check_like(self.initial, whose=f"the checkpoint of round {checkpoint.round}")
            for node, name in names.items():
                contexts[node].state = self.checkpoints.load_memory(checkpoint.round, name)
        by_name = {names[node]: context for node, context in contexts.items()}
        self._write_down(same_problems=checkpoint is not None)
        tracker = make_tracker(self.config.run.tracker, self.directory)
        log = RunLog(self.directory, self.checkpoints, by_name, tracker)
        if checkpoint is not None:
            log.rewind(checkpoint.round)
        elif (self.directory / "metrics.jsonl").exists():
            atomic_text(self.directory / "metrics.jsonl", "")
        probes = shared_numbers(self.cohort.base, self.config)
        strategy = FederatedRLVR(self._effective(), names, self.initial, self.observer, self._public_set(), probes)
        if checkpoint is not None:
            strategy.restore(checkpoint)
        if self.wrap and probes is not None:
            raise ConfigError(
                "supervision.share_probes: a strategy around this one sees adapters, and whatever it does to them "
                "(noise, clipping, secure sums) the probes would escape. Set share_probes = false."
            )
        hooks = self.wrap(strategy) if self.wrap else None
        self.observer.started(str(self.directory), list(names.values()), self.config.train.rounds, max(first_round, 1))
        try:
            grid = LocalGrid(handler or self.app, contexts)
            strategy.start(grid, log, first_round=first_round, hooks=hooks)
        finally:
            tracker.close()
            self.observer.close()
        self._export(strategy.model, by_name)
        records = read_metrics(self.directory)
        write_report(self.directory, self.config, records)
        return RunResult(self.directory, self.config, records)

    def _public_set(self) -> PublicSet | None:
        base = self.cohort.base
        if not self.dealt.public:
            return None
        reward = self.dealt.sites[0].reward  # everybody's, the server's included
        return PublicSet(
            self.dealt.public, base.decode, reward, base.model_id, base.tokenizer_id, vocabulary=base.vocabulary
        )

    def _effective(self) -> Config:
        """The central arm's one client takes as many problems a step as all clients together would."""
        if self.config.federation.arm != "central":
            return self.config
        train = self.config.train
        many = train.problems_per_step * len(self.config.federation.names)
        return self.config.model_copy(update={"train": train.model_copy(update={"problems_per_step": many})})

    def _write_down(self, *, same_problems: bool) -> None:
        """Write config and holdings; a run that goes on must have the problems it began with."""
        path = self.directory / "holdings.json"
        holdings: dict[str, Any] = {"digest": self.dealt.digest}
        for key, table in (("train", self.dealt.train_table), ("test", self.dealt.test_table)):
            holdings[key] = [[h.client, h.source, h.problems] for h in table]
        if same_problems and _digest_in(path) not in (None, self.dealt.digest):
            raise DataError(
                f"{self.directory}: the problems are not those the run was started with, so it cannot go on exactly. "
                "Restore the data, or start a new run."
            )
        atomic_text(self.directory / "config.json", self.config.model_dump_json(indent=2) + "\n")
        atomic_text(path, json.dumps(holdings, indent=1) + "\n")

    def _export(self, model: GlobalModel, contexts: dict[str, Context]) -> None:
        base_name = base_reference(self.config.model.name)
        try:
            if self.config.federation.arm != "local":
                save_peft(model.whole(), self.directory / "adapter", base_name=base_name)
                return
            for name, context in contexts.items():
                arrays = context.state[OWN_ADAPTER]
                like = self.initial.at_rank(self.config.lora.rank_of(name))
                own = arrays_to_adapter(arrays, like, whose=name)  # type: ignore[arg-type]
                save_peft(own, self.directory / "adapter" / name, base_name=base_name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} All rounds are done and checkpointed: make room, then --resume writes it."
            ) from error


def _digest_in(path: Path) -> str | None:
    """The digest of a run's problems; None where it was not written, or cannot be read any more."""
    try:
        return str(json.loads(path.read_text("utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _new_directory(name: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"
