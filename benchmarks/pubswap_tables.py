"""What `scripts/bench pubswap` found, as tables and a figure: scores, paired differences, bytes, drift."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.pubswap_cells import ARMS, HALF, ROOT, RUNS, STEPS, STRETCH, TAUS
from fedrlvr.adapter import Adapter
from fedrlvr.config import Config, load_resolved
from fedrlvr.machine import description
from fedrlvr.policy.peft_format import in_model_order, load_peft
from fedrlvr.policy.sampler import Decoding
from fedrlvr.reporting.scores import evaluations
from fedrlvr.reporting.spread import Spread, spread
from fedrlvr.rl import CORRECT
from fedrlvr.seeds import stream
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation.run import new_cohort
from fedrlvr.tasks.deal import deal
from fedrlvr.tasks.partition import by_source

NAMES = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx, mu = 0.01",
    "fedprox_mild": "FedProx, mu = 0.001 (added afterwards)",
    "none": "public steps, no swap",
    "random": "random swap",
    "full": "full pool",
    "balanced": "balanced swap",
}
DRIFTING = ("fedavg", "none", "balanced")
"""Arms whose clients are looked at before averaging."""
BLOCK = 4
"""Exchanges averaged in the table of their course."""
LOOKED_AT = 64
"""Held-out problems of each family that drift is measured on."""

Cells = dict[tuple[int, str], dict[int, dict[str, Any]]]
"""By tau and arm, by seed: what a run came to."""


def write(seeds: int) -> None:
    """Make results and figure of every cell that has all seeds.

    Raises:
        SystemExit: none has.
    """
    cells: Cells = {}
    for tau in TAUS:
        for arm in ARMS:
            runs = {seed: RUNS / f"tau-{tau}" / arm / "as-given" / f"seed-{seed}" for seed in range(seeds)}
            if all((path / "report.html").exists() for path in runs.values()):
                cells[tau, arm] = {seed: _run(path, tau) for seed, path in runs.items()}
    if not cells:
        raise SystemExit("no cell is finished yet")
    drift = _all_drift(cells, seeds)
    machine = description()
    cpu = sum(_seconds(*cell)["cpu"] for cell in cells)
    about = (
        f"`scripts/bench pubswap --seeds {seeds}`, {datetime.date.today()}, {machine}, one torch thread a process, "
        f"{cpu / 3600:.1f} CPU hours. n = {seeds} seeds, mean and 95 % interval (Student's t) over seeds; differences "
        "are taken seed by seed. pass@1 in %, mean of eight families, 2,048 held-out problems, one sample each."
    )
    lines = [about, "", *_scores(cells), "", *_differences(cells), "", *_syncs(cells), "", *_cost(cells), ""]
    lines += [*_exchanges(cells), "", *_course_table(cells), "", *_drift_table(drift)]
    (ROOT / "docs" / "results" / "pubswap.md").write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    results = {
        "about": about,
        "runs": [
            {"tau": tau, "arm": arm, "seed": seed, **run}
            for (tau, arm), runs in cells.items()
            for seed, run in runs.items()
        ],
        "drift": drift,
    }
    (ROOT / "docs" / "results" / "pubswap.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    _draw(cells)
    print("\n".join(lines))


def _seconds(tau: int, arm: str) -> dict[str, float]:
    path = RUNS / f"tau-{tau}" / arm / "seconds.json"
    return dict(json.loads(path.read_text("utf-8")))


def _run(directory: Path, tau: int) -> dict[str, Any]:
    """One run's scores, tokens, bytes of a client, and sums of its exchanges."""
    records = read_metrics(directory)
    curves = evaluations(records)
    clients = [numbers for record in records for numbers in record["clients"].values()]
    exchanges = [exchange for record in records for exchange in record.get("exchanges", [])]
    dealt = [numbers for exchange in exchanges for numbers in exchange["clients"].values()]

    def total(key: str) -> float:
        return sum(numbers.get(key) or 0 for numbers in clients)

    def of(key: str) -> float:
        return sum(numbers.get(key) or 0 for numbers in dealt)

    many = len(records[-1]["clients"])
    run = {
        "pass@1": {
            str(round_ * tau): {"mean": overall.mean, **{name: e.mean for name, e in by_family.items()}}
            for round_, (overall, by_family) in curves.items()
        },
        "tokens_sampled": total("tokens_sampled") + total("public_tokens_sampled"),
        "tokens_trained": total("tokens_trained") + total("public_tokens_trained"),
        "bytes_up": total("bytes_up") / many,
        "bytes_down": total("bytes_down") / many,
    }
    if exchanges:
        run["exchanges"] = {
            "own_correct": of("own_correct") / len(dealt),
            "swapped_in_per_group": of("swapped_in") / sum(exchange["problems"] * many for exchange in exchanges),
            "bytes_up": of("bytes_up") / len(dealt),
            "bytes_down": of("bytes_down") / len(dealt),
        }
        for half, part in (("first", exchanges[: len(exchanges) // 2]), ("second", exchanges[len(exchanges) // 2 :])):
            rescued = sum(numbers.get("rescued", 0) for exchange in part for numbers in exchange["clients"].values())
            run["exchanges"][f"rescued_{half}"] = rescued / sum(exchange["problems"] * many for exchange in part)
        run["exchanges"]["course"] = [
            [_course(exchanges[start : start + BLOCK], key, many) for key in ("own_correct", "swapped_in", "rescued")]
            for start in range(0, len(exchanges), BLOCK)
        ]
        logps = [numbers["foreign_logp"] for numbers in dealt if "foreign_logp" in numbers]
        pools = [exchange["pool"] / exchange["problems"] for exchange in exchanges if "pool" in exchange]
        if pools:
            run["exchanges"]["pool_per_problem"] = sum(pools) / len(pools)
            run["exchanges"]["unsolved"] = sum(exchange["unsolved"] for exchange in exchanges) / len(exchanges)
        if logps:
            run["exchanges"]["foreign_logp"] = sum(logps) / len(logps)
    return run


def _course(exchanges: list[dict[str, Any]], key: str, clients: int) -> float:
    """Mean of a number over some exchanges: own correct of responses, the others a group."""
    total = sum(numbers.get(key) or 0 for exchange in exchanges for numbers in exchange["clients"].values())
    return total / (
        clients * (len(exchanges) if key == "own_correct" else sum(exchange["problems"] for exchange in exchanges))
    )


def _score(step: int) -> Callable[[dict[str, Any]], float]:
    return lambda run: 100 * float(run["pass@1"][str(step)]["mean"])


def _over_seeds(runs: Mapping[int, dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> Spread:
    result = spread({seed: value(run) for seed, run in runs.items()})
    assert result is not None
    return result


def _paired(
    runs: Mapping[int, dict[str, Any]],
    others: Mapping[int, dict[str, Any]],
    at: int,
    their_at: int | None = None,
) -> Spread:
    """Points of pass@1 by which one arm is ahead of another, seed by seed."""
    value, other = _score(at), _score(at if their_at is None else their_at)
    result = spread({seed: value(run) - other(others[seed]) for seed, run in runs.items()})
    assert result is not None
    return result


def _shown(value: Spread, sign: bool = False) -> str:
    half = f" ± {value.half:.1f}" if value.half is not None else ""
    return f"{value.mean:+.1f}{half}" if sign else f"{value.mean:.1f}{half}"


def _scores(cells: Cells) -> list[str]:
    header = " | ".join(f"tau = {tau}, {step} steps" for tau in TAUS for step in (HALF, STEPS))
    lines = ["### pass@1", "", f"| arm | {header} |", "|---|" + "---|" * 2 * len(TAUS)]
    for arm, name in NAMES.items():
        shown = [
            _shown(_over_seeds(cells[tau, arm], _score(step))) if (tau, arm) in cells else ""
            for tau in TAUS
            for step in (HALF, STEPS)
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def _differences(cells: Cells) -> list[str]:
    places = [(tau, step) for tau in TAUS for step in (HALF, STEPS)]
    lines = ["### Differences in points, paired by seed", ""]
    lines += ["| | " + " | ".join(f"tau = {tau}, {step} steps" for tau, step in places) + " |"]
    lines += ["|---|" + "---|" * len(places)]
    pairs = [(arm, "fedavg") for arm in NAMES if arm != "fedavg"]
    pairs += [(arm, "none") for arm in ("random", "full", "balanced")] + [("balanced", "random")]
    for arm, other in pairs:
        shown = [
            _shown(_paired(cells[tau, arm], cells[tau, other], step), sign=True)
            if {(tau, arm), (tau, other)} <= set(cells)
            else ""
            for tau, step in places
        ]
        lines.append(f"| {NAMES[arm]} minus {NAMES[other]} | {' | '.join(shown)} |")
    return lines


def _syncs(cells: Cells) -> list[str]:
    """Every arm against FedAvg with at least twice as many synchronisations behind it."""
    lines = ["### With at most half of FedAvg's synchronisations: minus FedAvg after its 120 steps, points", ""]
    pairs = [
        (tau, step, other_tau)
        for tau in TAUS
        for step in (HALF, STEPS)
        for other_tau in TAUS
        if tau >= other_tau and 2 * (step // tau) <= STEPS // other_tau
    ]
    lines += ["| tau, steps, synchronisations | FedAvg's tau, synchronisations | " + " | ".join(NAMES.values()) + " |"]
    lines += ["|---|---|" + "---|" * len(NAMES)]
    for tau, step, other_tau in pairs:
        if (other_tau, "fedavg") not in cells:
            continue
        shown = [
            _shown(_paired(cells[tau, arm], cells[other_tau, "fedavg"], step, STEPS), sign=True)
            if (tau, arm) in cells
            else ""
            for arm in NAMES
        ]
        lines.append(f"| {tau}, {step}, {step // tau} | {other_tau}, {STEPS // other_tau} | {' | '.join(shown)} |")
    return lines


def _cost(cells: Cells) -> list[str]:
    lines = ["### What it took: tokens of all clients (thousands), kB of a client, evaluations included", ""]
    lines += ["| tau | arm | sampled | trained | kB up | kB down | CPU-s a run |", "|---|---|---|---|---|---|---|"]
    for (tau, arm), runs in cells.items():
        keys = ("tokens_sampled", "tokens_trained", "bytes_up", "bytes_down")
        shown = [f"{_over_seeds(runs, lambda run, key=key: run[key] / 1000).mean:,.0f}" for key in keys]  # type: ignore[misc]
        lines.append(f"| {tau} | {NAMES[arm]} | {' | '.join(shown)} | {_seconds(tau, arm)['cpu'] / len(runs):.0f} |")
    return lines


def _exchanges(cells: Cells) -> list[str]:
    keys = {
        "own_correct": "own correct, %",
        "pool_per_problem": "pool a problem",
        "unsolved": "unsolved, %",
        "swapped_in_per_group": "swapped in a group",
        "rescued_first": "rescued, first half, %",
        "rescued_second": "second half, %",
        "foreign_logp": "log-prob of a foreign token",
        "bytes_up": "bytes up",
        "bytes_down": "bytes down",
    }
    percent = ("own_correct", "unsolved", "rescued_first", "rescued_second")
    lines = [f"### Exchanges, one every {STRETCH} local steps: means over clients, exchanges and seeds", ""]
    lines += [f"| tau | arm | {' | '.join(keys.values())} |", "|---|---|" + "---|" * len(keys)]
    for (tau, arm), runs in cells.items():
        exchanges = [run["exchanges"] for run in runs.values() if "exchanges" in run]
        if exchanges:
            shown = []
            for key in keys:
                values = [exchange[key] * (100 if key in percent else 1) for exchange in exchanges if key in exchange]
                digits = 0 if key.startswith("bytes") else 2 if key.endswith(("group", "logp", "problem")) else 1
                shown.append(f"{sum(values) / len(values):,.{digits}f}" if values else "")
            lines.append(f"| {tau} | {NAMES[arm]} | {' | '.join(shown)} |")
    return lines


def _course_table(cells: Cells) -> list[str]:
    """How exchanges change over a run, at the largest tau."""
    tau = max(TAUS)
    lines = [f"### The course of exchanges at tau = {tau}, in blocks of {BLOCK}: means over clients and seeds", ""]
    blocks = STEPS // STRETCH // BLOCK
    lines += ["| arm | | " + " | ".join(f"{BLOCK * i + 1}-{BLOCK * (i + 1)}" for i in range(blocks)) + " |"]
    lines += ["|---|---|" + "---|" * blocks]
    for arm, name in NAMES.items():
        courses = [run["exchanges"]["course"] for run in cells.get((tau, arm), {}).values() if "exchanges" in run]
        for row, (what, scale, digits) in enumerate(
            (("own correct, %", 100, 0), ("swapped in a group", 1, 2), ("rescued, %", 100, 1))
        ):
            if courses:
                means = [scale * sum(course[i][row] for course in courses) / len(courses) for i in range(blocks)]
                lines.append(f"| {name} | {what} | {' | '.join(f'{mean:.{digits}f}' for mean in means)} |")
    return lines


# Drift: the clients' adapters before they are averaged.


def _all_drift(cells: Cells, seeds: int) -> list[dict[str, Any]]:
    """Of each cell looked at: distance and accuracy before averaging, measured once and kept beside the runs."""
    drifts = []
    looking: Looking | None = None
    for tau, arm in cells:
        if arm not in DRIFTING:
            continue
        for seed in range(seeds):
            directory = RUNS / f"tau-{tau}" / arm / "as-given" / f"seed-{seed}"
            for step in (HALF, STEPS):
                kept = directory / f"drift-{step}.json"
                if not kept.exists():
                    looking = looking or Looking(load_resolved(directory / "config.json"))
                    kept.write_text(json.dumps(looking.at(directory / "local" / f"round-{step // tau}")), "utf-8")
                drifts.append(
                    {"tau": tau, "arm": arm, "seed": seed, "step": step, **json.loads(kept.read_text("utf-8"))}
                )
    return drifts


class Looking:
    """Looks at clients' adapters, on the same held-out problems and random numbers for all."""

    def __init__(self, config: Config) -> None:
        self.cohort = new_cohort(config.model_copy(update={"engine": config.engine.model_copy(update={"threads": 1})}))
        self.initial = self.cohort.fresh_adapter(0)
        sites = deal(config).clients
        self.own_families = {site.name: {problem.source for problem in site.train} for site in sites}
        everything = [problem for site in sites for problem in site.test]
        # Spread over each family's problems, which come level by level.
        self.problems = [
            of_family[i * len(of_family) // LOOKED_AT]
            for of_family in by_source(everything).values()
            for i in range(LOOKED_AT)
        ]
        self.reward = sites[0].reward
        self.length = config.sampling.max_new_tokens

    def at(self, directory: Path) -> dict[str, float]:
        """Mean over clients of distance to the average, and of pass@1 on own and on others' families."""
        adapters: dict[str, Adapter] = {}
        for name in self.own_families:
            adapters[name] = in_model_order(load_peft(directory / name), self.initial, place=str(directory / name))
        self.cohort.seat(adapters)
        ids = self.cohort.base.encode_all([problem.prompt for problem in self.problems])
        seeds = {name: stream(0, name, "drift") for name in adapters}
        drawn = self.cohort.sample(dict.fromkeys(adapters, ids), Decoding(1, self.length), seeds)
        on_own: list[bool] = []
        others: list[bool] = []
        for name, families in self.own_families.items():
            for problem, (response,) in zip(self.problems, drawn[name], strict=True):
                right = self.reward(response.text, problem) >= CORRECT
                (on_own if problem.source in families else others).append(right)
        return {
            "distance": _distance(list(adapters.values())),
            "own": sum(on_own) / len(on_own),
            "others": sum(others) / len(others),
        }


def _distance(adapters: list[Adapter]) -> float:
    """Mean over clients of || D_k - mean D || / || mean D ||, with D = s B A of all layers."""
    apart, common = torch.zeros(len(adapters)), torch.zeros(())
    for name in adapters[0].layers:
        products = torch.stack([a.layers[name].B @ a.layers[name].A for a in adapters])
        mean = products.mean(0)
        apart += (products - mean).square().sum((1, 2))
        common += mean.square().sum()
    return float((apart.sqrt() / common.sqrt()).mean())


def _drift_table(drift: list[dict[str, Any]]) -> list[str]:
    lines = ["### Clients before averaging: distance, and pass@1 in % on their own and on others' families", ""]
    lines += ["| tau | steps | arm | distance | own families | others' families |", "|---|---|---|---|---|---|"]
    for tau in TAUS:
        for step in (HALF, STEPS):
            for arm in DRIFTING:
                runs = {d["seed"]: d for d in drift if (d["tau"], d["step"], d["arm"]) == (tau, step, arm)}
                if runs:
                    distance = _over_seeds(runs, lambda run: float(run["distance"]))
                    scores = [_over_seeds(runs, lambda run, key=key: 100 * run[key]) for key in ("own", "others")]  # type: ignore[misc]
                    half = f" ± {distance.half:.2f}" if distance.half is not None else ""
                    shown = " | ".join(map(_shown, scores))
                    lines.append(f"| {tau} | {step} | {NAMES[arm]} | {distance.mean:.2f}{half} | {shown} |")
    return lines


def _draw(cells: Cells) -> None:
    """pass@1 after 120 steps by tau, and what each arm is ahead of FedAvg."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fedrlvr"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (arm, name) in enumerate(NAMES.items()):
        shift = (place - (len(NAMES) - 1) / 2) * 0.12
        xs = [i for i, tau in enumerate(TAUS) if (tau, arm) in cells]
        scores = [_over_seeds(cells[TAUS[i], arm], _score(STEPS)) for i in xs]
        ends = [i + shift for i in xs]
        halves = [s.half or 0.0 for s in scores]
        left.errorbar(ends, [s.mean for s in scores], yerr=halves, fmt="o", markersize=4, capsize=2, label=name)
        if arm == "fedavg":
            right.errorbar([], [], yerr=[], fmt="o")  # the same colours on both sides
            continue
        both = [i for i in xs if (TAUS[i], "fedavg") in cells]
        ahead = [_paired(cells[TAUS[i], arm], cells[TAUS[i], "fedavg"], STEPS) for i in both]
        halves = [a.half or 0.0 for a in ahead]
        right.errorbar(
            [i + shift for i in both], [a.mean for a in ahead], yerr=halves, fmt="o", markersize=4, capsize=2
        )
    right.axhline(0, color="0.6", linewidth=0.8)
    for axes in (left, right):
        axes.set_xticks(range(len(TAUS)), [f"tau = {tau}" for tau in TAUS])
    left.set(ylabel="pass@1, %", title=f"after {STEPS} local steps")
    right.set(ylabel="points", title="minus FedAvg, paired by seed")
    left.legend(frameon=False, fontsize=8)
    (ROOT / "docs" / "figures").mkdir(exist_ok=True)
    figure.savefig(ROOT / "docs" / "figures" / "pubswap.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    raise SystemExit("scripts/bench pubswap --collect")
