"""Verdict on a run, the gain of each of its clients: `fedrlvr verdict`, and the end of a run with `run.verdict`.

The run's clients are also trained each alone (the arm `local`, simulation/alone.py), with the same settings and on the
same problems, in `alone` in the run's directory, and with `run.alone_rates` at several learning rates. Then the base
model, the adapters trained alone, the federated adapter and the personal adapters of a run that has some are evaluated
on each client's held-out problems with the same random numbers, so that they are compared problem by problem. Pass
rates of problems stay in this process; verdict.json and the report have each client's n, means and variances.

The arm `local` is trained on the same cohort, after the federated run and not beside it: rows that share a batch change
the rounding of all, and a run with a verdict ends with the adapter that it has without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedrlvr.adapter import Adapter
from fedrlvr.config import Config, parse_config
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.files import read_json
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting import report
from fedrlvr.reporting.observer import Observer
from fedrlvr.reporting.verdict import ALONE, BASE, FEDERATED, PERSONAL, ClientVerdict, MatrixRow, Verdict
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.run_directory import is_deployed, locked, resume_command
from fedrlvr.server.saved_adapter import SavedRun, open_run
from fedrlvr.simulation import run as federation
from fedrlvr.simulation.alone import AloneRun, Watch, alone_runs, check_labels, check_same, choose
from fedrlvr.simulation.evaluate import ClientRates, Evaluator, personal_adapters
from fedrlvr.simulation.run import RunResult, new_cohort
from fedrlvr.version import __version__

_EQUAL = (
    *("run.seed", "model.name", "train.rounds", "train.local_steps", "train.problems_per_step"),
    "federation.deviations",
)
"""Settings that a given run of the arm `local` must have in common with the run."""


@dataclass(frozen=True)
class JudgedRun:
    """A run that has ended, and its verdict if the run asks for one."""

    result: RunResult
    verdict: Verdict | None


def run(config: Config, watch: Watch = Observer) -> JudgedRun:
    """Run a federation as `simulation.run.run` does; with `run.verdict` also train its clients alone, and compare.

    Raises:
        FedrlvrError: as `simulation.run.run` and `judge`.
    """
    return _judged(lambda after: federation.run(config, observer=watch(), after=after), watch)


def resume(directory: Path, overrides: Sequence[str] = (), watch: Watch = Observer) -> JudgedRun:
    """Go on with a run as `simulation.run.resume` does; with `run.verdict` also with training alone, and compare.

    Raises:
        FedrlvrError: as `simulation.run.resume` and `judge`.
    """
    return _judged(lambda after: federation.resume(directory, overrides, observer=watch(), after=after), watch)


def _judged(go: Callable[[federation.After], RunResult], watch: Watch) -> JudgedRun:
    verdicts: list[Verdict] = []

    def after(result: RunResult, cohort: Cohort) -> None:
        if result.config.run.verdict:
            verdicts.append(_judge(open_run(result.directory), cohort, None, False, watch))

    result = go(after)
    return JudgedRun(result, verdicts[0] if verdicts else None)


def judge(run: SavedRun, *, alone: Path | None = None, matrix: bool = False, watch: Watch = Observer) -> Verdict:
    """The verdict on a finished run, written to verdict.json and into its report. The arm `local` is trained first
    where it is missing or unfinished, at each of `run.alone_rates`.

    alone: directory of a finished run of the arm `local` to compare with; None is `alone` in the run's directory.
    matrix: evaluate every client's adapters on every client's problems too.

    Raises:
        ConfigError: there is no verdict on such a run, or `alone` is none of the same problems, seed and steps.
        FedrlvrError: as training and evaluation say; rounds that are done stay done.
    """
    check_judgeable(run)
    with locked(run.directory):
        return _judge(run, new_cohort(run.config), alone, matrix, watch)


def with_alone_rates(run: SavedRun, rates: Sequence[float]) -> SavedRun:
    """The run with these multiples of its learning rate for training alone.

    Raises:
        ConfigError: a multiple is out of range or named twice, or there are no validation problems to choose by.
    """
    tree = run.config.model_dump()
    tree["run"]["alone_rates"] = list(rates)
    return replace(run, config=parse_config(tree, where=str(run.directory)))


def check_judgeable(run: SavedRun) -> None:
    """Check that there can be a verdict on this run.

    Raises:
        ConfigError: its clients are elsewhere, it is of another arm, a checkpoint, or not finished.
    """
    place, arm = run.directory, run.config.federation.arm
    if is_deployed(place):
        raise ConfigError(
            f"{place}: this run's clients are organisations on their own machines, and so are their held-out problems. "
            "Each organisation makes its own verdict with `fedrlvr site verdict`."
        )
    if arm != "federated":
        raise ConfigError(
            f"{place}: a verdict compares a federated run with each client alone, and this is a run of the arm "
            f"{arm!r}. Give the federated run" + (f", and this one as --alone {place}." if arm == "local" else ".")
        )
    if run.round is not None:
        raise ConfigError(f"{place}: a verdict is about a finished run, not about a checkpoint. Give its directory.")
    if not run.finished:
        done = max(run.checkpoints.rounds(), default=0)
        raise ConfigError(
            f"{place}: the run is not finished ({done} of {run.config.train.rounds} rounds are done). Go on with "
            f"`{resume_command(place)}`, then ask for the verdict."
        )


def missing_steps(run: SavedRun) -> int:
    """Local steps of all clients alone that are still to be done before the run can be judged."""
    return sum(alone.steps_left for alone in alone_runs(run)) * len(run.config.federation.training)


def _judge(run: SavedRun, cohort: Cohort, alone: Path | None, matrix: bool, watch: Watch) -> Verdict:
    if alone is not None:
        _check_alone(run, open_run(alone))
    evaluate = run.config.evaluate.model_copy(update={"split": "test"})
    evaluator = Evaluator(run.config.model_copy(update={"evaluate": evaluate}), cohort)
    if _digest(run.directory) != evaluator.digest:
        raise DataError(
            f"{run.directory}: the problems are not those that the run was trained and evaluated on, so nothing can be "
            "compared. Restore the data."
        )
    runs = [AloneRun(1.0, open_run(alone))] if alone is not None else _train_alone(run, cohort, watch)
    # Where clients keep a part of their adapter in every round, no adapter is everybody's.
    federated = evaluator.of_run(run)[1].rates if run.config.personal.method.keeps is None else None
    adapters, factors = choose(runs, evaluator)
    adapters = {client: adapters[client] for client in run.config.federation.training}
    verdict = compare(evaluator, federated, adapters, personal_adapters(run), matrix=matrix)
    verdict.notes.extend(
        _notes(run, runs[0].run.config)
        if len(runs) == 1
        else [*notes_on_rates(factors, several=True), *_notes_of_run(run)]
    )
    verdict.about["alone"] = str(alone) if alone is not None else runs[0].run.directory.name
    if len(runs) > 1:
        verdict.about["alone_rates"] = factors
    write(verdict, run)
    return verdict


def write(verdict: Verdict, run: SavedRun) -> None:
    """Write a verdict to the directory of a run, and into its report.

    Raises:
        CheckpointError: a file cannot be written.
    """
    verdict.write(run.directory)
    report.write_report(run.directory, run.config, read_metrics(run.directory))


def compare(
    evaluator: Evaluator,
    federated: ClientRates | None,
    alone: dict[str, Adapter],
    personal: dict[str, Adapter],
    *,
    matrix: bool = False,
) -> Verdict:
    """The verdict on the clients of a config, written nowhere yet.

    federated: pass rates with the adapter of the federation; None where there is none for all. alone, personal:
        adapters by client. The verdict is on the clients that have one trained alone.

    Raises:
        FedrlvrError: an adapter is of another model, or as evaluations say.
    """
    rates: dict[str, ClientRates] = {
        BASE: evaluator.of_everybody(None).rates,
        ALONE: evaluator.of_each(alone).rates,
    }
    if federated is not None:
        rates[FEDERATED] = federated
    if personal:
        of_personal = evaluator.of_each(personal).rates
        rates[PERSONAL] = {client: of_personal[client] for client in personal}
    clients = [ClientVerdict.of(name, {model: of[name] for model, of in rates.items() if name in of}) for name in alone]
    rows = [MatrixRow.of(FEDERATED, None, federated)] if matrix and federated is not None else []
    for kind, adapters in ((ALONE, alone), (PERSONAL, personal)):
        for name, adapter in adapters.items() if matrix else ():
            rows.append(MatrixRow.of(kind, name, evaluator.of_everybody(adapter).rates))
    config = evaluator.config
    about = {
        "fedrlvr": __version__,
        "seed": config.run.seed,
        "samples": config.evaluate.samples,
        "temperature": config.evaluate.temperature,
    }
    without = [client.client for client in clients if personal and client.client not in personal]
    notes = [f"No personal adapter of {', '.join(without)}, left out when they were made."] if without else []
    if notes and federated is not None:
        notes[0] += " There the federated adapter decides."
    return Verdict(config.train.rounds, clients, about, notes, rows)


def _train_alone(run: SavedRun, cohort: Cohort, watch: Watch) -> list[AloneRun]:
    """The finished runs of the arm `local` in the run's directory, trained now as far as they are not."""
    check_labels(run.config)
    runs = alone_runs(run)
    for alone in runs:
        check_same(run, alone)
    for alone in runs:
        alone.train(cohort, watch)
    return runs


def _check_alone(run: SavedRun, other: SavedRun) -> None:
    """
    Raises:
        ConfigError: the other run is not finished, is no run of the arm `local`, or is one of another seed, model,
            number of steps or other problems.
    """
    place = f"--alone {other.directory}"
    if not other.local:
        raise ConfigError(f"{place}: this is a run of the arm {other.config.federation.arm!r}. Give one of 'local'.")
    if not other.finished:
        raise ConfigError(f"{place}: the run is not finished. Go on with `{resume_command(other.directory)}`.")
    if lacking := [name for name in run.config.federation.training if name not in other.config.federation.training]:
        raise ConfigError(f"{place}: {', '.join(lacking)} did not train there (federation.excluded).")
    for setting in _EQUAL:
        here, there = _value(run.config, setting), _value(other.config, setting)
        if here != there:
            raise ConfigError(f"{place}: {setting} is {there!r} there and {here!r} in {run.directory}.")
    if _digest(run.directory) != _digest(other.directory):
        raise ConfigError(
            f"{place}: its clients hold other problems than those of {run.directory} (holdings.json), so nothing can "
            "be compared."
        )


def _value(config: Config, setting: str) -> object:
    section, name = setting.split(".")
    return getattr(getattr(config, section), name)


def _notes(run: SavedRun, other: Config) -> list[str]:
    """Sentences on what else differs between a federated run and the run of its clients alone."""
    config, notes = run.config, []
    given, stored = (c.in_arm("local").model_dump(mode="json") for c in (config, other))
    for section in ("model", "lora", "sampling", "train", "supervision"):
        for name in {**given[section], **stored[section]}:
            here, there = given[section].get(name), stored[section].get(name)
            if here != there:
                notes.append(f"{section}.{name} is {there!r} alone and {here!r} in the federation.")
    same = config.train.learning_rate == other.train.learning_rate
    return [*notes, *(notes_on_rates({}, several=False) if same else []), *_notes_of_run(run)]


def notes_on_rates(factors: Mapping[str, float], *, several: bool) -> list[str]:
    """Sentences on the learning rate of training alone.

    factors: by client, the chosen multiple of train.learning_rate. several: whether there was a choice.
    """
    if not several:
        return [
            "Training alone had the learning rate of the federation. At one of its own it may be better, and the gain "
            "smaller: run.alone_rates tries several, by validation problems (data.validation_size)."
        ]
    by_factor: dict[float, list[str]] = {}
    for client, factor in factors.items():
        by_factor.setdefault(factor, []).append(client)
    chosen = "; ".join(f"{factor:g}: {', '.join(clients)}" for factor, clients in sorted(by_factor.items()))
    return [
        "Training alone had the multiple of train.learning_rate, out of run.alone_rates, with the highest pass@1 on "
        f"the client's own validation problems ({chosen})."
    ]


def _notes_of_run(run: SavedRun) -> list[str]:
    """Sentences on what a federated run differs in from any run of its clients alone."""
    config = run.config
    notes = unequal(config)
    absent = Counter(client for record in read_metrics(run.directory) for client in record.get("left_out", ()))
    if missing := ", ".join(f"{client} of {rounds}" for client, rounds in sorted(absent.items())):
        notes.append(f"Left out of rounds of the federation, and of none alone: {missing} (federation.quorum).")
    if riders := [name for name, stated in config.federation.deviations.items() if stated.free_rider]:
        notes.append(f"{', '.join(riders)}: a free rider learns nothing alone either (federation.deviations).")
    if excluded := config.federation.excluded:
        notes.append(f"No verdict on {', '.join(excluded)}, excluded from training (federation.excluded).")
    if withdrawn := config.federation.withdrawn:
        notes.append(f"No verdict on {', '.join(withdrawn)}, withdrawn from the run (federation.withdrawn).")
    return notes


def unequal(config: Config) -> list[str]:
    """Sentences on settings by which a client trains more or less in a federation than alone."""
    notes, clients = [], config.federation
    if clients.clients_per_round < len(clients.training):
        notes.append(
            f"A client trains in {clients.clients_per_round} of {len(clients.training)} rounds of the federation "
            "on average, and in every round alone (federation.fraction)."
        )
    if config.personal.method.finishes:
        notes.append(
            f"A personal adapter has taken {config.personal.steps} more local steps than the one that was trained "
            "alone (personal.steps)."
        )
    if config.coordination.type != "none":
        notes.append("The federation also trains on public problems, and a client alone does not (coordination.type).")
    return notes


def _digest(directory: Path) -> object:
    """Hash of the problems that a run was trained and evaluated on."""
    try:
        return read_json(directory / "holdings.json")["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{directory / 'holdings.json'} cannot be read ({error}), so the problems of the run are unknown. Restore "
            "the file."
        ) from None
