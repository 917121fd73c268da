"""Each client's pass@1 with each adapter, and the differences to training alone, paired by problem.

For problem i let d_i be the pass rate with one adapter minus the pass rate with the adapter trained alone; with several
responses to a problem its pass rate is their mean. Of n problems

    mean m = sum_i d_i / n        variance s^2 = sum_i (d_i - m)^2 / (n - 1)

and the 95 % interval is Student's for paired samples, m +- t s / sqrt(n), with t for n - 1 degrees of freedom, cut to
[-1, 1]. Where all differences are equal s is 0, which is no certainty: with q = 1 - 0.025^(1/n), the share of problems
that may still differ when none of n did (Clopper and Pearson 1934), the interval is m - q (1 + m) to m + q (1 - m).

A client whose interval lies below 0 is worse than alone. Without any true difference that happens to one client in 40.
Only n, means and variances are kept here; the problems' own rates are arguments and no more.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from fedrlvr.errors import CheckpointError
from fedrlvr.files import atomic_text, read_json
from fedrlvr.reporting.scores import Estimate, t95

BASE, ALONE, FEDERATED, PERSONAL = "base", "alone", "federated", "personal"
MODELS = (BASE, ALONE, FEDERATED, PERSONAL)
"""Models of a verdict: without an adapter, trained alone, of the federation, and the client's own of the federation."""
COMPARED = (FEDERATED, PERSONAL)
"""Models that are compared with `alone`; where there are several, the last one decides."""
VERDICT_FILE = "verdict.json"
"""The file of a verdict, in the directory of the run or of the site."""
_NO_SPREAD = 1e-12
"""Variance up to which all differences count as equal."""

Word = Literal["better", "worse", "unclear"]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of two pass rates over the same n problems: its mean, and the variance of a problem's difference."""

    n: int
    mean: float
    variance: float

    @classmethod
    def of(cls, rates: Sequence[float], alone: Sequence[float]) -> Self:
        """The difference of these pass rates, problem by problem; the variance of a single problem is 0.

        Raises:
            ValueError: there are no problems, or other ones.
        """
        differences = [rate - other for rate, other in zip(rates, alone, strict=True)]
        if not differences:
            raise ValueError("a difference needs at least one problem")
        variance = statistics.variance(differences) if len(differences) > 1 else 0.0
        return cls(len(differences), statistics.fmean(differences), variance)

    @property
    def estimate(self) -> Estimate:
        """The mean difference with its 95 % interval, in parts of 1."""
        mean, n = self.mean, self.n
        if self.variance <= _NO_SPREAD:
            unseen = 1 - 0.025 ** (1 / n)
            return Estimate(mean, mean - unseen * (1 + mean), mean + unseen * (1 - mean), n)
        half = t95(n - 1) * math.sqrt(self.variance / n)
        return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), n)

    @property
    def word(self) -> Word:
        """Result of the comparison in a word: its interval is above 0, below 0, or includes it."""
        estimate = self.estimate
        return "better" if estimate.low > 0 else "worse" if estimate.high < 0 else "unclear"

    def to_json(self) -> dict[str, Any]:
        """All numbers as a JSON object, with the bounds of the interval."""
        estimate = self.estimate
        return {**asdict(self), "low": estimate.low, "high": estimate.high}


@dataclass(frozen=True)
class ClientVerdict:
    """One client's result on its own n held-out problems.

    pass_at_1: by model, those of `MODELS` that there are. minus_alone: by model of `COMPARED`.
    """

    client: str
    n: int
    pass_at_1: dict[str, float]
    minus_alone: dict[str, PairedDifference]

    @classmethod
    def of(cls, client: str, rates: Mapping[str, Sequence[float]]) -> Self:
        """The result of these pass rates by model, with `alone` among them; a client may have no held-out problem."""
        n = len(rates[ALONE])
        if not n:
            return cls(client, 0, {}, {})
        return cls(
            client,
            n,
            {model: statistics.fmean(rates[model]) for model in MODELS if model in rates},
            {model: PairedDifference.of(rates[model], rates[ALONE]) for model in COMPARED if model in rates},
        )

    @property
    def decisive(self) -> PairedDifference | None:
        """Difference that decides: of the personal adapter if there is one, else of the federated adapter."""
        return next((self.minus_alone[model] for model in reversed(COMPARED) if model in self.minus_alone), None)

    @property
    def word(self) -> str:
        """Result in a word: better, worse or unclear; `no problems` where none is held out, `no adapter` where the
        client has none of the federation to compare."""
        return self.decisive.word if self.decisive else "no adapter" if self.n else "no problems"


@dataclass(frozen=True)
class MatrixRow:
    """Pass@1 of one adapter on every client's held-out problems; None where a client has none.

    model: alone, federated or personal. owner: the client whose adapter it is; None for that of all.
    """

    model: str
    owner: str | None
    pass_at_1: dict[str, float | None]

    @classmethod
    def of(cls, model: str, owner: str | None, rates: Mapping[str, Sequence[float]]) -> Self:
        """The row of an adapter, from the pass rates of every client's problems."""
        return cls(model, owner, {client: statistics.fmean(rs) if rs else None for client, rs in rates.items()})

    @property
    def adapter(self) -> str:
        """Name of the adapter in a table."""
        return self.model if self.owner is None else f"{self.owner}, {self.model}"


@dataclass(frozen=True)
class Verdict:
    """Results of all clients of a run, or of one site.

    rounds: of the run that is judged. about: evaluation settings and places, for the record. notes: sentences on
    settings in which the runs that are compared differ. matrix: rows of the cross-client matrix, if it was asked for.
    """

    rounds: int
    clients: list[ClientVerdict]
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    matrix: list[MatrixRow] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """The models that clients were evaluated with, in the order of `MODELS`."""
        return [model for model in MODELS if any(model in client.pass_at_1 for client in self.clients)]

    @property
    def compared(self) -> list[str]:
        """The models that are compared with `alone`."""
        return [model for model in self.models if model in COMPARED]

    @property
    def worse(self) -> list[str]:
        """Names of the clients that are worse than alone beyond their interval."""
        return [client.client for client in self.clients if client.word == "worse"]

    def write(self, directory: Path) -> Path:
        """Write verdict.json as a whole, and return its path.

        Raises:
            CheckpointError: it cannot be written.
        """
        tree = {
            **self.about,
            "rounds": self.rounds,
            "notes": self.notes,
            "clients": {
                client.client: {
                    "n": client.n,
                    "pass@1": client.pass_at_1,
                    "minus_alone": {model: d.to_json() for model, d in client.minus_alone.items()},
                    "verdict": client.word,
                }
                for client in self.clients
            },
            "matrix": [{"model": row.model, "client": row.owner, "pass@1": row.pass_at_1} for row in self.matrix],
        }
        atomic_text(path := directory / VERDICT_FILE, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
        return path


def read_verdict(directory: Path, rounds: int) -> Verdict | None:
    """The verdict in a run's directory; None if there is none, or the run has gone on since.

    rounds: train.rounds of the run.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = directory / VERDICT_FILE
    try:
        tree = read_json(path)
        clients = [
            ClientVerdict(
                name,
                int(line["n"]),
                {model: float(rate) for model, rate in line["pass@1"].items()},
                {
                    model: PairedDifference(int(d["n"]), float(d["mean"]), float(d["variance"]))
                    for model, d in line["minus_alone"].items()
                },
            )
            for name, line in tree["clients"].items()
        ]
        for d in (d for client in clients for d in client.minus_alone.values()):
            if d.n < 1 or not (-1 <= d.mean <= 1 and 0 <= d.variance <= 4):
                raise ValueError(f"{d} is no difference of pass rates")
        matrix = [MatrixRow(row["model"], row["client"], dict(row["pass@1"])) for row in tree["matrix"]]
        verdict = Verdict(int(tree["rounds"]), clients, {}, [str(note) for note in tree["notes"]], matrix)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Delete it to have a report without the verdict, or have it made again "
            "by `fedrlvr verdict`."
        ) from None
    return verdict if verdict.rounds == rounds else None
