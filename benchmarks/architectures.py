"""Which causal LM classes work, as a sweep over all that transformers knows: `scripts/bench architectures`.

Each class is built small, with random weights, in a process of its own that is bounded in time and memory. Two clients
sample, train and export on it. Every number is held against plain transformers and PEFT, one text at a time, without a
cache. A class works, or fedrlvr refuses it in one line; anything else is a fault. Results are appended to a file after
each class, and a sweep that is started again goes on.

    nice scripts/bench architectures [--only llama,mamba] [--table docs/own-model.md]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.tiny_models import save_tiny
from fedrlvr.machine import package_version

RESULTS = Path("docs/results/architectures.jsonl")
MARK = "<!-- the table of scripts/bench architectures -->"
SECONDS, BYTES, PARAMETERS = 240, 8 << 30, 8_000_000
LIMIT = 1e-3
"""Largest accepted difference of a log-prob."""
TEXTS = {"a": ["1 + 1 =", "What is 12 + 345?"], "b": ["Name a prime number above 20.", "7"]}


def examine(directory: Path, work: Path) -> dict[str, Any]:
    """What comes of a model: `works` with its numbers, or `refused` with the reason.

    directory: the model. work: where exports are written.
    """
    from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig
    from fedrlvr.errors import AdapterError, FedrlvrError
    from fedrlvr.policy.base import load_base
    from fedrlvr.policy.cohort import Cohort
    from fedrlvr.policy.export import export_adapter, export_merged

    settings, lora = ModelConfig(name=str(directory), device="cpu", dtype="float32"), LoraConfig(rank=3, alpha=7.5)
    try:
        cohort = Cohort(load_base(settings), lora, EngineConfig())
        cohort.self_check()
    except FedrlvrError as error:
        return {"verdict": "refused", "reason": str(error).replace(str(directory), "MODEL")}
    adapters = {client: moved(cohort, seed) for seed, client in enumerate(TEXTS)}
    result: dict[str, Any] = {"verdict": "works", "decoding": cohort.base.decoding, "packs": cohort.base.packs}
    result["experts left out"] = cohort.base.fused_experts
    policies: dict[str, Any] = {}
    for client, adapter in adapters.items():
        merged = export_merged(adapter, settings, lora, work / f"{client}-merged")
        result["merged"] = max(result.get("merged", 0.0), merged.difference)
        try:
            written = export_adapter(adapter, settings, lora, work / client)
            result["adapter"] = max(result.get("adapter", 0.0), written.difference)
            policies[client] = plain(directory, work / client)
        except AdapterError as error:
            result["adapter"] = str(error).split("(")[0].strip()
            policies[client] = plain(work / f"{client}-merged")
    result.update(gaps(cohort, adapters, policies))
    numbers = [value for name, value in result.items() if name in NUMBERS and isinstance(value, float)]
    if not all(value <= LIMIT for value in numbers) or not result["greedy"]:
        result["verdict"] = "fault"
    return result


NUMBERS = ("sampled", "trained", "merged", "adapter")


def moved(cohort: Any, seed: int) -> Any:
    """A fresh adapter with random numbers in B."""
    adapter = cohort.fresh_adapter(seed)
    generator = torch.Generator().manual_seed(seed)
    for factors in adapter.layers.values():
        factors.B.normal_(std=0.1, generator=generator)
    return adapter


def plain(directory: Path, adapter: Path | None = None) -> Any:
    """The model as transformers loads it, with an adapter as PEFT loads it."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


@torch.no_grad()
def gaps(cohort: Any, adapters: Any, policies: Any) -> dict[str, Any]:
    """Largest differences of the log-probs taken while sampling and of those of the training pass from those that plain
    software gives each text alone; and whether greedy responses to prompts of unequal length are the same."""
    from fedrlvr.config import SamplingConfig, TrainConfig
    from fedrlvr.policy.sampler import Decoding

    prompts = {client: cohort.base.encode_all(texts) for client, texts in TEXTS.items()}
    cohort.seat(adapters)
    seeds = dict.fromkeys(adapters, 0)
    drawn = cohort.sample(prompts, Decoding(responses=2, max_new_tokens=12, past_end=True), seeds)
    greedy = cohort.sample(prompts, Decoding(responses=1, max_new_tokens=8, temperature=0.0, past_end=True), seeds)
    alone = {
        client: [[logps(policies[client], ids, r.token_ids) for r in group] for ids, group in zip(*pair, strict=True)]
        for client, pair in ((client, (prompts[client], drawn[client])) for client in adapters)
    }

    def gap() -> float:
        return max(
            float((torch.tensor(response.logps) - expected).abs().max())
            for client in adapters
            for group, row in zip(drawn[client], alone[client], strict=True)
            for response, expected in zip(group, row, strict=True)
        )

    sampled = gap()
    cohort.begin_training(TrainConfig(), SamplingConfig())
    cohort.rescore(prompts, drawn)
    same = all(
        likeliest(policies[client], ids, group[0].token_ids)
        for client in adapters
        for ids, group in zip(prompts[client], greedy[client], strict=True)
    )
    return {"sampled": sampled, "trained": gap(), "greedy": same}


def logps(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probs of a response's tokens, from one forward pass over prompt and response alone."""
    logits = model(input_ids=torch.tensor([[*prompt, *response[:-1]]]), use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.float().log_softmax(dim=-1)[torch.arange(len(response)), torch.tensor(response)]


def likeliest(model: Any, prompt: list[int], response: list[int]) -> bool:
    """Whether each token of a response is the likeliest one, or within rounding of it."""
    logits = model(input_ids=torch.tensor([[*prompt, *response[:-1]]]), use_cache=False).logits[0, len(prompt) - 1 :]
    chosen = logits[torch.arange(len(response)), torch.tensor(response)]
    return bool((logits.max(dim=-1).values - chosen).abs().max() < 1e-4 * float(logits.abs().max()))


def one(model_type: str) -> dict[str, Any]:
    """The result of one class; in this process."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    from benchmarks.tiny_models import tiny_config

    result: dict[str, Any] = {"model_type": model_type, "class": CLASSES[model_type]}
    with tempfile.TemporaryDirectory() as name:
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(tiny_config(model_type)).parameters())
            if size > PARAMETERS:
                raise ValueError(f"{size:,} parameters with small settings")
            save_tiny(Path(name) / "model", model_type)
        except Exception as error:  # whatever the class raises about settings it was not written for
            line = " ".join(str(error).split())[:160]
            return {**result, "verdict": "not built", "reason": f"{type(error).__name__}: {line}"}
        try:
            return {**result, **examine(Path(name) / "model", Path(name))}
        except Exception as error:  # the fault that the sweep is for
            line = " ".join(str(error).split())[:300]
            return {**result, "verdict": "fault", "reason": f"{type(error).__name__}: {line}"}


def bounded(model_type: str) -> dict[str, Any]:
    """`one` in a child process with bounds; a child that dies is a result too."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        signal.alarm(SECONDS)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with contextlib.suppress(BaseException), os.fdopen(write, "w") as out:
            out.write(json.dumps(one(model_type)))
            out.flush()
            os._exit(0)
        os._exit(1)
    os.close(write)
    with os.fdopen(read) as source:
        text = source.read()
    _, status = os.waitpid(child, 0)
    if text and status == 0:
        result: dict[str, Any] = json.loads(text)
        return result
    how = "took too long" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else "died"
    return {"model_type": model_type, "verdict": "not built", "reason": f"the process {how} (status {status})"}


def table(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown: counts, what works, what is refused, what could not be built small."""
    by_verdict = {
        v: [line for line in lines if line["verdict"] == v] for v in ("works", "refused", "not built", "fault")
    }
    header = lines[0]
    text = [
        f"`{header['command']}`, {header['date']}, {header['machine']}, {header['versions']}: {len(lines)} causal LM "
        f"classes; {len(by_verdict['works'])} work, {len(by_verdict['refused'])} are refused, "
        f"{len(by_verdict['not built'])} could not be built small, {len(by_verdict['fault'])} end in a fault.",
        "",
        "| `model_type` | sampled with | prompts shared in training | sampled | trained | merged | adapter in PEFT | "
        "experts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ways = {"filled": "our cache", "own": "its own cache", "own-unpadded": "its own cache, equal lengths"}
    for line in sorted(by_verdict["works"] + by_verdict["fault"], key=lambda line: line["model_type"]):
        cells = [f"{line[n]:.0e}" if isinstance(line.get(n), float) else str(line.get(n, "")) for n in NUMBERS]
        if line["verdict"] == "fault":
            cells[0] = f"FAULT {line.get('reason', cells[0])}"
        cells[3] = "use `--merged`" if isinstance(line.get("adapter"), str) else cells[3]
        way, packs = ways.get(line.get("decoding", ""), ""), "yes" if line.get("packs") else "no"
        text.append(
            f"| {line['model_type']} | {way} | {packs} | "
            + " | ".join(cells)
            + f" | {'left out' if line.get('experts left out') else ''} |"
        )
    for verdict, title in (("refused", "Refused, each in one line"), ("not built", "Not built small, so not tried")):
        text += ["", f"{title}:", "", "| `model_type` | reason |", "|---|---|"]
        for line in by_verdict[verdict]:
            said = line["reason"].split("MODEL': ")[-1].replace("|", "\\|")
            text.append(f"| {line['model_type']} | {said[:240]} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Sweep, or write the table."""
    import peft  # noqa: F401  # imported once, here, for all children
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    import fedrlvr.policy.cohort
    import fedrlvr.policy.export  # noqa: F401
    from benchmarks.measure import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Model types, by commas.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, help="A page whose table is written anew from the results.")
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    for model_type in args.only.split(",") if args.only else sorted(CLASSES):
        if any(line["model_type"] == model_type for line in lines):
            continue
        started = time.perf_counter()
        line = bounded(model_type)
        line |= {
            "seconds": round(time.perf_counter() - started, 1),
            "date": time.strftime("%Y-%m-%d"),
            "command": "scripts/bench architectures",
            "machine": machine(),
            "versions": ", ".join(f"{name} {package_version(name)}" for name in ("torch", "transformers", "peft")),
        }
        lines.append(line)
        with args.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{model_type}: {line['verdict']} {line.get('reason', '')}", flush=True)
    if args.table is not None:
        before, _, rest = args.table.read_text().partition(MARK)
        after = rest.partition(MARK)[2]
        args.table.write_text(f"{before}{MARK}\n{table(lines)}{MARK}{after}")
    faults = [line["model_type"] for line in lines if line["verdict"] == "fault"]
    if faults:
        print(f"faults: {', '.join(faults)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
