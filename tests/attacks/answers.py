"""Reading private answers off numbers: four attacks on choice questions whose prompts the server guesses.

Each attack takes a victim whose task of the given name has the questions, and gives the letters that it concludes;
"?" where it concludes nothing. A guess is right one time in four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from policies import END, answering, answering_some
from victim import SITE, Victim

from fedrlvr.adapter import Adapter
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import CORRECT
from fedrlvr.seeds import stream
from fedrlvr.tasks.grading import grade

ABCD = "ABCD"
SAMPLES = 64
TOLERANCE = 1e-6
RANK = 8
ONE_ANSWER = ("reward", "tokens_trained", "grad_norm")
"""Numbers of a reply that are above 0 only if a response was right."""


@lru_cache(maxsize=8)
def saying(victim: Victim, letters: str) -> Adapter:
    """A policy that gives these letters or nothing, to whatever it is asked."""
    return answering(victim.cohort(RANK), victim.home, {END: 1.0, **dict.fromkeys(letters, 0.97)}, 300)


def redrawn(victim: Victim, adapter: Adapter, prompt: str, tokens: int, seed: int) -> list[str]:
    """Responses of the site's policy to a prompt, drawn from the stream of a seed alone."""
    cohort = victim.cohort(adapter.rank)
    cohort.seat({SITE: adapter})
    ids = victim.home.encode(prompt)
    (group,) = cohort.sample({SITE: [ids]}, Decoding(SAMPLES, tokens), {SITE: seed})[SITE]
    return [response.text for response in group]


def fitting(texts: Sequence[str], mean: float, letters: str) -> str:
    """The letters with which these responses would earn that mean reward."""
    means = {x: sum(grade(text, x, "choice") >= CORRECT for text in texts) / len(texts) for x in letters}
    return "".join(x for x, value in means.items() if abs(value - mean) < TOLERANCE)


def replay(victim: Victim, task: str, prompt: str) -> str:
    """Redraw the responses of a step of one problem, and find the letter that explains the mean reward."""
    adapter, left = saying(victim, ABCD), ABCD
    for seed in range(8):
        reply = victim.train(task, adapter, sampling={"group_size": SAMPLES, "max_new_tokens": 8}, seed=seed)
        texts = redrawn(victim, adapter, prompt, 8, stream(seed, SITE, "sample", 1, 0))
        left = fitting(texts, reply.numbers["reward"], left)
        if len(left) <= 1:
            break
    return left if len(left) == 1 else "?"


def replayed_score(victim: Victim, task: str, prompt: str) -> str:
    """The same for a source of one held-out problem."""
    adapter, left = saying(victim, ABCD), ABCD
    for seed in range(8):
        sampling = {"max_new_tokens": 8}
        reply = victim.evaluate(task, adapter, evaluate={"samples": SAMPLES}, sampling=sampling, seed=seed)
        texts = redrawn(victim, adapter, prompt, 8, stream(seed, SITE, "evaluate"))
        if not reply.sources:
            return "?"
        (mean,) = (total / n for total, n in zip(reply.numbers["total"], reply.numbers["n"], strict=True))
        left = fitting(texts, mean, left)
        if len(left) <= 1:
            break
    return left if len(left) == 1 else "?"


def one_answer(victim: Victim, task: str) -> str:
    """Ask four times with a policy that gives one letter or nothing; the numbers are largest for the right letter.

    Each number tells it alone: the letter counts if all three say the same.
    """
    replies = {}
    for letter in ABCD:
        sampling = {"group_size": 16, "max_new_tokens": 8}
        replies[letter] = victim.train(task, saying(victim, letter), sampling=sampling).numbers
    letters = {max(ABCD, key=lambda letter: replies[letter][number]) for number in ONE_ANSWER}
    clear = all(sum(replies[letter][number] > 0 for letter in ABCD) == 1 for number in ONE_ANSWER)
    return letters.pop() if clear and len(letters) == 1 else "?"


@dataclass
class Scored:
    """The mean score of a policy that gives a letter to the chosen ones of a task's held-out prompts."""

    victim: Victim
    task: str
    prompts: Sequence[str]
    letter: str

    def __call__(self, chosen: Sequence[bool], seed: int = 0) -> float:
        adapter = answering_some(self.victim.cohort(RANK), self.victim.home, self.prompts, chosen, self.letter, 300)
        reply = self.victim.evaluate(
            self.task, adapter, evaluate={"samples": 1, "temperature": 0.0}, sampling={"max_new_tokens": 8}, seed=seed
        )
        return sum(reply.numbers["total"]) / sum(reply.numbers["n"])


def on_the_edge(score: Callable[[Sequence[bool]], float], problems: int) -> list[bool]:
    """Finds the problems whose answer is the letter, from scores of chosen sets that may be rounded.

    One problem after another is added until the score rises; from there each other one is added alone.
    """
    chosen = [False] * problems
    lowest = score(chosen)
    for place in range(problems):
        chosen[place] = True
        if score(chosen) > lowest:
            chosen[place] = False
            break
    else:
        return [False] * problems
    right = [False] * problems
    for place in range(problems):
        if not chosen[place]:
            right[place] = score([*chosen[:place], True, *chosen[place + 1 :]]) > lowest
    return right


def by_difference(scored: Scored, right: Sequence[bool], target: int, messages: int) -> bool:
    """Whether a problem's answer is the letter, from scores of two sets that differ in this problem alone.

    The server knows which of the others have the letter, and adds the target to a set of them whose mean score is a
    multiple of the rounding's step. The score of that set leaves as it is, however often it is asked for; one more
    right answer is rounded up now and then, and a single such score tells. Each message has a seed of its own.

    right: which problems are known to have the letter; their mean score is such a multiple.
    """
    chosen = [known or place == target for place, known in enumerate(right)]
    without = scored(right, seed=0)
    return any(scored(chosen, seed=seed) > without + TOLERANCE for seed in range(1, messages))
