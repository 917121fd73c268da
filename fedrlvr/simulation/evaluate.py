"""Evaluate one adapter, or the base model, on all held-out problems of a config: what `fedrlvr eval` does."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, RecordDict

from fedrlvr.client.app import CohortApp
from fedrlvr.config import AggregationConfig, Config, LabelsSupervision
from fedrlvr.policy.base import load_base, threads_here
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import in_model_order, load_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import RUN_ID, LocalGrid
from fedrlvr.tasks.deal import CENTRAL, deal, fit_prompts
from fedrlvr.wire.messages import SourceScores, adapter_to_arrays


def evaluate(config: Config, adapter: Path | None) -> list[SourceScores]:
    """Pass@1 sums by source, of a PEFT adapter directory or (None) of the base model.

    The same problems and random numbers for every adapter, so that two calls can be compared.

    Raises:
        AdapterError: the adapter is unreadable or of another model.
        FedrlvrError: as the config, the data and the model say.
    """
    torch.set_num_threads(config.engine.threads or threads_here(config.model))
    config = config.model_copy(update={"federation": config.federation.model_copy(update={"arm": CENTRAL})})
    base = load_base(config.model)
    client = fit_prompts(deal(config), base, config).clients[0]
    lora, loaded = config.lora, load_peft(adapter) if adapter is not None else None
    if loaded is not None:  # its rank grew if the rule changed the base weights, and is a client's own in the arm local
        lora = lora.model_copy(update={"rank": loaded.rank, "alpha": loaded.alpha})
    cohort = Cohort(base, lora, config.engine)
    trained = initial = cohort.fresh_adapter(0)
    if loaded is not None:
        trained = in_model_order(loaded, initial, whose=str(adapter))
    # One whole adapter is sent, and nothing else.
    alone = {"lora": lora, "aggregation": AggregationConfig(), "supervision": LabelsSupervision()}
    plain = config.model_copy(update=alone)
    strategy = FederatedRLVR(plain, {1: CENTRAL}, initial, Observer())
    context = Context(RUN_ID, 1, {}, RecordDict(), {})
    grid = LocalGrid(CohortApp(cohort, {1: client}, initial, Observer()), {1: context})
    strategy.model.replace(trained)
    messages = strategy.configure_evaluate(0, adapter_to_arrays(trained), ConfigRecord(), grid)
    strategy.aggregate_evaluate(0, grid.send_and_receive(messages))
    return strategy.record.scores[CENTRAL]
