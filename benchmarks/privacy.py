"""pass@1 under site-level differential privacy, and the number of sites at which its noise can be borne.

    scripts/bench privacy                all of it, in one process of one thread
    scripts/bench privacy --collect      the tables from what has been run

Each of four sites takes 60 local steps of 4 problems x 8 responses, and sends its change once: with one round, the
noise of an epsilon is the smallest there is. Nothing of this training depends on the noise, so it is done once for each
federation, rule and seed. Then the mechanism of fedrlvr/privacy/mechanism.py is applied to the four changes at each
epsilon and clip, and the mean is scored: pass@1 on 512 held-out problems, one sample each, mean over problems.

A mean over n sites has the noise of one site divided by the square root of n. For larger federations the noise is
computed for n sites, and the change is still the mean of the four: as if each of the four had n / 4 copies with noise
of their own. Federations and learning rates are those of `scripts/bench gain` at 60 local steps; that rate was chosen
for FedIT, and FFA-LoRA takes it too.

Writes docs/results/privacy.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from benchmarks.cells import run_all, timed
from benchmarks.gain_cells import BASE, COMMON, FEDERATIONS, ROOT
from benchmarks.gain_choices import chosen_rate
from benchmarks.privacy_tables import write
from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.averaging import mean
from fedrlvr.privacy.accountant import noise_for
from fedrlvr.privacy.mechanism import noised
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.run import Wrap
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import Planned, plan
from fedrlvr.wire.messages import EvaluateRequest, adapter_to_arrays, arrays_to_adapter, read_scores

RUNS = ROOT / "runs" / "privacy"
RULES = ("fedit", "ffa")
DELTA = 1e-5
EPSILONS = (1.0, 2.0, 4.0, 8.0)
SITES = (4, 10**3, 10**4, 10**5, 10**6)
LEVELS: tuple[tuple[float, float | None, int], ...] = (
    (1.0, None, 4),
    *((1.0, epsilon, 4) for epsilon in EPSILONS),
    *((1.0, 8.0, sites) for sites in SITES[1:]),
    (0.1, None, 4),
    *((0.1, 8.0, sites) for sites in SITES[:4]),
)
"""Clip as a multiple of the median norm of the four changes, epsilon (None: no noise) and number of sites.

That norm is of private data, so that a run has to set a clip without it; here it takes the choice of the clip out of
the comparison."""
ONE_ROUND = ["train.rounds=1", "train.local_steps=60", "aggregation.weights=equal", "data.test_size=512"]
PLAIN = ["aggregation.server_learning_rate=1"]


def settings(federation: str, rule: str) -> list[str]:
    """Settings of a cell besides its learning rate and seed."""
    return [*COMMON, *FEDERATIONS[federation], *ONE_ROUND, *PLAIN, f"aggregation.type={rule}"]


def mean_with_noise(
    changed: Sequence[Adapter], start: Adapter, *, clip: float, epsilon: float | None, sites: int, halves: Any
) -> Adapter:
    """Mean of the clipped changes on top of the start, with the noise that a mean over so many sites has."""
    scale = 0.0
    if epsilon is not None:
        scale = noise_for(epsilon, DELTA, 1) * math.sqrt(len(changed) / sites)

    def none(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.float64)

    more: dict[str, Any] = {"normal": none} if epsilon is None else {}
    released = (noised(adapter, start, clip=clip, noise=scale, halves=halves, **more) for adapter in changed)
    return mean(((adapter, 1.0) for adapter in released), rule="the noised mean")


class NoiseLevels(WrappingStrategy):
    """Scores the noised means of a round's changes, and writes the scores beside the run."""

    def __init__(self, inner: FederatedRLVR, file: Path) -> None:
        super().__init__(inner)
        self.file = file
        self.grid: Grid | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.grid = grid
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        kept, start, halves = list(replies), self.inner.adapter, self.inner.model.halves
        changed = [
            arrays_to_adapter(message.content["arrays"], start, place="a site", halves=halves)  # type: ignore[arg-type]
            for message in sorted(kept, key=lambda reply: reply.metadata.src_node_id)
        ]
        result = self.inner.aggregate_train(server_round, kept)
        norms = sorted(adapter.distance(start) for adapter in changed)
        numbers = sum(t.numel() for name, t in start.tensors() if name.rpartition(".")[2] in halves)
        usual = (norms[1] + norms[2]) / 2
        scores = [
            {
                "clip": clip,
                "epsilon": epsilon,
                "sites": sites,
                "pass@1": self._score(
                    mean_with_noise(changed, start, clip=clip * usual, epsilon=epsilon, sites=sites, halves=halves)
                ),
            }
            for clip, epsilon, sites in LEVELS
        ]
        unchanged = {"base": self._score(start), "norms": norms, "numbers": numbers, "scores": scores}
        self.file.write_text(json.dumps(unchanged), "utf-8")
        return result

    def _score(self, adapter: Adapter) -> float:
        """pass@1 over all sites' held-out problems, as a share of 1."""
        inner, grid = self.inner, self.grid
        assert grid is not None
        config = inner.config
        request = EvaluateRequest(round=1, seed=config.run.seed, sampling=config.sampling, evaluate=config.evaluate)
        arrays = adapter_to_arrays(adapter, inner.model.halves)
        messages = [
            Message(inner.participation.content(request, node, arrays), node, "evaluate", group_id="1")
            for node in grid.get_node_ids()
        ]
        sums = [score for reply in grid.send_and_receive(messages) for score in read_scores(reply, place="noise")]
        return sum(score.total for score in sums) / sum(score.n for score in sums)


def run_cell(federation: str, rule: str, seeds: int) -> None:
    """All seeds of one cell, as one cohort."""
    directory = RUNS / federation / rule

    def wrap(planned: Planned) -> Wrap:
        return lambda inner: NoiseLevels(inner, planned.directory / "levels.json")

    given = [*settings(federation, rule), f"train.learning_rate={chosen_rate(federation, 60)}", "run.seed=0"]
    what = plan(BASE, given, seeds=seeds, directory=directory)
    if all(planned.finished for planned in what.federations):
        return
    with timed(directory):
        sweep(what, command="scripts/bench privacy", wrap=wrap).check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 21), metavar="N")
    parser.add_argument("--federations", nargs="+", default=list(FEDERATIONS), choices=list(FEDERATIONS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--collect", action="store_true")
    chosen = parser.parse_args()
    if not chosen.collect:
        cells = [(federation, rule, chosen.seeds) for federation in chosen.federations for rule in RULES]
        run_all(cells, run_cell, chosen.jobs)
    write(RUNS)


if __name__ == "__main__":
    main()
