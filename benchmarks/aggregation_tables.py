"""The tables of `scripts/bench aggregation`: scores, differences, bytes, weights, defences."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.aggregation_cells import (
    EVERY,
    FASTER,
    FGRPO,
    HOSTILE,
    PARTS,
    ROOT,
    ROUNDS,
    RULES,
    RUNS,
    SEEDS,
    WEIGHTS,
    failed,
)
from benchmarks.aggregation_data import SCALES
from fedrlvr.machine import description
from fedrlvr.reporting.scores import evaluations, natural
from fedrlvr.reporting.spread import Spread, spread
from fedrlvr.reporting.spread import paired as by_seed
from fedrlvr.server.metrics_log import read_metrics

Run = dict[str, Any]
Cells = dict[tuple[str, str], dict[int, Run]]
"""By part and cell, by seed: what a run came to, or `ended`, the error that ended it."""

COUNTED = [r for r in range(2, ROUNDS + 1) if r % EVERY and r % EVERY != 1]
"""Rounds whose bytes are counted: neither they nor the ones before are evaluated, so that nothing but training travels;
as many odd as even, for a rule that takes turns."""
WORST_ALLOWED, BEST_WANTED = -1.0, 3.0
"""Points against weights by examples: on the even federation, and on the uneven ones."""
NAMES = {
    "examples": "examples",
    "equal": "equal",
    "fgrpo": "FGRPO",
    "zscore": "FGRPO, gain = zscore",
    "window": "FGRPO, baseline = window",
    "positive": "FGRPO, shape = positive",
    "cold": "FGRPO, temperature = 0.25",
}
DEFENDED = {"none": "none", "left_out": "largest_change = 3, quorum = 0.5", "quorum": "quorum = 0.5"}


def write(draw: Callable[[Cells, Path], None], seeds: int | None = None) -> None:
    """Make results and figures of every cell that has all seeds.

    draw: makes the figures below a directory (aggregation_figures.py).

    Raises:
        SystemExit: none has.
    """
    cells: Cells = {}
    for part, names in PARTS.items():
        for cell in names:
            by_seed = {seed: _found(RUNS / part / cell, seed) for seed in range(seeds or SEEDS[part])}
            kept = {seed: run for seed, run in by_seed.items() if run is not None}
            if len(kept) == len(by_seed):
                cells[part, cell] = kept
    if not cells:
        raise SystemExit("no cell is finished yet")
    machine = description()
    cpu = {key: json.loads((RUNS.joinpath(*key) / "seconds.json").read_text("utf-8"))["cpu"] for key in cells}
    counts = ", ".join(
        f"{len(next(runs for key, runs in cells.items() if key[0] == p))} in ({p})" for p in _parts(cells)
    )
    about = (
        f"`scripts/bench aggregation{f' --seeds {seeds}' if seeds else ''}`, {datetime.date.today()}, {machine}, one "
        f"torch thread a process, {sum(cpu.values()) / 3600:.1f} CPU hours. Seeds from 0 on: {counts}. Mean and 95 % "
        "interval (Student's t) over seeds; differences are taken seed by seed. pass@1 in %, one sample a problem, on "
        "2,048 held-out problems (1,024 in (d)), after 8 rounds of 3 local steps of 8 problems ((d): 2 of 4)."
    )
    lines = [about, ""]
    for part, of in (
        ("a", rules_table),
        ("a", faster_table),
        ("a", travel_table),
        ("b", ranks_table),
        ("c", weights_tables),
        ("d", robust_table),
    ):
        if any(key[0] == part for key in cells):
            lines += [*of(cells), ""]
    lines += ["### CPU seconds a run", "", "| part | cell | seconds |", "|---|---|---|"]
    lines += [f"| {part} | {cell} | {cpu[part, cell] / len(runs):.0f} |" for (part, cell), runs in cells.items()]
    (ROOT / "docs" / "results" / "aggregation.md").write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    rows = [
        {"part": part, "cell": cell, "seed": seed, **run}
        for (part, cell), runs in cells.items()
        for seed, run in runs.items()
    ]
    results = {"about": about, "cpu_seconds": {f"{p}/{c}": round(s, 1) for (p, c), s in cpu.items()}, "runs": rows}
    (ROOT / "docs" / "results" / "aggregation.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    draw(cells, ROOT)
    print("\n".join(lines))


def _parts(cells: Cells) -> list[str]:
    return list(dict.fromkeys(part for part, _ in cells))


def _found(directory: Path, seed: int) -> Run | None:
    """What a run came to; None if it is not finished."""
    reason = failed(directory).get(seed)
    if reason is not None:
        return {"ended": reason}
    where = directory / "as-given" / f"seed-{seed}"
    return summary(read_metrics(where)) if (where / "report.html").exists() else None


def summary(records: list[dict[str, Any]]) -> Run:
    """A run's scores by evaluated round, bytes of each client, server seconds, and weights over rounds."""
    rounds = [record for record in records if record["round"]]
    clients = sorted(rounds[0]["clients"], key=natural)
    counted = [record["clients"] for record in rounds if record["round"] in COUNTED]

    def course(key: str) -> dict[str, list[float | None]]:
        return {client: [record["clients"].get(client, {}).get(key) for record in rounds] for client in clients}

    scores = {}
    for record in records:
        if "evaluate" in record:
            overall, by_source = evaluations([record])[record["round"]]
            by_client = {
                client: fmean(sums["total"] / sums["n"] for sums in sources.values() if sums["n"])
                for client, sources in sorted(record["evaluate"].items(), key=lambda item: natural(item[0]))
                if sources
            }
            scores[str(record["round"])] = {
                "mean": overall.mean,
                "clients": by_client,
                "sources": {source: estimate.mean for source, estimate in by_source.items()},
            }
    run: Run = {
        "pass@1": scores,
        "bytes_up": {c: fmean(numbers[c]["bytes_up"] for numbers in counted) for c in clients},
        "bytes_down": {c: fmean(numbers[c]["bytes_down"] for numbers in counted) for c in clients},
        "aggregate_seconds": fmean(record["seconds"]["aggregate"] for record in rounds),
        "reward": course("reward"),
        "weight": course("weight"),
    }
    if any("gain" in numbers for record in rounds for numbers in record["clients"].values()):
        run["gain"] = course("gain")
    left_out = [client for record in rounds for client in record.get("left_out", {})]
    if left_out:
        run["left_out"] = {client: left_out.count(client) for client in sorted(set(left_out), key=natural)}
    return run


# Numbers of a run, in %, after the last round.


def mean_score(run: Run, round_: int = ROUNDS) -> float:
    """Mean over sources."""
    return 100 * float(run["pass@1"][str(round_)]["mean"])


def worst_score(run: Run) -> float:
    """That of the client which is worst off."""
    return 100 * min(run["pass@1"][str(ROUNDS)]["clients"].values())


def client_score(run: Run, client: str, round_: int = ROUNDS) -> float:
    """One client's, the mean over its sources."""
    return 100 * float(run["pass@1"][str(round_)]["clients"][client])


def honest_score(run: Run) -> float:
    """Mean over the seven honest clients, who hold one family each."""
    return 100 * fmean(s for client, s in run["pass@1"][str(ROUNDS)]["clients"].items() if client != HOSTILE)


def over_seeds(runs: Mapping[int, Run], value: Callable[[Run], float]) -> Spread:
    """A number's mean and interval."""
    result = spread({seed: value(run) for seed, run in runs.items()})
    assert result is not None
    return result


def paired(runs: Mapping[int, Run], others: Mapping[int, Run], value: Callable[[Run], float]) -> Spread:
    """Points by which one cell is ahead of another, seed by seed."""
    result = by_seed(runs, others, value)
    assert result is not None
    return result


def shown(value: Spread, sign: bool = False, digits: int = 1) -> str:
    half = f" ± {value.half:.{digits}f}" if value.half is not None else ""
    return f"{value.mean:+.{digits}f}{half}" if sign else f"{value.mean:,.{digits}f}{half}"


def _table(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"### {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _minus(cells: Cells, key: tuple[str, str], other: tuple[str, str], value: Callable[[Run], float]) -> str:
    if other not in cells or key == other:
        return ""
    return shown(paired(cells[key], cells[other], value), sign=True)


def _kilobytes(runs: Mapping[int, Run], way: str, client: str | None = None) -> str:
    """kB a round: of one client, or the mean of all."""
    return shown(
        over_seeds(runs, lambda run: (fmean(run[way].values()) if client is None else run[way][client]) / 1000),
        digits=0,
    ).partition(" ")[0]


def _milliseconds(runs: Mapping[int, Run]) -> str:
    return shown(over_seeds(runs, lambda run: 1000 * run["aggregate_seconds"]))


# (a) and (b)


def _one(cells: Cells, cell: str) -> list[str]:
    runs, key = cells["a", cell], ("a", cell)
    scores = [shown(over_seeds(runs, lambda run, at=at: mean_score(run, at))) for at in (EVERY, ROUNDS)]  # type: ignore[misc]
    other = ("a", "faster/fedit" if cell.startswith("faster/") else "fedit")
    ahead = _minus(cells, key, other, mean_score)
    travels = [_kilobytes(runs, way) for way in ("bytes_up", "bytes_down")]
    return [*scores, ahead, *travels, _milliseconds(runs)]


_COLUMNS = [f"after {EVERY} rounds", f"after {ROUNDS}", "minus fedit", "kB up", "kB down", "server ms a round"]


def rules_table(cells: Cells) -> list[str]:
    """Seven rules at one rank."""
    rows = [[rule, *_one(cells, rule)] for rule in RULES if ("a", rule) in cells]
    return _table("(a) Rules at rank 8; bytes of a client in a round", ["rule", *_COLUMNS], rows)


def faster_table(cells: Cells) -> list[str]:
    """Four of them at twice the learning rate."""
    rows = [[rule, *_one(cells, f"faster/{rule}")] for rule in FASTER if ("a", f"faster/{rule}") in cells]
    title = "(a) At twice the learning rate, 6e-3 (added once the others had been seen)"
    return _table(title, ["rule", *_COLUMNS], rows) if rows else []


def travel_table(cells: Cells) -> list[str]:
    """Three precisions of what travels."""
    names = {"float32": "fedit", "float16": "float16", "int8": "int8"}
    rows = [[name, *_one(cells, cell)] for name, cell in names.items() if ("a", cell) in cells]
    return _table("(a) What travels, with fedit; bytes of a client in a round", ["precision", *_COLUMNS], rows)


def ranks_table(cells: Cells) -> list[str]:
    """Mixed ranks beside rank 2 and rank 16 for all."""
    rows: list[list[str]] = []
    clients: list[str] = []
    for cell in PARTS["b"]:
        if (runs := cells.get(("b", cell))) is not None:
            clients = list(runs[0]["weight"])
            ranks, rule = cell.split("/")
            client_scores = [shown(over_seeds(runs, lambda run, c=c: client_score(run, c))) for c in clients]  # type: ignore[misc]
            ahead = [_minus(cells, ("b", cell), ("b", other), mean_score) for other in ("2/fedit", "16/fedit")]
            ways = [
                " / ".join(_kilobytes(runs, way, client) for client in clients)
                if ranks == "mixed"
                else _kilobytes(runs, way)
                for way in ("bytes_up", "bytes_down")
            ]
            ranks_text = "2, 4, 8, 16" if ranks == "mixed" else f"{ranks} for all"
            rows.append(
                [
                    ranks_text,
                    rule,
                    shown(over_seeds(runs, mean_score)),
                    *ahead,
                    *client_scores,
                    *ways,
                    _milliseconds(runs),
                ]
            )
    header = ["ranks", "rule", "pass@1", "minus rank 2, fedit", "minus rank 16, fedit", *clients, "kB up", "kB down"]
    title = "(b) Ranks 2, 4, 8 and 16 in one federation (in the clients' order); lora.alpha is 16 throughout"
    return _table(title, [*header, "server ms a round"], rows)


# (c)


def weights_tables(cells: Cells) -> list[str]:
    """Scores by federation and weighting, weights, what scales do, and whether the goal is met."""
    lines: list[str] = []
    for federation, weightings in WEIGHTS.items():
        rows: list[list[str]] = []
        base = ("c", f"{federation}/examples")
        clients: list[str] = []
        for weights in weightings:
            key = ("c", f"{federation}/{weights}")
            if key not in cells:
                continue
            runs = cells[key]
            clients = list(runs[0]["weight"])
            if not rows:
                before = [shown(over_seeds(runs, lambda run, c=c: client_score(run, c, 0))) for c in clients]  # type: ignore[misc]
                start = shown(over_seeds(runs, lambda run: mean_score(run, 0)))
                rows.append(["before training", start, "", "", "", *before])
            row = [NAMES[weights]]
            for value in (mean_score, worst_score):
                row += [shown(over_seeds(runs, value)), _minus(cells, key, base, value)]
            client_scores = [shown(over_seeds(runs, lambda run, c=c: client_score(run, c))) for c in clients]  # type: ignore[misc]
            rows.append([*row, *client_scores])
        if rows:
            header = ["weights", "mean over sources", "minus examples", "worst client", "minus examples", *clients]
            lines += [*_table(f"(c) {federation}", header, rows), ""]
    return [*lines, *_weight_table(cells), "", *_scales(cells), "", *goal_table(cells)]


def _weight_table(cells: Cells) -> list[str]:
    rows = []
    for federation, weightings in WEIGHTS.items():
        for weights in weightings:
            if weights in FGRPO and (runs := cells.get(("c", f"{federation}/{weights}"))) is not None:
                texts = []
                for client in runs[0]["weight"]:
                    values = [w for run in runs.values() for w in run["weight"][client][1:] if w is not None]
                    texts.append(f"{client} {fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
                rows.append([federation, NAMES[weights], "; ".join(texts)])
    title = f"(c) Weights in rounds 2 to {ROUNDS}: mean, smallest and largest over rounds and seeds"
    return _table(title, ["federation", "weights", "clients"], rows)


def raw_shares(run: Run, client: str) -> list[float]:
    """What a client would weigh in each round if clients were weighed by their mean rewards as they are."""
    rewards = [dict(zip(run["reward"], row, strict=True)) for row in zip(*run["reward"].values(), strict=True)]
    return [by_client[client] / sum(by_client.values()) for by_client in rewards if sum(by_client.values())]


def _scales(cells: Cells) -> list[str]:
    """The federation `scales` beside `even`, whose problems, samples and gradients it shares."""
    keys = {name: ("c", f"{name}/examples") for name in ("even", "scales")}
    if not set(keys.values()) <= set(cells):
        return []
    even, scales = (cells[key] for key in keys.values())
    lines = ["### (c) What the scale of rewards does", ""]
    lines.append(
        f"- `scales` minus `even`, both by examples: {shown(paired(scales, even, mean_score), sign=True)} points."
    )
    first = max(
        abs(scales[seed]["reward"][c][0] / factor - even[seed]["reward"][c][0])
        for seed in scales
        for c, factor in SCALES.items()
    )
    lines.append(f"- Largest difference of a mean reward, divided by its scale, in round 1: {first:.2g}.")
    fgrpo = [cells.get(("c", f"{name}/fgrpo")) for name in ("even", "scales")]
    if fgrpo[0] and fgrpo[1]:
        apart = max(abs(fgrpo[1][s]["weight"][c][1] - fgrpo[0][s]["weight"][c][1]) for s in fgrpo[0] for c in SCALES)
        lines.append(
            f"- Largest difference of a client's FGRPO weight in round 2 between `scales` and `even`: {apart:.2g}."
        )
    largest = max(SCALES, key=lambda client: SCALES[client])
    shares = {name: [s for run in cells[key].values() for s in raw_shares(run, largest)] for name, key in keys.items()}
    scaled, usual = (fmean(shares[name]) for name in ("scales", "even"))
    lines.append(
        f"- Weighed by its mean reward as it is, {largest} (scale {SCALES[largest]}) would weigh {scaled:.3f} in "
        f"`scales`, mean over rounds and seeds (smallest {min(shares['scales']):.3f}), and {usual:.3f} in `even`. "
        "Arithmetic from the rewards of the runs by examples, not a run."
    )
    return lines


def goal_table(cells: Cells) -> list[str]:
    """Each form of FGRPO against weights by examples, and whether it does what it should."""
    rows = []
    uneven = [federation for federation in WEIGHTS if federation != "even"]
    for weights in FGRPO:
        row = [NAMES[weights]]
        reached: list[str] = []
        missed: list[str] = []
        kept = None
        for federation in WEIGHTS:
            weighted, base = (cells.get(("c", f"{federation}/{name}")) for name in (weights, "examples"))
            if weighted is None or base is None:
                row.append("")
                continue
            ahead = [paired(weighted, base, value) for value in (mean_score, worst_score)]
            row.append(" / ".join(shown(difference, sign=True) for difference in ahead))
            if federation == "even":
                kept = ahead[0].mean >= WORST_ALLOWED
            else:
                (reached if max(difference.mean for difference in ahead) >= BEST_WANTED else missed).append(federation)
        if any(row[1:]):
            first = "" if kept is None else "yes" if kept else "no"
            rows.append([*row, first, ", ".join(reached) or "none", ", ".join(missed) or "none"])
    header = ["weights", "even", *uneven, "even: at most 1 below", "3 above in", "not in"]
    return _table("(c) Minus weights by examples: mean over sources / worst client", header, rows)


# (d)


def robust_table(cells: Cells) -> list[str]:
    """Each attack with each defence, and each defence where nobody is hostile."""
    rows = []
    for cell in PARTS["d"]:
        if ("d", cell) not in cells:
            continue
        attack, defence = cell.split("/")
        runs = {seed: run for seed, run in cells["d", cell].items() if "ended" not in run}
        row = [attack, DEFENDED.get(defence, f"robust = {defence}")]
        if runs:
            base = cells.get(("d", "nobody/none"))
            is_baseline = base is None or cell == "nobody/none"
            ahead = "" if is_baseline or base is None else shown(paired(runs, base, honest_score), sign=True)
            everybody = all(HOSTILE in run["pass@1"][str(ROUNDS)]["clients"] for run in runs.values())
            row += [shown(over_seeds(runs, honest_score)), ahead]
            row += [shown(over_seeds(runs, mean_score)) if everybody else "not evaluated", _left_out(runs)]
        else:
            row += ["", "", "", ""]
        reasons = sorted({run["ended"] for run in cells["d", cell].values() if "ended" in run})
        ended = len(cells["d", cell]) - len(runs)
        rows.append([*row, f"{ended} of {len(cells['d', cell])}: {'; '.join(reasons)}" if ended else ""])
    header = ["hostile", "defence", "seven honest families", "minus nobody, none", "all eight", "left out", "ended"]
    title = f"(d) {HOSTILE} of eight is hostile; left out: rounds of {ROUNDS}, mean over seeds"
    return _table(title, header, rows)


def _left_out(runs: Mapping[int, Run]) -> str:
    names = sorted({client for run in runs.values() for client in run.get("left_out", {})}, key=natural)
    means = {name: fmean(run.get("left_out", {}).get(name, 0) for run in runs.values()) for name in names}
    return ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())


if __name__ == "__main__":
    raise SystemExit("scripts/bench aggregation --collect")
