"""The tables of docs/results/vllm.md, from docs/results/vllm.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def write(results: Mapping[str, Any]) -> str:
    """Write docs/results/vllm.md, and return its text."""
    parts = {"rates": _rates, "sums": _sums}
    text = "\n".join(line for part, lines in parts.items() if part in results for line in lines(results[part]))
    (RESULTS / "vllm.md").write_text(f"# The decode loop and vLLM\n\n{text}", "utf-8")
    return text


def _from(part: Mapping[str, Any]) -> str:
    return (
        f"`{part['command']}`, {part['date']}, fedrlvr {part['fedrlvr']}, torch {part['torch']}, {part['machine']}, "
        "one torch thread a process."
    )


def _rates(part: Mapping[str, Any]) -> Iterator[str]:
    """Medians with all measurements behind them: tokens per CPU second, more is better."""
    yield from ["## Tokens drawn per CPU second", "", "| prompt | new | decode loop | vLLM | loop / vLLM |"]
    yield "| --- | --- | --- | --- | --- |"
    for cell, loop in sorted(part["cells"]["loop"].items(), key=lambda item: [int(n) for n in item[0].split("/")]):
        length, new_tokens = cell.split("/")
        vllm = part["cells"]["vllm"][cell]
        ratio = median(loop) / median(vllm)
        yield f"| {length} | {new_tokens} | {_spread(loop)} | {_spread(vllm)} | {ratio:.1f} |"
    yield from [
        "",
        "Medians, and ranges where a cell was measured more than once. SmolLM2-135M in float32; "
        f"{part['clients']} clients with {part['responses']} responses to one prompt each, adapters of rank "
        f"{part['rank']}; {part['vllm']}. CPU seconds of this process and of the server with its children, without the "
        f"server's start. {_from(part)}",
        "",
    ]


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _sums(part: Mapping[str, Any]) -> Iterator[str]:
    """The federated run's scores beside those of the decode loop at the same seed."""
    loop = json.loads((RESULTS / "smollm2.json").read_text("utf-8"))["runs"]["federated"]["0"]
    last = max(part["curve"], key=int)
    yield from ["## The federated run on sums, seed 0", "", "| sampler | before | after | sampled tokens |"]
    yield "| --- | --- | --- | --- |"
    for name, of_run in (("decode loop", loop), ("vLLM", part)):
        first, end = of_run["curve"]["0"], of_run["curve"][last]
        yield f"| {name} | {first:.1f} | {end:.1f} | {of_run['tokens_sampled']:,} |"
    yield from [
        "",
        f"pass@1 in % of 512 held-out sums, one sample each, before and after {last} rounds of 3 local steps at each "
        f"of three clients. With vLLM {part['cpu_seconds'] / 3600:.2f} CPU hours, the server's among them. The sampler "
        f"by the run's own words: {part['sampler']}. {_from(part)}",
        "",
    ]
