"""Each client trained alone: the reference of a verdict, a run of the arm `local` in the directory of a run.

With several factors in `run.alone_rates` there is a run for each, at that multiple of the run's learning rate, and each
client keeps the adapter with the highest pass@1 on its own validation problems: a choice that a client alone can make.
An untuned reference makes joining look better than it is, since nothing averages the noise of a client alone, and it
often needs a smaller learning rate than the federation does (docs/measurements/gain.md).
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedrlvr.adapter import Adapter
from fedrlvr.config import Config
from fedrlvr.errors import ConfigError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.run_directory import ALONE_DIRECTORY, locked
from fedrlvr.server.saved_adapter import SavedRun, open_run
from fedrlvr.server.starting_adapter import START
from fedrlvr.simulation.evaluate import ClientRates, Evaluator, own_adapters
from fedrlvr.simulation.run import Federation
from fedrlvr.simulation.sweep_plan import difference

Watch = Callable[[], Observer]
"""Makes an observer for each run that is trained."""


@dataclass(frozen=True)
class AloneRun:
    """A run that trains clients alone, finished or not.

    factor: multiple of the learning rate of the run that it is compared with.
    """

    factor: float
    run: SavedRun

    @property
    def begun(self) -> bool:
        """Whether there is a configuration in its directory."""
        return (self.run.directory / "config.json").is_file()

    @property
    def steps_left(self) -> int:
        """Local steps of a client that are still to be done."""
        train, directory = self.run.config.train, self.run.directory
        done = max(open_run(directory).checkpoints.rounds(), default=0) if self.begun else 0
        return (train.rounds - done) * train.local_steps

    def train(self, cohort: Cohort, watch: Watch) -> None:
        """Train the rounds that are not done.

        Raises:
            FedrlvrError: as `simulation.run.run`.
        """
        config, directory, begun = self.run.config, self.run.directory, self.begun
        if begun and self.run.finished and open_run(directory).config.train.rounds == config.train.rounds:
            return
        with locked(directory):
            Federation(config, directory, cohort, watch()).go(resume=begun)

    def adapters(self) -> dict[str, Adapter]:
        """Every client's own adapter, of the newest readable checkpoint or as exported.

        Raises:
            CheckpointError, AdapterError: they cannot be read.
        """
        other = self.run
        return other.newest(lambda checkpoint: own_adapters(other, checkpoint)) or own_adapters(other, None)


def at_rate(config: Config, factor: float) -> Config:
    """The configuration at a multiple of its learning rate."""
    train = config.train.model_copy(update={"learning_rate": factor * config.train.learning_rate})
    return config.model_copy(update={"train": train})


def alone_runs(run: SavedRun) -> list[AloneRun]:
    """The runs of the arm `local` in the run's directory, one for each factor of `run.alone_rates`."""
    local, runs = run.config.in_arm("local"), []
    for factor in run.config.run.alone_rates:
        directory = run.directory / (ALONE_DIRECTORY if factor == 1 else f"{ALONE_DIRECTORY}-{factor:g}")
        config = at_rate(local, factor)
        settings = config.run.model_copy(update={"directory": directory})
        runs.append(AloneRun(factor, SavedRun(directory, config.model_copy(update={"run": settings}))))
    return runs


def check_same(run: SavedRun, alone: AloneRun) -> None:
    """Check that what lies in the directory of a run alone, if anything, is of the same configuration, and give it the
    start of the federated run if it has not begun.

    Raises:
        ConfigError: it is of another configuration.
    """
    directory, config = alone.run.directory, alone.run.config
    if alone.begun:
        stored = open_run(directory).config
        extended = stored.train.model_copy(update={"rounds": config.train.rounds})
        if (reason := difference(config, stored.model_copy(update={"train": extended}))) is not None:
            raise ConfigError(f"{directory} holds a run of another configuration ({reason}). Move it away.")
    elif (run.directory / START).is_dir():
        shutil.copytree(run.directory / START, directory / START, dirs_exist_ok=True)


def check_labels(config: Config) -> None:
    """Check that nobody has to be asked for the labels of a second run.

    Raises:
        ConfigError: people give the labels.
    """
    if getattr(config.supervision, "labels_from", "dataset") == "desk":
        raise ConfigError(
            "supervision.labels_from = 'desk': people would be asked for labels again, for the run that trains alone. "
            "In a simulation, train the arm 'local' with the same run.ledgers (fedrlvr run --set federation.arm=local) "
            "and give it to `fedrlvr verdict --alone`."
        )


def best_factors(rates: Mapping[float, ClientRates]) -> dict[str, float]:
    """The factor, for each client, whose adapter has the highest mean pass rate; of equal ones the smallest.

    rates: by factor, each client's pass rates on its validation problems, of which it has at least one.
    """
    (clients, *_) = rates.values()
    return {
        client: max(sorted(rates), key=lambda factor: statistics.fmean(rates[factor][client])) for client in clients
    }


def choose(runs: list[AloneRun], evaluator: Evaluator) -> tuple[dict[str, Adapter], dict[str, float]]:
    """Each client's adapter trained alone and the factor that it was trained at, chosen on validation problems where
    there are several finished runs.

    Raises:
        FedrlvrError: an adapter cannot be read, or as evaluations say.
    """
    adapters = {alone.factor: alone.adapters() for alone in runs}
    if len(runs) == 1:
        return adapters[runs[0].factor], dict.fromkeys(adapters[runs[0].factor], runs[0].factor)
    rates = {factor: evaluator.of_each(of, split="validation").rates for factor, of in adapters.items()}
    chosen = best_factors(rates)
    return {client: adapters[factor][client] for client, factor in chosen.items()}, chosen
