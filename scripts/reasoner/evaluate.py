"""How well a model solves the embedded problems: greedy, sampled and majority-of-8 accuracy by family and level.

    python -m scripts.reasoner.evaluate             measure the weights in the package and print the table
    python -m scripts.reasoner.evaluate --card      the same, and write CARD.md beside the weights

Problems come from the test split. An answer counts if the text after the last `#### ` is the right integer, digit for
digit; a majority vote is over such texts, ties to the earliest, as in fedrlvr's own majority labels.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from fedrlvr.errors import ModelError
from fedrlvr.tasks.problem import Problem
from fedrlvr.zoo import FAMILIES, LEVELS, problems, weights_dir
from scripts.reasoner.card import Score, table, write_card

NEW_TOKENS = 32
SAMPLES = 8
ROWS = 400  # responses decoded at once: enough to keep one core busy, a cache of some 110 MB


def load(directory: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model and its tokenizer. Raises ModelError where the directory holds no weights."""
    if not (directory / "model.safetensors").is_file():
        raise ModelError(f"No model.safetensors in {directory}: rebuild it with `python -m scripts.reasoner.train`.")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return cast(LlamaForCausalLM, model), cast(PreTrainedTokenizerBase, tokenizer)


def answer_of(response: str) -> str | None:
    """The text after the last `#### `, or None without one."""
    _, mark, answer = response.rpartition("#### ")
    return answer if mark else None


@torch.inference_mode()
def respond(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    sample: bool,
) -> list[str]:
    """One response per prompt: greedy, or sampled at temperature 1 from the whole vocabulary by torch's generator."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # like lengths pad least
    responses = [""] * len(prompts)
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        batch = tokenizer([prompts[index] for index in chosen], return_tensors="pt", padding=True)
        # transformers types `generate` for a protocol that its own models do not satisfy.
        tokens = cast(Any, model).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=sample,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}),
        )
        texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            responses[index] = text
    return responses


def greedy_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem]
) -> dict[tuple[str, str], float]:
    """Share of problems solved by the most likely response, by (family, level)."""
    responses = respond(model, tokenizer, [problem.prompt for problem in chosen], sample=False)
    right: dict[tuple[str, str], list[bool]] = {}
    for problem, response in zip(chosen, responses, strict=True):
        right.setdefault((problem.source, problem.info["level"]), []).append(answer_of(response) == problem.answer)
    return {cell: sum(hits) / len(hits) for cell, hits in right.items()}


def score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, family: str, level: str, *, size: int, seed: int
) -> Score:
    """Measure one family and level on `size` test problems, one greedy and eight sampled responses each."""
    chosen = problems(split="test", size=size, seed=seed, families=[family], levels=[level])
    prompts = [problem.prompt for problem in chosen]
    torch.manual_seed(seed)
    greedy = respond(model, tokenizer, prompts, sample=False)
    sampled = respond(model, tokenizer, [prompt for prompt in prompts for _ in range(SAMPLES)], sample=True)
    right, majority = [], 0
    for index, problem in enumerate(chosen):
        answers = [answer_of(text) for text in sampled[index * SAMPLES : (index + 1) * SAMPLES]]
        right.append(sum(answer == problem.answer for answer in answers))
        votes = Counter(answer for answer in answers if answer is not None)  # most_common keeps the earliest of a tie
        majority += bool(votes) and votes.most_common(1)[0][0] == problem.answer
    return Score(
        family=family,
        level=level,
        error=chosen[0].info["error"],
        n=size,
        greedy=sum(answer_of(text) == problem.answer for text, problem in zip(greedy, chosen, strict=True)) / size,
        sampled=sum(right) / (size * SAMPLES),
        majority=majority / size,
        mixed=sum(0 < count < SAMPLES for count in right) / size,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reasoner.evaluate", description="Measure the embedded reasoner."
    )
    parser.add_argument("--weights", type=Path, default=weights_dir(), help="directory of the model")
    parser.add_argument("--size", type=int, default=200, help="test problems for each family and level")
    parser.add_argument("--seed", type=int, default=0, help="chooses the problems and the samples")
    parser.add_argument("--card", action="store_true", help="write CARD.md beside the weights")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, tokenizer = load(chosen.weights)
    scores = [
        score(model, tokenizer, family, level, size=chosen.size, seed=chosen.seed)
        for family in FAMILIES
        for level in LEVELS
    ]
    print(table(scores))
    if chosen.card:
        write_card(chosen.weights, scores, seed=chosen.seed)


if __name__ == "__main__":
    main()
