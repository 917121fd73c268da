"""Rebuild the embedded reasoner from a seed: `python -m scripts.reasoner.train [--out DIR --seed 0 ...]`.

Supervised learning on the train split's demonstrations, in two stages. The first shows only right solutions, so that
the right way is within the model's reach; the second shows the noise shares of `demonstrations.NOISE`, so that it takes
that way only as often. `--noisy-steps 0` stops after the first: how far the model gets on clean demonstrations.
One thread and deterministic kernels: the same seed gives the same bytes on the same machine and versions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import islice
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fedrlvr.machine import processor
from fedrlvr.zoo import FAMILIES, problems, weights_dir
from scripts.reasoner.demonstrations import NOISE, Demonstration, demonstrations
from scripts.reasoner.evaluate import NEW_TOKENS, greedy_accuracy
from scripts.reasoner.tokenizer import build

SHOWN = (*FAMILIES, "dose", "drip")  # by turns: the two families slowest to learn come twice as often
MUON_RATE = 2e-2
ADAMW_RATE = 3e-3
WARM_UP = 50  # steps of linearly rising learning rate
FINAL_SHARE = 0.05  # of the learning rate left at the end of the cosine
REPORT_SIZE = 32  # public problems of each family and level behind a line of progress
IGNORED = -100  # transformers' label for a token that is not trained on


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama of 865,920 random parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to `FINAL_SHARE`."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which took half of AdamW's steps to the same loss; AdamW for the rest."""
    matrices = [parameter for layer in model.model.layers for parameter in layer.parameters() if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def tensors(tokenizer: PreTrainedTokenizerBase, batch: Sequence[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, [len(batch), T], padded on the right; only response and end-of-sequence tokens have labels."""
    rows, labels = [], []
    for example in batch:
        prompt = tokenizer(example.prompt)["input_ids"]
        response = [*tokenizer(example.response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append(torch.tensor(prompt + response))
        labels.append(torch.tensor([IGNORED] * len(prompt) + response))
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad(rows, batch_first=True, padding_value=int(tokenizer.pad_token_id or 0)),
        pad(labels, batch_first=True, padding_value=IGNORED),
    )


def train_step(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Sequence[Demonstration],
) -> float:
    """One update on the mean loss per labelled token, which is returned. Halves of like length, so as to pad little."""
    ordered = sorted(batch, key=lambda example: len(example.prompt) + len(example.response))
    halves = [tensors(tokenizer, half) for half in (ordered[: len(batch) // 2], ordered[len(batch) // 2 :])]
    labelled = sum(int((labels != IGNORED).sum()) for _, labels in halves)
    total = 0.0
    for tokens, labels in halves:
        # Padding lies to the right, so causal attention needs no mask for it.
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        torch.autograd.backward(loss / labelled)
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total / labelled


def cells(accuracy: dict[tuple[str, str], float]) -> str:
    return "  ".join(f"{family}-{level[0]} {100 * share:.0f}" for (family, level), share in accuracy.items())


def train(
    out: Path, *, seed: int, clean_steps: int, noisy_steps: int, batch: int, report_every: int, check_size: int
) -> None:
    """Train from scratch and write model, tokenizer and `training.json` (how, and what the clean stage reached)."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    tokenizer = build()
    model = new_model(tokenizer)
    optimizers = optimizers_of(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    steps = clean_steps + noisy_steps
    streams: dict[bool, Iterator[Demonstration]] = {
        True: demonstrations(seed=seed, noise={}, families=SHOWN),
        False: demonstrations(seed=seed, noise=NOISE, families=SHOWN),
    }
    started, losses = time.perf_counter(), []
    record: dict[str, object] = {}
    for step in range(steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(step, steps)
        losses.append(train_step(model, tokenizer, optimizers, list(islice(streams[step < clean_steps], batch))))
        if (step + 1) % report_every == 0:
            accuracy = greedy_accuracy(model, tokenizer, problems(split="public", size=REPORT_SIZE, seed=seed))
            print(
                f"step {step + 1}/{steps}  loss {sum(losses[-50:]) / len(losses[-50:]):.3f}  "
                f"{time.perf_counter() - started:.0f} s  greedy: {cells(accuracy)}",
                flush=True,
            )
        if step + 1 == clean_steps:
            clean = greedy_accuracy(model, tokenizer, problems(split="test", size=check_size, seed=seed))
            record["clean_greedy"] = {f"{family} {level}": share for (family, level), share in clean.items()}
            print(f"after {clean_steps} clean steps, test problems, greedy: {cells(clean)}", flush=True)
    record |= {
        "seed": seed,
        "clean_steps": clean_steps,
        "noisy_steps": noisy_steps,
        "batch": batch,
        "check_size": check_size,
        "shown": list(SHOWN),
        "noise": {f"{family} {level}": share for (family, level), share in NOISE.items()},
        "seconds": round(time.perf_counter() - started),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores ({processor()}), one torch thread",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save(out, model, tokenizer, record)


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, record: dict[str, object]) -> None:
    how = model.generation_config
    how.max_new_tokens, how.do_sample, how.temperature, how.top_k, how.top_p = NEW_TOKENS, True, 1.0, 0, 1.0
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reasoner.train", description="Rebuild the embedded reasoner."
    )
    parser.add_argument("--out", type=Path, default=weights_dir(), help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean-steps", type=int, default=1300, help="steps on right solutions only")
    parser.add_argument("--noisy-steps", type=int, default=500, help="steps on solutions with the noise shares")
    parser.add_argument("--batch", type=int, default=128, help="demonstrations a step")
    parser.add_argument("--report-every", type=int, default=100, help="steps between lines of progress")
    parser.add_argument("--check-size", type=int, default=200, help="test problems a cell after the clean stage")
    chosen = parser.parse_args(arguments)
    train(
        chosen.out,
        seed=chosen.seed,
        clean_steps=chosen.clean_steps,
        noisy_steps=chosen.noisy_steps,
        batch=chosen.batch,
        report_every=chosen.report_every,
        check_size=chosen.check_size,
    )


if __name__ == "__main__":
    main()
