"""Problems of the uneven federations that `scripts/bench aggregation` compares client weights on.

    scales        the embedded problems; each client's rewards are multiplied, by 1, 10, 100 and 1000
    difficulty    a client each of drip easy (sampled pass@1 before training .62, the most solved there is), product
                  easy (.47), difference easy (.27) and unit hard (.03, the least solved)
    wrong_labels  the embedded problems, half of west's training answers wrong; held-out answers are right

Written as JSON lines, train.jsonl and test.jsonl in a directory each. They are the same for every seed of a run.
A wrong label is what the family's own misconception gives where it has one (unit: grams taken for milligrams), so that
it is a mistake the model makes too; elsewhere the answer is 1 to 9 too large.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random

from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import Problem
from fedrlvr.zoo import problems
from fedrlvr.zoo.family import Pen
from fedrlvr.zoo.generators import ALL, Split

HOLDERS = {
    "north": ("difference", "remainder"),
    "east": ("dose", "score"),
    "south": ("drip", "sum"),
    "west": ("product", "unit"),
}
"""Who holds which families in the example, as `partition.type = "source"` deals them."""
TRAIN, TEST = 256, 128
"""Problems of each family and level, of 4,096 and 2,048 in all."""
SCALES = {"north": 1, "east": 10, "south": 100, "west": 1000}
DIFFICULTIES = {
    "difference-easy": ("difference", "easy"),
    "drip-easy": ("drip", "easy"),
    "product-easy": ("product", "easy"),
    "unit-hard": ("unit", "hard"),
}
"""Family and level of each client, whose name is that of its one source."""
MISLED = "west"
FEDERATIONS = ("scales", "difficulty", "wrong_labels")


def scaled(completion: str, answer: str, scale: float) -> float:
    """The scale if the answer is right, else 0: what `data.rewards` of the federation `scales` names."""
    return scale * grade(completion, answer, "math")


def write_all(directory: Path) -> None:
    """Every federation's problems, a directory each."""
    for name in FEDERATIONS:
        (directory / name).mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            text = "".join(json.dumps(_row(problem)) + "\n" for problem in rows(name, split))
            path = directory / name / f"{split}.jsonl"
            if not path.exists() or path.read_text("utf-8") != text:  # another process may be reading it
                path.write_text(text, "utf-8")


def _row(problem: Problem) -> dict[str, object]:
    return {
        "id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "source": problem.source,
        "kind": problem.kind,
        "info": dict(problem.info),
    }


def rows(federation: str, split: Split) -> list[Problem]:
    """The problems of one split of a federation, in the order in which they are written."""
    count = TRAIN if split == "train" else TEST
    if federation == "difficulty":
        many = 4 * count  # four clients hold what sixteen families and levels do
        return [
            replace(problem, source=source, info={})
            for source, (family, level) in DIFFICULTIES.items()
            for problem in problems(split=split, size=many, seed=0, families=[family], levels=[level])
        ]
    everything = [replace(problem, info={}) for problem in problems(split=split, size=count, seed=0)]
    if federation == "scales":
        scales = {family: SCALES[client] for client, families in HOLDERS.items() for family in families}
        return [replace(problem, info={"scale": scales[problem.source]}) for problem in everything]
    if federation == "wrong_labels":
        return mislabelled(everything, HOLDERS[MISLED]) if split == "train" else everything
    raise ValueError(f"no federation {federation!r}")


def mislabelled(given: Iterable[Problem], families: Iterable[str]) -> list[Problem]:
    """The problems with a wrong answer to every second one of these families, drawn at random."""
    held = list(given)
    wrong: dict[str, str] = {}
    for family in families:
        of_family = [problem for problem in held if problem.source == family]
        rng = Random(f"wrong {family}")
        for problem in rng.sample(of_family, len(of_family) // 2):
            wrong[problem.id] = _wrong_answer(problem, rng)
    return [replace(problem, answer=wrong.get(problem.id, problem.answer)) for problem in held]


def _wrong_answer(problem: Problem, rng: Random) -> str:
    family = next(candidate for candidate in ALL if candidate.name == problem.source)
    if family.error == "systematic":
        operands = tuple(int(number) for number in re.findall(r"\d+", problem.prompt))
        return family.solution(operands, Pen(misconceived=True)).rsplit(" ", 1)[1]
    return str(int(problem.answer) + rng.randrange(1, 10))
