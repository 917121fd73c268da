"""The results of `scripts/bench smollm2` as tables, a figure and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.gain_sites_tables import shown
from benchmarks.tables import table
from fedrlvr.machine import description
from fedrlvr.reporting.spread import Spread, paired, spread
from fedrlvr.version import __version__

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
STEPS = 36
"""Local steps of a run."""
NAMES = {
    "alone": "each client alone",
    "federated": "federated",
    "int8": "federated, messages in int8",
    "pubswap": "federated, PubSwap",
    "central": "all problems pooled, a third of the samples",
}
Run = Mapping[str, Any]
Runs = Mapping[str, Run]
"""The runs of an arm by seed."""


def curve(run: Run) -> dict[int, float]:
    """pass@1 in % by local step of an arm's run."""
    last = max(map(int, run["curve"]))
    return {int(round_) * STEPS // last: score for round_, score in run["curve"].items()}


def end(run: Run) -> float:
    """pass@1 in % after the last round."""
    return float(run["curve"][max(run["curve"], key=int)])


def gain(run: Run) -> float:
    """Points gained over the base model on the same problems."""
    return end(run) - curve(run)[0]


def over(runs: Runs, value: Callable[[Run], float]) -> Spread | None:
    """Mean and interval over the seeds of an arm."""
    return spread({int(seed): value(run) for seed, run in runs.items()})


def arms_table(results: Mapping[str, Runs]) -> str:
    """A line for each arm."""
    alone, rows = results.get("alone", {}), []
    for arm, name in NAMES.items():
        if not (runs := results.get(arm)):
            continue
        versus = "" if arm == "alone" else shown(paired(runs, alone, end), sign=True)
        sampled = over(runs, lambda run: run["tokens_sampled"] / 1000)
        cells = [
            shown(over(runs, lambda run: curve(run)[0])),
            shown(over(runs, end)),
            shown(over(runs, gain), sign=True),
        ]
        bytes_up = f"{fmean(run['bytes_up'] for run in runs.values()) / 1e6:.1f}"
        rows.append([name, str(len(runs)), *cells, versus, shown(sampled), bytes_up])
    header = [
        "arm",
        "n",
        "base",
        f"after {STEPS} steps",
        "gain",
        "minus alone",
        "sampled tokens, thousands",
        "MB up a client",
    ]
    return table(header, rows)


def drift_table(results: Mapping[str, Runs]) -> str:
    """How far clients are apart before they are averaged, by the number of local steps a round."""
    rows = []
    for steps in (1, 2, 5, 10, 20):
        if run := results.get(f"drift-{steps}", {}).get("0"):
            first = [f"{run[name][0]:.3f}" for name in ("distance", "apart", "cosine", "server_step")]
            means = [f"{fmean(run[name]):.3f}" for name in ("apart", "cosine")]
            rows.append([str(steps), *first, *means, f"{end(run):.1f}"])
    header = ["local steps a round", "longest change, round 1", "distance of two clients, round 1"]
    header += ["mean cosine, round 1", "server step, round 1", "distance, all rounds", "mean cosine, all rounds"]
    return table([*header, "pass@1 after 20 steps, %, 128 problems"], rows)


def unfinished_table(results: Mapping[str, Runs]) -> str:
    """Treatments of responses that were cut: scores by seed, and the share that was cut first and last."""
    rows, grade = [], results.get("unfinished-grade", {})
    for value in ("grade", "zero", "mask"):
        if not (runs := results.get(f"unfinished-{value}")):
            continue
        scores = ", ".join(f"{end(runs[seed]):.1f}" for seed in sorted(runs, key=int))
        shared = [seed for seed in sorted(runs, key=int) if seed in grade]
        differences = ", ".join(f"{end(runs[seed]) - end(grade[seed]):+.1f}" for seed in shared)
        cut = [100 * fmean(run["cut"][place] for run in runs.values()) for place in (0, -1)]
        rows.append([value, scores, "" if value == "grade" else differences, *(f"{share:.1f}" for share in cut)])
    header = ["train.unfinished", "pass@1 after 24 rounds, by seed", "minus grade", "cut, % of round 1"]
    return table([*header, "cut, % of round 24"], rows)


def export_table(check: Mapping[str, Any]) -> str:
    """An exported adapter's greedy answers in other software."""
    names = {"fedrlvr": "fedrlvr", "peft": "adapter in PEFT", "merged": "merged weights in transformers"}
    rows = [
        [
            shown_as,
            str(check["same"].get(name, "")),
            str(check["right"][name]),
            f"{check['difference'][name]:.1e}" if name in check["difference"] else "",
        ]
        for name, shown_as in names.items()
    ]
    return table(["read by", "same answers", "right", "largest difference of a log-prob on one prompt"], rows)


def figure(results: Mapping[str, Runs], path: Path) -> None:
    """pass@1 over local steps, mean of the seeds of each arm with the seeds behind it."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fedrlvr"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for number, (arm, name) in enumerate(NAMES.items()):
        runs = [curve(run) for run in results.get(arm, {}).values()]
        if not runs or arm == "int8":  # which is compared with the same seeds only
            continue
        steps = sorted(set.intersection(*map(set, runs)))
        for run in runs:
            axes.plot(sorted(run), [run[step] for step in sorted(run)], color=f"C{number}", alpha=0.2, linewidth=1)
        axes.plot(
            steps, [fmean(run[step] for run in runs) for step in steps], color=f"C{number}", label=name, marker="o"
        )
    axes.set(xlabel="local steps of each client", ylabel="pass@1 on 512 held-out sums, %", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write(
    results: Mapping[str, Runs],
    choices: Mapping[str, Mapping[str, float]],
    export: Mapping[str, Any] | None = None,
    *,
    cpu: float,
) -> None:
    """Write docs/results/smollm2.{json,md} and docs/figures/smollm2.svg.

    export: the check of an exported adapter. cpu: seconds that the runs on this machine took.
    """
    today = datetime.date.today().isoformat()
    about = (
        f"`scripts/bench smollm2`, {today}, fedrlvr {__version__}, {description()}, one torch thread a process; runs "
        f"still on this machine took {cpu / 3600:.1f} CPU hours. SmolLM2-135M-Instruct, sums of one and two digits. "
        "pass@1 in %, 512 held-out problems, one sample each; mean and 95 % interval (Student's t) over n seeds, "
        "differences paired by seed."
    )
    rates = [
        [NAMES[arm], ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in scores.items())]
        for arm, scores in choices.items()
    ]
    parts = [about, "### Arms", arms_table(results)]
    if rounded := paired(results.get("int8", {}), results.get("federated", {}), end):
        parts.append(f"Messages in int8 minus float32: {shown(rounded, sign=True)} points, paired by seed.")
    if any(arm.startswith("drift") for arm in results):
        parts += ["### Distance between clients before averaging, seed 0", drift_table(results)]
    if any(arm.startswith("unfinished") for arm in results):
        parts += ["### Responses that were cut: 24 rounds of 2 local steps", unfinished_table(results)]
    if export is not None:
        title = f"### The exported adapter: greedy answers to {export['problems']} held-out problems"
        where = f"Of the arm federated, {export['run'].replace('-', ' ')}, after {export['rounds']} rounds."
        parts += [title, where, export_table(export)]
    if rates:
        parts += [
            "### Learning rates: pass@1 in % on 128 validation problems, seed 100",
            table(["arm", "scores"], rates),
        ]
    (RESULTS / "smollm2.md").write_text("\n\n".join(part.rstrip() for part in parts) + "\n", "utf-8")
    kept = {"about": about, "choices": choices, "runs": results} | ({} if export is None else {"export": export})
    (RESULTS / "smollm2.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")
    figure(results, ROOT / "docs" / "figures" / "smollm2.svg")
    print((RESULTS / "smollm2.md").read_text("utf-8"))
