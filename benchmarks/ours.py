"""Our side of a case: rounds of the real strategy, grid and client code, one local step each, no evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from benchmarks.cases import Case, load_endless, take
from benchmarks.measure import Phases
from fedrlvr.client.app import CohortApp
from fedrlvr.config import Config, load_config
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.observer import Event, Observer, RoundEnded
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import RUN_ID, LocalGrid
from fedrlvr.tasks import Question
from fedrlvr.tasks.client_data import ClientData

ROUNDS = 1_000_000
"""Never reached: the one who paces the rounds ends the run."""


class InOrder(ClientData):
    """A client that takes its problems as the case lists them, so that all sides train on the same ones."""

    def draw(self, cursor: int, count: int, seed: int) -> list[Question]:
        """The next `count` problems after `cursor` draws."""
        return take(self.train, cursor, count)


class Trainers(FederatedRLVR):
    """The strategy with its evaluations left out: the baseline has none."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """No messages."""
        return []


class Unsaved(Checkpoints):
    """Writes nothing; the baseline does not either."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Nothing."""


class Pacer(Observer):
    """Reports every round, and ends the run where `pace` says so."""

    essential = True

    def __init__(self, pace: Any, phases: Phases) -> None:
        self.pace = pace
        self.phases = phases

    def notify(self, event: Event) -> None:
        """Report a round that ended, and wait."""
        if not isinstance(event, RoundEnded):
            return
        numbers = event.record["clients"].values()
        sampled, trained = (int(sum(n.get(key, 0) for n in numbers)) for key in ("tokens_sampled", "tokens_trained"))
        if not self.pace(event.round, self.phases.take(), sampled, trained):
            raise _Enough


class Ours:
    """Our engine on a case, with everything that is set up once."""

    def __init__(self, case: Case, settings: Sequence[str] = ()) -> None:
        """settings: `section.key=value`, e.g. `engine.cohort=false`."""
        self.config = config_of(case, settings)
        self.phases = Phases()
        base = load_endless(self.config.model)
        self.cohort = Cohort(base, self.config.lora, self.config.engine)
        for method, phase in (("sample", "sample"), ("learn", "train"), ("kl_to_base", "KL to the base")):
            setattr(self.cohort, method, self.phases.timed(phase, getattr(self.cohort, method)))
        self.sites = {
            node: InOrder.of(f"client-{node}", pool, (), self.phases.timed("grade", case.reward))
            for node, pool in enumerate(case.pools, start=1)
        }
        self.initial = self.cohort.fresh_adapter(0)
        self.contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in self.sites}

    def run(self, pace: Any) -> None:
        """Rounds until `pace` (`benchmarks.flower_trl.Pace`) says to stop."""
        app = CohortApp(self.cohort, self.sites, self.initial, Observer())
        names = {node: site.name for node, site in self.sites.items()}
        strategy = Trainers(self.config, names, self.initial, Pacer(pace, self.phases))
        try:
            strategy.start(LocalGrid(app, self.contexts), Unsaved(Path(), 0))
        except _Enough:
            return


def config_of(case: Case, settings: Sequence[str]) -> Config:
    """The case as a configuration."""
    return load_config(
        None,
        [
            f"model.name={str(case.model)!r}",
            "model.device=cpu",
            f"federation.clients={case.clients}",
            f"sampling.group_size={case.responses}",
            f"sampling.max_new_tokens={case.max_new_tokens}",
            f"train.problems_per_step={case.problems}",
            f"train.learning_rate={case.learning_rate}",
            f"train.rounds={ROUNDS}",
            "train.local_steps=1",
            *settings,
        ],
    )


class _Enough(Exception):
    """Raised out of the strategy's loop, which has no other end than its number of rounds."""
