"""Evaluate a run, one of its checkpoints, an adapter or the base model on a config's held-out problems: what
`fedrlvr eval` does.

Each client is evaluated as in a run: with its own held-out problems and random numbers. So a run's newest checkpoint
gives the scores that its last evaluation wrote to metrics.jsonl.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Context, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.client.app import CohortApp
from fedrlvr.client.state import OWN_ADAPTER
from fedrlvr.config import AggregationConfig, Config, LabelsSupervision
from fedrlvr.errors import AdapterError, ConfigError
from fedrlvr.policy.peft_format import in_model_order, load_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.seeds import stream
from fedrlvr.server.checkpoint import Checkpoint
from fedrlvr.server.run_directory import RUN_ID_FILE
from fedrlvr.server.saved_adapter import SavedRun, load_adapter
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import RUN_ID, LocalGrid
from fedrlvr.simulation.run import new_cohort
from fedrlvr.tasks.deal import deal, fit_prompts
from fedrlvr.wire.messages import SourceScores, adapter_to_arrays

ClientScores = dict[str, list[SourceScores]]
"""Sums of pass@1 by source, for each client."""


def evaluate(config: Config, adapter: Path | None) -> ClientScores:
    """Scores of every client with one adapter, in any directory that `load_adapter` reads, or (None) the base model.

    Raises:
        AdapterError: the adapter is unreadable or of another model.
        FedrlvrError: as the config, the data and the model say.
    """
    loaded = load_adapter(adapter) if adapter is not None else None
    return _of_everybody(config, loaded, str(adapter))


def evaluate_run(run: SavedRun, *, personal: bool = False) -> tuple[int | None, ClientScores]:
    """The round of a run's checkpoint and its scores; the round is None where the checkpoints have been deleted.

    personal: with each client's personal adapter, instead of the global one; clients without one are left out.

    Raises:
        ConfigError: the clients' problems are not on this machine, or the run makes no personal adapters.
        AdapterError: the run has no adapter yet.
        FedrlvrError: as `evaluate`.
    """
    config = run.config
    if (run.directory / RUN_ID_FILE).exists():
        raise ConfigError(
            f"{run.directory}: this run's clients are organisations on their own machines, and so are their held-out "
            "problems. Their scores are in metrics.jsonl; for problems on this machine give a TOML configuration and "
            f"--adapter {run.directory}."
        )
    if personal or config.personal.method.keeps is not None:  # where no adapter is everybody's
        return None, _personal(run)
    arm = config.federation.arm
    saved = run.newest(lambda c: (c, _own_adapters(run, c) if arm == "local" else {}))
    if saved is None and arm == "local":
        adapters = {client: load_peft(run.directory / "adapter" / client) for client in config.federation.names}
        return None, _Evaluation(config).scores(adapters=adapters)
    if saved is None:
        return None, _of_everybody(config, run.adapter(), str(run.directory / "adapter"))
    checkpoint, adapters = saved
    return checkpoint.round, _Evaluation(config).scores(checkpoint, adapters=adapters)


def _personal(run: SavedRun) -> ClientScores:
    config = run.config
    if not config.personal.method.makes_adapters:
        raise ConfigError(f"{run.directory}: personal.type = {config.personal.type!r} makes no personal adapters.")
    saved = {client: run.personal_adapter(client) for client in config.federation.names}
    adapters = {client: adapter for client, adapter in saved.items() if adapter is not None}
    if not adapters:
        raise AdapterError(f"{run.directory}: the run has no personal adapters, since it is not finished. Resume it.")
    # Rules that change the base weights end in adapters whose rank and alpha have grown.
    largest = max(adapters.values(), key=lambda adapter: adapter.rank)
    adapters = {client: adapter.with_alpha(largest.alpha) for client, adapter in adapters.items()}
    ranks = {name: adapters[name].rank if name in adapters else largest.rank for name in config.federation.names}
    lora = config.lora.model_copy(update={"rank": ranks, "alpha": largest.alpha})
    federation = config.federation.model_copy(update={"arm": "local"})
    alone = {"lora": lora, "aggregation": AggregationConfig(), "federation": federation}
    scores = _Evaluation(config.model_copy(update=alone)).scores(adapters=adapters)
    return {client: of_client for client, of_client in scores.items() if client in adapters}


def _own_adapters(run: SavedRun, checkpoint: Checkpoint) -> dict[str, Adapter]:
    return {client: run.own_adapter(checkpoint, client) for client in run.config.federation.names}


def _of_everybody(config: Config, loaded: Adapter | None, place: str) -> ClientScores:
    """Scores of every client with this adapter, of whatever rank and alpha."""
    lora = config.lora.model_copy(update={"rank": config.lora.largest})
    if loaded is not None:
        lora = lora.model_copy(update={"rank": loaded.rank, "alpha": loaded.alpha})
    arm = "central" if config.federation.arm == "central" else "federated"
    federation = config.federation.model_copy(update={"arm": arm})
    # One whole adapter is sent, and nothing else.
    alone = {"lora": lora, "aggregation": AggregationConfig(), "federation": federation}
    evaluation = _Evaluation(config.model_copy(update=alone))
    if loaded is None:
        return evaluation.scores()
    return evaluation.scores(Checkpoint(0, in_model_order(loaded, evaluation.initial, place=place), {}))


class _Evaluation:
    """The clients of a config, each with its held-out problems, in one cohort."""

    def __init__(self, config: Config) -> None:
        run = config.run.model_copy(update={"directory": None, "ledgers": None})  # so that no ledger is opened
        config = config.model_copy(update={"run": run})
        self.cohort = new_cohort(config)
        self.dealt = fit_prompts(deal(config), self.cohort.base, config)
        self.config = config.model_copy(update={"supervision": LabelsSupervision()})
        self.initial = self.cohort.fresh_adapter(stream(config.run.seed, "adapter"))

    def scores(self, checkpoint: Checkpoint | None = None, adapters: dict[str, Adapter] | None = None) -> ClientScores:
        """Scores with the model of a checkpoint; without one with that of a run that begins.

        adapters: by client, in the arm `local`.
        """
        clients = dict(enumerate(self.dealt.clients, start=1))
        names = {node: client.name for node, client in clients.items()}
        strategy = FederatedRLVR(self.config, names, self.initial, Observer())
        if self.config.model.adapter is not None:
            strategy.model.begin_with(None)
        if checkpoint is not None:
            checkpoint.adapter.check_like(self.initial, place=f"the checkpoint of round {checkpoint.round}")
            strategy.model.restore(replace(checkpoint, strategy={}))  # no client remembers a part of it
        contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in clients}
        for node, name in names.items():
            if adapters and name in adapters:
                like = self.initial.at_rank(self.config.lora.rank_of(name))
                adapter = in_model_order(adapters[name], like, place=f"the adapter of {name}")
                contexts[node].state[OWN_ADAPTER] = adapter_to_arrays(adapter)
        app = CohortApp(self.cohort, clients, self.initial, Observer())
        grid = LocalGrid(app, contexts)
        arrays = adapter_to_arrays(strategy.adapter, strategy.model.halves)
        messages = strategy.configure_evaluate(0, arrays, ConfigRecord(), grid)
        strategy.aggregate_evaluate(0, grid.send_and_receive(messages))
        return strategy.record.scores
