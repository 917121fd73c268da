"""The results of `benchmarks.gpu` in Markdown, of as many cases as there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORDER = ("growing", "static", "graph")


def tables(tree: Mapping[str, Any]) -> str:
    """All that has been measured, and what has not and why."""
    about, cases = tree.get("about", {}), tree.get("cases", {})
    parts = ["# A session on a GPU", _about(about), _status(tree.get("status", {}))]
    if bounds := cases.get("bounds"):
        parts.append(_bounds(bounds))
    if rows := cases.get("parity", {}).get("rows"):
        parts += ["## Against the CPU in float32", _parity(rows)]
    if measured := cases.get("attention"):
        parts += ["## Attention", *_attention(measured)]
    timed = {name: case for name, case in cases.items() if "decode bytes a step" in case}
    if timed:
        parts += ["## Speed, random weights", *_speed(timed, cases.get("bounds", {}))]
    if measured := cases.get("GSM8K"):
        parts += ["## GSM8K", *_gsm8k(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _about(about: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in about.items() if name not in ("date", "device"))
    return f"{about.get('date')}, {about.get('device')}; {shown}."


def _status(status: Mapping[str, Any]) -> str:
    rows = [[name, entry["state"], entry["reason"], str(entry["at"] or "")] for name, entry in status.items()]
    return _table(["case", "state", "reason", "second"], rows)


def _bounds(bounds: Mapping[str, Any]) -> str:
    parts = []
    if "bytes/s" in bounds:
        parts.append(f"Copies run at {bounds['bytes/s'] / 1e9:,.1f} GB/s (read and write counted)")
    if "flop/s" in bounds:
        parts.append(f"products at {bounds['flop/s'] / 1e12:,.2f} TFLOP/s")
    return ", ".join(parts) + "." if parts else ""


def _parity(rows: list[Mapping[str, Any]]) -> str:
    lines = [
        [row["precision"], row["what"], f"{row['value']:.3g}", f"{row['limit']:.3g}", "yes" if row["ok"] else "NO"]
        for row in rows
    ]
    return _table(["precision", "compared", "found", "limit", "within"], lines)


def _attention(measured: Mapping[str, Any]) -> list[str]:
    rows = []
    for phase, profile in measured.get("ran", {}).items():
        operators = ", ".join(
            f"{name.removeprefix('aten::')} x {count}" for name, count in profile["operators"].items()
        )
        rows.append([phase, operators or "none of scaled_dot_product_attention's own"])
    parts = [_table(["work", "attention operators"], rows)] if rows else []
    for phase, profile in measured.get("ran", {}).items():
        lines = [[f"`{name}`", str(count), f"{ms:,.2f}"] for name, count, ms in profile["longest"]]
        parts.append(_table([f"{phase}: longest", "calls", "ms"], lines))
    if could := measured.get("could"):
        names = list(dict.fromkeys(name for of_call in could.values() for name in of_call))
        lines = [[call, *(_tried(of_call.get(name)) for name in names)] for call, of_call in could.items()]
        parts.append(_table(["call, forward and backward", *names], lines))
    return parts


def _tried(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return ""
    if "refuses" in measured:
        return "refuses"
    return f"{measured['ms']:.2f} ms{_mebi(measured['peak bytes'], ', ')}"


def _mebi(size: int | None, before: str = "") -> str:
    return "" if size is None else f"{before}{size / (1 << 20):,.0f} MiB"


def _shown(measured: Mapping[str, Any]) -> str:
    took = measured["seconds"]
    spread = f" ({took['low']:.3f} to {took['high']:.3f})" if took["n"] > 1 else ""
    return f"{took['median']:.3f}{spread}{', cold' if measured['cold'] else ''}"


def _speed(cases: Mapping[str, Any], bounds: Mapping[str, Any]) -> list[str]:
    rows, rounds, skipped = [], [], []
    for name, case in cases.items():
        tokens = case.get("response tokens", 0)
        for way in sorted(case.get("sampling", {}), key=ORDER.index):
            measured = case["sampling"][way]
            if "seconds" not in measured:
                continue
            share = _share(case["decode bytes a step"], bounds.get("bytes/s"), measured["decode seconds a step"])
            rows.append(_line(name, case["dtype"], f"sample, {way}", measured, tokens, share))
        if measured := case.get("training"):
            share = _share(case["training flop"], bounds.get("flop/s"), measured["seconds"]["median"])
            rows.append(_line(name, case["dtype"], "train", measured, tokens, share))
        if "cohort" in case and "one after another" in case:
            together, apart = case["cohort"], case["one after another"]
            gain = apart["seconds"]["median"] / together["seconds"]["median"]
            clients = str(case["case"]["clients"])
            rounds.append([name, clients, together["way"], _shown(together), _shown(apart), f"{gain:.2f}"])
        skipped += [[name, what, reason] for what, reason in case.get("skipped", {}).items()]
    head = ["case", "dtype", "work", "seconds, median (range)", "response tokens/s", "share of the bound", "peak"]
    parts = ["Share of the bound: of the bandwidth in sampling, of the arithmetic in training.", _table(head, rows)]
    if rounds:
        head = ["case", "clients", "decoded", "a round as a cohort, s", "one after another, s", "speed-up"]
        parts.append(_table(head, rounds))
    if skipped:
        parts.append(_table(["case", "skipped", "reason"], skipped))
    return parts


def _share(work: float, rate: float | None, took: float) -> str:
    return f"{work / rate / took:.0%}" if rate and took > 0 else ""


def _line(name: str, dtype: str, work: str, measured: Mapping[str, Any], tokens: int, share: str) -> list[str]:
    per_second = tokens / measured["seconds"]["median"]
    return [name, dtype, work, _shown(measured), f"{per_second:,.0f}", share, _mebi(measured["peak bytes"])]


def _gsm8k(measured: Mapping[str, Any]) -> list[str]:
    loaded = measured.get("loaded and checked, s")
    parts = [f"{measured.get('model', '')}" + (f", loaded and checked in {loaded:.1f} s." if loaded else "")]
    rows = []
    for number, step in enumerate(measured.get("steps", []), start=1):
        rows.append(
            [
                str(number),
                f"{step['correct']:.1%}",
                f"{step['finished']:.0%}",
                f"{step['tokens']:,}",
                f"{step['tokens'] / step['sample s']:,.0f}",
                f"{step['tokens'] / step['learn s']:,.0f}",
                f"{step['grade s']:.2f}",
                f"{step['gradient norm']:.3g}",
            ]
        )
    head = ["step", "correct", "finished", "tokens", "sampled/s", "trained/s", "grading, s", "gradient norm"]
    parts += [_table(head, rows)] if rows else []
    lines = [[what, reason] for what, reason in measured.get("skipped", {}).items()]
    return [*parts, _table(["skipped", "reason"], lines)] if lines else parts
