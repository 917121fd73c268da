"""Evaluate a run, one of its checkpoints, an adapter or the base model on a config's held-out problems: what
`fedrlvr eval` does, and what `fedrlvr verdict` compares.

Each client is evaluated as in a run: with its own held-out problems and random numbers. So a run's newest checkpoint
gives the scores that its last evaluation wrote to metrics.jsonl, and two evaluations can be compared by problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.client.app import CohortApp
from fedrlvr.client.request import ClientRequest, Release
from fedrlvr.client.state import OWN_ADAPTER
from fedrlvr.config import AggregationConfig, Config, LabelsSupervision, LoraConfig
from fedrlvr.config.personal import PersonalConfig
from fedrlvr.config.sections import Split
from fedrlvr.errors import AdapterError, ConfigError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import in_model_order, load_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.seeds import stream
from fedrlvr.server.checkpoint import Checkpoint
from fedrlvr.server.run_directory import is_deployed
from fedrlvr.server.saved_adapter import SavedRun, load_adapter
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import RUN_ID, LocalGrid
from fedrlvr.simulation.run import new_cohort, with_secrets
from fedrlvr.tasks.deal import deal, fit_prompts
from fedrlvr.wire.messages import SourceScores, adapter_to_arrays

ClientScores = dict[str, list[SourceScores]]
"""Sums of pass@1 by source, for each client."""
ClientRates = dict[str, list[float]]
"""Pass rates of each client's problems, in the order of the problems; they never leave this process."""


class RateKeeper(Release):
    """Keeps the pass rate of every evaluated problem, for a comparison problem by problem within this process."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: ClientRates = {}

    def rated(self, request: ClientRequest, rates: Sequence[float]) -> None:
        """Keep the rates by the client's name."""
        self.rates[request.client.name] = list(rates)


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation of every client: sums by source, and the pass rate of each problem.

    also: what `evaluate.also` has measured besides, as in metrics.jsonl; empty where it is unset.
    """

    scores: ClientScores
    rates: ClientRates = field(repr=False)
    also: Mapping[str, Any] = field(default_factory=dict)


def evaluate(config: Config, adapter: Path | None) -> Evaluation:
    """Evaluation of every client with one adapter, in any directory that `load_adapter` reads, or (None) the base
    model; and of what else `evaluate.also` names.

    Raises:
        AdapterError: the adapter is unreadable or of another model.
        FedrlvrError: as the config, the data and the model say.
    """
    loaded = load_adapter(adapter) if adapter is not None else None
    evaluator = Evaluator(config)
    return replace(evaluator.of_everybody(loaded, str(adapter)), also=evaluator.also(loaded, str(adapter)))


def evaluate_run(run: SavedRun, *, personal: bool = False) -> tuple[int | None, Evaluation]:
    """The round of a run's checkpoint and its evaluation; the round is None where the checkpoints have been deleted.

    personal: with each client's personal adapter, instead of the global one; clients without one are left out.

    Raises:
        ConfigError: the clients' problems are not on this machine, or the run makes no personal adapters.
        AdapterError: the run has no adapter yet.
        FedrlvrError: as `evaluate`.
    """
    if is_deployed(run.directory):
        raise ConfigError(
            f"{run.directory}: this run's clients are organisations on their own machines, and so are their held-out "
            "problems. Their scores are in metrics.jsonl; for problems on this machine give a TOML configuration and "
            f"--adapter {run.directory}."
        )
    if personal or run.config.personal.method.keeps is not None:  # where no adapter is everybody's
        return None, _personal(run)
    evaluator = Evaluator(run.config)
    round_, evaluation = evaluator.of_run(run)
    if run.config.evaluate.also is not None:
        evaluation = replace(evaluation, also=evaluator.also(run.adapter(), str(run.directory)))
    return round_, evaluation


def _personal(run: SavedRun) -> Evaluation:
    method = run.config.personal.method
    if not method.makes_adapters:
        raise ConfigError(f"{run.directory}: personal.type = {method.name!r} makes no personal adapters.")
    adapters = personal_adapters(run)
    if not adapters:
        raise AdapterError(f"{run.directory}: the run has no personal adapters, since it is not finished. Resume it.")
    return Evaluator(run.config).of_each(adapters)


def personal_adapters(run: SavedRun) -> dict[str, Adapter]:
    """The personal adapters of a finished run, by client; clients without one are left out.

    Raises:
        AdapterError: an adapter cannot be read.
    """
    if not run.config.personal.method.makes_adapters:
        return {}
    saved = {client: run.personal_adapter(client) for client in run.config.federation.names}
    return {client: adapter for client, adapter in saved.items() if adapter is not None}


def own_adapters(run: SavedRun, checkpoint: Checkpoint | None) -> dict[str, Adapter]:
    """Each training client's own adapter in a run of the arm `local`: of a checkpoint, or (None) the exported ones.

    Raises:
        CheckpointError, AdapterError: they cannot be read.
    """
    names = run.config.federation.training
    if checkpoint is None:
        return {client: load_peft(run.directory / "adapter" / client) for client in names}
    return {client: run.own_adapter(checkpoint, client) for client in names}


class Evaluator:
    """The clients of a config, each with its held-out problems, on one base model.

    cohort: a cohort of the config's model to use, which is changed where an adapter has another rank; None loads one.
    """

    def __init__(self, config: Config, cohort: Cohort | None = None) -> None:
        run = config.run.model_copy(update={"directory": None, "ledgers": None})  # so that no ledger is opened
        config = config.model_copy(update={"run": run})
        self.cohort = cohort or new_cohort(config)
        self._lora = config.lora
        dealt = fit_prompts(deal(config), self.cohort.base, config)
        self.digest = dealt.digest
        self.clients = dict(enumerate(with_secrets(dealt.clients, config.run.secrets), start=1))
        self.config = config.model_copy(update={"supervision": LabelsSupervision()})

    def of_run(self, run: SavedRun) -> tuple[int | None, Evaluation]:
        """The round of the checkpoint of a run of this config, and its evaluation, as in the run itself.

        Raises:
            AdapterError, CheckpointError: as `SavedRun.newest` and `SavedRun.adapter`.
        """
        saved = run.newest(lambda c: (c, own_adapters(run, c) if run.local else {}))
        if saved is not None:
            checkpoint, adapters = saved
            return checkpoint.round, self._evaluation(self.config, checkpoint, adapters)
        if run.local:
            return None, self._evaluation(self.config, adapters=own_adapters(run, None))
        return None, self.of_everybody(run.adapter(), str(run.directory / "adapter"))

    def of_everybody(self, loaded: Adapter | None, place: str = "the adapter") -> Evaluation:
        """Evaluation of every client with this adapter, of whatever rank and alpha; None is the base model.

        Raises:
            AdapterError: the adapter is of another model.
        """
        lora = self.config.lora.model_copy(update={"rank": self.config.lora.largest})
        if loaded is not None:
            lora = lora.model_copy(update={"rank": loaded.rank, "alpha": loaded.alpha})
        arm = "central" if self.config.federation.arm == "central" else "federated"
        config = self._alone(arm, lora)
        if loaded is None:
            return self._evaluation(config)
        initial = self._seat(config.lora)
        return self._evaluation(config, Checkpoint(0, in_model_order(loaded, initial, place=place), {}))

    def also(self, loaded: Adapter | None, place: str = "the adapter") -> dict[str, Any]:
        """Measure the base model and this adapter as `evaluate.also` says; empty where it is unset.

        Raises:
            AdapterError: the adapter is of another model.
            FedrlvrError: as `AlsoCheck` says.
        """
        if self.config.evaluate.also is None:
            return {}
        from fedrlvr.simulation.also import AlsoCheck

        check = AlsoCheck(self.config, self.cohort.base)
        lora = self.config.lora.model_copy(update={"rank": self.config.lora.largest})
        if loaded is not None:
            lora = lora.model_copy(update={"rank": loaded.rank, "alpha": loaded.alpha})
        initial = self._seat(lora)
        before = {"before": check.measure(self.cohort, initial)}
        if loaded is None:
            return before
        return {**before, "after": check.measure(self.cohort, in_model_order(loaded, initial, place=place))}

    def of_each(self, adapters: Mapping[str, Adapter], split: Split | None = None) -> Evaluation:
        """Evaluation of these clients, each with an adapter of its own, of whatever rank and alpha.

        split: problems to evaluate on; None is that of the config.

        Raises:
            AdapterError: an adapter is of another model.
        """
        # Rules that change the base weights end in adapters whose rank and alpha have grown.
        largest = max(adapters.values(), key=lambda adapter: adapter.rank)
        adapters = {client: adapter.with_alpha(largest.alpha) for client, adapter in adapters.items()}
        ranks = {client: adapter.rank for client, adapter in adapters.items()}
        rank = ranks if len(set(ranks.values())) > 1 else largest.rank
        lora = self.config.lora.model_copy(update={"rank": rank, "alpha": largest.alpha})
        config = self._alone("local", lora)
        if split is not None:
            config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"split": split})})
        everybody = self._evaluation(config, adapters=adapters)
        scores = {client: of_client for client, of_client in everybody.scores.items() if client in adapters}
        return Evaluation(scores, {client: everybody.rates[client] for client in adapters})

    def _alone(self, arm: str, lora: LoraConfig) -> Config:
        """The config for whole adapters, which are sent or kept, and nothing else."""
        federation = self.config.federation.model_copy(update={"arm": arm})
        changes: dict[str, Any] = {"lora": lora, "aggregation": AggregationConfig(), "federation": federation}
        # Where clients keep a part of their adapter, a message would bring the other part alone.
        return self.config.model_copy(update={**changes, "personal": PersonalConfig()})

    def _seat(self, lora: LoraConfig) -> Adapter:
        """Make the cohort take adapters of this shape; returns an adapter that leaves the model as it is."""
        if lora != self._lora:
            self.cohort.stack.remove()
            self.cohort, self._lora = Cohort(self.cohort.base, lora, self.cohort.engine), lora
        return self.cohort.fresh_adapter(stream(self.config.run.seed, "adapter"))

    def _evaluation(
        self, config: Config, checkpoint: Checkpoint | None = None, adapters: Mapping[str, Adapter] | None = None
    ) -> Evaluation:
        """Evaluation of the model of a checkpoint; without one of that of a run that begins.

        adapters: by client, in the arm `local`.
        """
        initial = self._seat(config.lora)
        ranks = config.lora.rank if isinstance(config.lora.rank, dict) else {}
        clients = {node: replace(client, rank=ranks.get(client.name)) for node, client in self.clients.items()}
        names = {node: client.name for node, client in clients.items()}
        strategy = FederatedRLVR(config, names, initial, Observer())
        if config.model.adapter is not None:
            strategy.model.begin_with(None)
        if checkpoint is not None:
            checkpoint.adapter.check_like(initial, place=f"the checkpoint of round {checkpoint.round}")
            strategy.model.restore(replace(checkpoint, strategy={}))  # no client remembers a part of it
        contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in clients}
        for node, name in names.items():
            if adapters and name in adapters:
                like = initial.at_rank(config.lora.rank_of(name))
                adapter = in_model_order(adapters[name], like, place=f"the adapter of {name}")
                contexts[node].state[OWN_ADAPTER] = adapter_to_arrays(adapter)
        keeper = RateKeeper()
        app = CohortApp(self.cohort, clients, initial, Observer(), release=keeper)
        grid = LocalGrid(app, contexts)
        arrays = adapter_to_arrays(strategy.adapter, strategy.model.halves)
        messages = strategy.configure_evaluate(0, arrays, ConfigRecord(), grid)
        strategy.aggregate_evaluate(0, grid.send_and_receive(messages))
        return Evaluation(strategy.record.scores, keeper.rates)
