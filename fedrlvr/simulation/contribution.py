"""Leave-one-out: a federation, and the same without the training of each client in turn, as arms of one sweep.

A client is excluded by `federation.excluded`: it still holds its problems and is evaluated, so the partition and the
held-out problems are those of the full run.

<directory>/excluded=.../seed-<n>/    what `fedrlvr run` writes
contribution.json, contribution.md    the contributions; sweep.json and sweep.md the plain scores of the arms
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedrlvr.config import Config, load_config
from fedrlvr.errors import ConfigError
from fedrlvr.files import atomic_text
from fedrlvr.simulation.sweep_plan import Plan, plan

if TYPE_CHECKING:
    from fedrlvr.reporting.contribution_table import ContributionLine
    from fedrlvr.reporting.observer import Observer
    from fedrlvr.simulation.sweep import SweepResult

KEY = "federation.excluded"


@dataclass(frozen=True)
class LeaveOneOut:
    """Plan of all runs: the full federation is the first arm, then comes one arm without each of the `clients`."""

    clients: list[str]
    plan: Plan

    @property
    def cost(self) -> str:
        """Sentence on the number of federations, and on the local steps of all clients compared with the full run."""
        steps = [_local_steps(arm.config) for arm in self.plan.arms]
        seeds, train = len(self.plan.seeds), self.plan.arms[0].config.train
        return (
            f"{len(steps)} federations (one with all {len(self.clients)} clients, {len(self.clients)} without one of "
            f"them) x {seeds} seed{'s' * (seeds > 1)}, each of {train.rounds} rounds x {train.local_steps} local "
            f"steps: {seeds * sum(steps):,} local steps of all clients together, {seeds * sum(steps) / steps[0]:.3g} "
            "times those of the one run."
        )


def leave_one_out(
    path: Path | str, overrides: Sequence[str] = (), *, seeds: int = 1, directory: Path | None = None
) -> LeaveOneOut:
    """Plan the federation of a configuration, and the same without each client that trains.

    directory: None takes run.directory, else makes one; what lies there already is gone on with.

    Raises:
        ConfigError: the arm is not `federated`, fewer than two clients train, a federation without one of the clients
            cannot be configured, or as `sweep_plan.plan`.
    """
    base = load_config(path, overrides)
    federation = base.federation
    if federation.arm != "federated":
        raise ConfigError(
            f"federation.arm = {federation.arm!r}: a contribution is what a client adds to a federation. Set "
            "federation.arm = 'federated'."
        )
    clients = federation.training
    if len(clients) < 2:
        raise ConfigError(
            f"federation.clients: a contribution needs at least two clients that train, and there is {len(clients)}."
        )
    others = [override for override in overrides if override.partition("=")[0].strip() != KEY]
    values = [_toml(federation.excluded), *(_toml([*federation.excluded, client]) for client in clients)]
    for client, value in zip(clients, values[1:], strict=True):
        try:
            load_config(path, [*others, f"{KEY}={value}"])
        except ConfigError as error:
            raise ConfigError(f"The federation without {client} cannot run. {error}") from None
    return LeaveOneOut(clients, plan(path, others, [f"{KEY}={','.join(values)}"], seeds=seeds, directory=directory))


def measure(
    planned: LeaveOneOut, *, command: str = "", apart: bool = False, observer: Observer | None = None
) -> tuple[list[ContributionLine], SweepResult]:
    """Run what is not finished, and write contribution.json and contribution.md, if there is any contribution.

    command, apart: as `sweep`. Federations that fail are in the result; contributions are of the seeds that have both
    runs.

    Raises:
        CheckpointError: a file cannot be written, or another process is at work in the directory.
    """
    from fedrlvr.reporting.contribution_table import contributions, to_json, to_markdown
    from fedrlvr.server.metrics_log import read_metrics
    from fedrlvr.simulation.sweep import sweep

    plan = planned.plan
    result = sweep(plan, command=command, apart=apart, observer=observer)
    full, *others = (arm.name for arm in plan.arms)
    client_of = dict(zip(others, planned.clients, strict=True))
    done = [(run, read_metrics(run.directory)) for run in plan.federations if run.name not in result.failures]
    lines = contributions(
        planned.clients,
        {run.seed: records for run, records in done if run.arm == full},
        {(client_of[run.arm], run.seed): records for run, records in done if run.arm != full},
    )
    if any(line.others for line in lines):
        about = {**result.about, "cost": planned.cost}
        failed = {name: str(error) for name, error in result.failures.items()}
        atomic_text(plan.directory / "contribution.json", to_json(lines, about, failed))
        atomic_text(plan.directory / "contribution.md", to_markdown(lines, about))
    return lines, result


def _toml(names: Sequence[str]) -> str:
    return json.dumps(list(names), ensure_ascii=False)


def _local_steps(config: Config) -> int:
    """Local steps of all clients in one run."""
    return config.federation.clients_per_round * config.train.rounds * config.train.local_steps
