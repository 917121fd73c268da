"""The measurements as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison import BASELINE
from benchmarks.growth import curve, per_round, per_token
from benchmarks.measure import MEBI, Summary, ratios, summary

Found = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def growth_of(side: Found) -> tuple[int, int]:
    """Bytes of a round's peak above what was resident after importing, and above what was before the round."""
    memory = side["memory"]
    return memory["peak"] - side["resident"]["imported"], memory["peak"] - memory["before"]


def mebi(value: float) -> str:
    """Bytes, shown in MiB."""
    return f"{value / MEBI:,.0f}"


def _line(label: str, side: Found, against: Summary | None) -> list[str]:
    rounds = side["rounds"]
    imported, before = growth_of(side)
    return [
        label,
        str(len(rounds)),
        summary([per_round(cost) for cost in rounds]).shown(),
        summary([float(cost["wall"]) for cost in rounds]).shown(),
        summary([per_token(cost) for cost in rounds]).shown(0),
        against.shown() if against else "",
        mebi(side["memory"]["peak"]),
        mebi(imported),
        mebi(before),
    ]


def comparison(result: Found) -> str:
    """A case's table. Each ratio is of pairs of rounds, the row's by ours beside it."""
    header = [
        "",
        "n",
        "CPU-s a round",
        "wall-s a round",
        "CPU-µs a token",
        "CPU by ours beside it",
        "peak MiB",
        "above imports",
        "above before the round",
    ]
    rows = []
    for label, pair in result["rows"].items():
        quotient = ratios(*([per_round(cost) for cost in pair[side]["rounds"]] for side in ("first", "second")))
        rows.append(_line(label, pair["first"], quotient))
        if label == BASELINE:
            rows.append(_line("fedrlvr", pair["second"], None))
    return table(header, rows) + "\n" + floor_line(result) + "\n" + splits_line(result) + "\n" + phases(result)


def gap(result: Found) -> Summary:
    """CPU seconds of our rounds (all that were measured against the baseline) by the median floor."""
    floor = summary(result["floor"]["seconds"]).median
    return summary([per_round(cost) / floor for cost in result["rows"][BASELINE]["second"]["rounds"]])


def floor_line(result: Found) -> str:
    """The floors and the gap to ours, in sentences."""

    def alone(floor: Found) -> str:
        seconds = summary(floor["seconds"])
        return (
            f"{floor['calls']:,} calls, {floor['shapes']} shapes, {floor['gflop']:.0f} GFLOP: alone they take "
            f"{seconds.shown()} CPU-s (n = {seconds.n})"
        )

    text = (
        f"Floor: the matrix products of a round of ours ({alone(result['floor'])}). Our round is {gap(result).shown()} "
        "times that."
    )
    if "baseline floor" in result:
        text += f" Those of a round of {BASELINE}: {alone(result['baseline floor'])}."
    return text + "\n"


def splits_line(result: Found) -> str:
    """The trial of the baseline's micro-batches, in a sentence."""
    parts = [
        f"{name}: {split['cpu']:.2f} CPU-s, peak {mebi(split['memory']['peak'])} MiB"
        for name, split in result["splits"].items()
    ]
    clients = next(iter(result["splits"].values()))["clients"]
    return (
        f"{BASELINE} was tried with micro-batches of these numbers of responses ({clients} client"
        f"{'s' * (clients > 1)}): {'; '.join(parts)}. The fastest, {result['per_device']}, is in the table.\n"
    )


def phases(result: Found) -> str:
    """Where the CPU seconds of a round go, median over the rounds of the first pair."""
    rows = []
    pair = result["rows"][BASELINE]
    for label, side in ((BASELINE, pair["first"]), ("fedrlvr", pair["second"])):
        rounds = side["rounds"]
        total = summary([per_round(cost) for cost in rounds]).median
        names = list(rounds[0]["phases"])
        seconds = {name: summary([cost["phases"].get(name, 0.0) for cost in rounds]).median for name in names}
        if "sample and grade" in seconds:  # the trainer samples within its training step
            seconds["train"] -= seconds["sample and grade"]
        seconds["the rest"] = total - sum(seconds.values())
        rows += [[label, name, f"{value:.3f}", f"{100 * value / total:.1f} %"] for name, value in seconds.items()]
    return table(["", "phase", "CPU-s", "share"], rows)


def vocabulary(result: Mapping[str, Found]) -> str:
    """E3: label -> the learning step's cost."""
    rows = []
    for label, cost in result.items():
        grown = cost["peak"] - cost["before"]
        rows.append(
            [
                label,
                f"{cost['tokens_trained']:,}",
                f"{cost['cpu']:.1f}",
                mebi(cost["before"]),
                mebi(grown),
                mebi(cost["chunk"]),
                mebi(cost["whole"]),
            ]
        )
    header = ["", "tokens", "CPU-s", "MiB before", "MiB more at peak", "MiB of one chunk", "MiB of all logits"]
    return table(header, rows)


def bookkeeping(result: Found) -> str:
    """E4."""
    whole = summary(result["real"])
    rows = []
    for label, values in (
        ("a round", result["real"]),
        ("the same with the model's work and the grading replayed", result["replayed"]),
        ("a checkpoint (not in the rounds above)", result["checkpoint"]),
    ):
        seconds = summary([1000 * value for value in values])
        rows.append([label, str(seconds.n), seconds.shown(1), f"{seconds.median / whole.median / 10:.2f} %"])
    return table(["", "n", "CPU-ms", "of a round"], rows)


def sweep(pairs: Sequence[Found]) -> str:
    """E5."""
    together = [pair["sweep"] for pair in pairs]
    runs = [{key: sum(run[key] for run in pair["runs"]) for key in ("cpu", "wall")} for pair in pairs]
    apart = [pair["apart"] for pair in pairs]
    rows = []
    for label, side in (("one sweep", together), ("five runs", runs), ("five in one process", apart)):
        cpu = [pair["cpu"] for pair in side]
        quotient = "" if side is together else ratios(cpu, [pair["cpu"] for pair in together]).shown()
        rows.append(
            [label, str(len(cpu)), summary(cpu).shown(1), summary([pair["wall"] for pair in side]).shown(1), quotient]
        )
    return table(["", "n", "CPU-s", "wall-s", "CPU by the sweep's"], rows)


def growth(points: Found, name: str) -> str:
    """Both sides over clients or lengths."""
    values = {
        (side, value): curve(points, side, value) for side in ("first", "second") for value in (per_round, per_token)
    }
    rows = []
    for point in map(int, points):
        rounds = ([per_round(cost) for cost in points[str(point)][side]["rounds"]] for side in ("first", "second"))
        rows.append(
            [
                str(point),
                values["first", per_round][point].shown(),
                values["second", per_round][point].shown(),
                values["first", per_token][point].shown(0),
                values["second", per_token][point].shown(0),
                ratios(*rounds).shown(),
            ]
        )
    header = [name, f"{BASELINE}, CPU-s a round", "fedrlvr", f"{BASELINE}, CPU-µs a token", "fedrlvr", "ratio"]
    return table(header, rows)
