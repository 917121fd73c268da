"""The embedded default in its three arms, over seeds: federated, each client alone, all problems pooled.

    scripts/bench arms                   5 seeds; about 5 x 3 runs of a minute or two on two cores
    scripts/bench arms --seeds 3

The same problems, held-out problems, rounds, steps and sampled responses in every arm; seeds differ in adapters, draws
and samples. An arm's score is each client's adapter on the client's own families; in `local` those are four adapters,
so they are also measured on everybody's families ("local, on all"). Resumable: a run that is done is not done again.
Writes docs/results/arms.json, docs/figures/arms.svg and the table in docs/results/arms.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from pathlib import Path
from typing import Any

from fedrlvr.config import Config, load_config, load_resolved
from fedrlvr.machine import description
from fedrlvr.reporting.scores import evaluations, t95, totals
from fedrlvr.server.metrics_log import read_metrics, scores_json
from fedrlvr.simulation.evaluate import evaluate
from fedrlvr.simulation.run import resume, run

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "embedded.toml"
RUNS = ROOT / "runs" / "arms"
ARMS = ("federated", "local", "central")


def one(arm: str, seed: int) -> list[dict[str, Any]]:
    """The records of one run, done now or before."""
    directory = RUNS / f"{arm}-{seed}"
    overrides = [f"federation.arm={arm}", f"run.seed={seed}", "evaluate.every=1", f"run.directory={str(directory)!r}"]
    if arm == "federated":
        overrides.append("aggregation.server_learning_rate=1")  # the default when the results were made
    config: Config = load_config(CONFIG, overrides)
    if not (directory / "config.json").exists():
        return run(config).records
    if not (directory / "report.html").exists():
        return resume(directory).records
    return read_metrics(directory)


def on_all_families(seed: int) -> float:
    """Mean over clients of what the adapter each trained alone scores on everybody's families."""
    directory = RUNS / f"local-{seed}"
    kept = directory / "on_all_families.json"
    if not kept.exists():
        config = load_resolved(directory / "config.json")
        means = []
        for client in config.federation.names:
            scores = scores_json(evaluate(config, directory / "adapter" / client))
            means.append(evaluations([{"round": 0, "evaluate": scores}])[0][0].mean)
        kept.write_text(json.dumps(means), "utf-8")
    return statistics.fmean(json.loads(kept.read_text("utf-8")))


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11), metavar="N")
    seeds = list(range(parser.parse_args().seeds))
    curves: dict[str, dict[int, list[float]]] = {arm: {} for arm in ARMS}
    sources: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
    sampled: dict[str, list[int]] = {arm: [] for arm in ARMS}
    bytes_up: dict[str, list[int]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            records = one(arm, seed)
            scores = evaluations(records)
            for round_, (overall, by_source) in scores.items():
                curves[arm].setdefault(round_, []).append(overall.mean)
                if round_ in (0, max(scores)):
                    for source, value in by_source.items():
                        key = f"{source} {'before' if round_ == 0 else 'after'}"
                        sources[arm].setdefault(key, []).append(value.mean)
            total = totals(records)
            sampled[arm].append(total.tokens_sampled)
            bytes_up[arm].append(max(total.bytes_up.values()))
            print(f"seed {seed}  {arm}: {curves[arm][0][-1]:.3f} -> {curves[arm][max(scores)][-1]:.3f}", flush=True)
    abroad = []
    for seed in seeds:
        abroad.append(on_all_families(seed))
        print(f"seed {seed}  local, on all: {abroad[-1]:.3f}", flush=True)
    write(seeds, abroad, curves, sources, sampled, bytes_up)


def write(
    seeds: list[int],
    abroad: list[float],
    curves: dict[str, dict[int, list[float]]],
    sources: dict[str, dict[str, list[float]]],
    sampled: dict[str, list[int]],
    bytes_up: dict[str, list[int]],
) -> None:
    """The results as numbers, a table and a figure."""
    last = max(curves["federated"])
    about = {
        "command": f"scripts/bench arms --seeds {len(seeds)}",
        "date": datetime.date.today().isoformat(),
        "machine": description(),
        # The number of torch threads decides how sums are rounded; each run wrote its own down.
        "torch threads": load_resolved(RUNS / "federated-0" / "config.json").engine.threads,
        "seeds": seeds,
    }
    results = {
        **about,
        "pass@1": curves,
        "local on all families": abroad,
        "sources": sources,
        "tokens_sampled": sampled,
        "bytes_up": bytes_up,
    }
    (ROOT / "docs" / "results" / "arms.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    lines = [
        f"`{about['command']}`, {about['date']}, {about['machine']}, torch threads a run: {about['torch threads']}. "
        "Mean sampled pass@1 over eight families (2,048 held-out problems), "
        f"n = {len(seeds)} seeds, 95 % interval over seeds.",
        "",
        "| arm | before | after | minus federated, paired by seed | tokens sampled | bytes up, a client |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        before, after = mean_interval(curves[arm][0]), mean_interval(curves[arm][last])
        pairs = zip(curves[arm][last], curves["federated"][last], strict=True)
        gap = mean_interval([score - other for score, other in pairs])
        shown = "" if arm == "federated" else f"{gap[0]:+.3f} ± {gap[1]:.3f}"
        lines.append(
            f"| {arm} | {before[0]:.3f} ± {before[1]:.3f} | {after[0]:.3f} ± {after[1]:.3f} | {shown} | "
            f"{statistics.fmean(sampled[arm]):,.0f} | {statistics.fmean(bytes_up[arm]):,.0f} |"
        )
        if arm == "local":
            after = mean_interval(abroad)
            gap = mean_interval([a - f for a, f in zip(abroad, curves["federated"][last], strict=True)])
            lines.append(
                f"| local, on all families | {before[0]:.3f} ± {before[1]:.3f} | {after[0]:.3f} ± {after[1]:.3f} | "
                f"{gap[0]:+.3f} ± {gap[1]:.3f} | | |"
            )
    (ROOT / "docs" / "results" / "arms.md").write_text("\n".join(lines) + "\n", "utf-8")
    draw(curves, sources["federated"])


def draw(curves: dict[str, dict[int, list[float]]], families: dict[str, list[float]]) -> None:
    """Pass@1 over rounds by arm, with intervals; and by family before and after, federated."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fedrlvr"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, rounds in curves.items():
        points = [(round_, *mean_interval(values)) for round_, values in sorted(rounds.items())]
        xs, means, halves = zip(*points, strict=True)
        left.errorbar(xs, means, yerr=halves, marker="o", markersize=3, capsize=2, label=arm)
    left.set(
        xlabel="round", ylabel="pass@1, mean over families", ylim=(0, 1), title="three arms, the same responses sampled"
    )
    left.set_xticks(sorted(curves["federated"]))
    left.legend(frameon=False)
    names = sorted({key.rsplit(" ", 1)[0] for key in families})
    for offset, when in ((-0.2, "before"), (0.2, "after")):
        bars = [mean_interval(families[f"{name} {when}"]) for name in names]
        right.bar(
            [i + offset for i in range(len(names))], [b[0] for b in bars], 0.4, yerr=[b[1] for b in bars], label=when
        )
    right.set_xticks(range(len(names)), names, rotation=30, ha="right")
    right.set(ylabel="pass@1", ylim=(0, 1), title="federated, by family")
    right.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "figures" / "arms.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
