"""The tables of what each site gains, from the verdicts of `scripts/bench gain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from benchmarks.gain_cells import FEDERATIONS
from benchmarks.tables import table
from fedrlvr.reporting.spread import Spread, spread

Verdicts = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]
"""Each verdict.json by federation and kind of personal adapter, by seed."""
KINDS = {
    "finish": "finish: 20 local steps from the global adapter",
    "mix": "mix: global and finished, by validation problems",
    "fedsa": "FedSA: A shared, B own",
    "fedalt": "FedALT: own beside the mean of the others",
}


def model_of(kind: str) -> str:
    """The model of a verdict that a kind stands for."""
    return "personal" if kind in KINDS else kind


def mean_rate(verdict: Mapping[str, Any], model: str) -> float:
    """pass@1 in %, mean over the sites, each on its own problems."""
    return 100 * fmean(client["pass@1"][model] for client in verdict["clients"].values())


def mean_gain(verdict: Mapping[str, Any], model: str) -> float:
    """Points over training alone, mean over the sites."""
    return 100 * fmean(client["minus_alone"][model]["mean"] for client in verdict["clients"].values())


def elsewhere(verdict: Mapping[str, Any], model: str) -> float:
    """pass@1 in % of the adapters of a model on the problems of the other sites, mean over adapters and sites.

    The base model and the federated adapter belong to no site, so every site counts.
    """
    if model == "base":
        return mean_rate(verdict, model)
    rates = [
        rate
        for row in verdict["matrix"]
        if row["model"] == model
        for site, rate in row["pass@1"].items()
        if site != row["client"] and rate is not None
    ]
    return 100 * fmean(rates)


def words(runs: Mapping[int, Mapping[str, Any]], model: str) -> str:
    """Sites over all seeds that are better than alone, unclear, and worse, by their 95 % intervals."""
    counts = {"better": 0, "unclear": 0, "worse": 0}
    for verdict in runs.values():
        for client in verdict["clients"].values():
            gap = client["minus_alone"][model]
            counts["better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "unclear"] += 1
    return " / ".join(str(count) for count in counts.values())


def _over(runs: Mapping[int, Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> Spread | None:
    return spread({seed: value(verdict) for seed, verdict in runs.items()})


def shown(value: Spread | None, *, sign: bool = False) -> str:
    """A mean with half of its 95 % interval, if it has one."""
    if value is None:
        return ""
    half = "" if value.half is None else f" ± {value.half:.1f}"
    return f"{value.mean:+.1f}{half}" if sign else f"{value.mean:.1f}{half}"


def site_tables(verdicts: Verdicts) -> list[str]:
    """For each federation a line for each model, and a line for each site with the global adapter."""
    lines: list[str] = []
    for federation in FEDERATIONS:
        runs = verdicts.get((federation, "finish"), {})
        rows = []
        for model in ("base", "alone", "federated") if runs else ():
            rate, away = (_over(runs, lambda v, f=f, model=model: f(v, model)) for f in (mean_rate, elsewhere))  # type: ignore[misc]
            compared = [shown(_over(runs, lambda v: mean_gain(v, "federated")), sign=True), words(runs, "federated")]
            rows.append(
                [model, str(len(runs)), shown(rate), *(compared if model == "federated" else ["", ""]), shown(away)]
            )
        for kind, text in KINDS.items():
            if of_kind := verdicts.get((federation, kind)):
                gain = shown(_over(of_kind, lambda v: mean_gain(v, "personal")), sign=True)
                rate, away = (_over(of_kind, lambda v, f=f: f(v, "personal")) for f in (mean_rate, elsewhere))  # type: ignore[misc]
                rows.append([text, str(len(of_kind)), shown(rate), gain, words(of_kind, "personal"), shown(away)])
        if not rows:
            continue
        header = ["adapter", "n", "at home", "minus alone", "sites better / unclear / worse", "elsewhere"]
        lines += [f"### Each site on its own held-out problems: {federation}", "", table(header, rows)]
        lines += [table(["site", "alone", "federated", "minus alone"], _by_site(runs))] if runs else []
    return lines


def _by_site(runs: Mapping[int, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for site in next(iter(runs.values()))["clients"]:
        alone, together = (
            _over(runs, lambda v, model=model, site=site: 100 * v["clients"][site]["pass@1"][model])  # type: ignore[misc]
            for model in ("alone", "federated")
        )
        gap = _over(runs, lambda v, site=site: 100 * v["clients"][site]["minus_alone"]["federated"]["mean"])  # type: ignore[misc]
        rows.append([site, shown(alone), shown(together), shown(gap, sign=True)])
    return rows
