"""A client's answers, sealed so that training cannot read them.

Training draws questions, which have no answer. The answers themselves lie here, and there are three ways to them:
`price` is for a ledger, which pays for what it takes; `everything` for what looks at data before a run; and `peek`
for experiments only: true accuracies, and the oracle that others are compared with. Responses to imitate, which say the
answer, lie here too, for supervised training (`demonstration`). A test holds the list of who uses which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fedrlvr.errors import DataError, GradingError
from fedrlvr.tasks.problem import Problem, Question
from fedrlvr.tasks.rewards import Reward, score


class Answers:
    """Answers to a client's training problems, with the reward that uses them.

    client: for messages.

    Raises:
        DataError: two problems have one id.
    """

    def __init__(self, client: str, problems: Sequence[Problem], reward: Reward) -> None:
        self._client, self._reward = client, reward
        self._problems = {problem.id: problem for problem in problems}
        self._in_order = tuple(problems)
        if len(self._problems) < len(problems):
            twice = next(id for id, count in Counter(p.id for p in problems).items() if count > 1)
            raise DataError(f"{client}: two training problems have the id {twice!r}. Give each its own.")

    def everything(self) -> Sequence[Problem]:
        """The problems with their answers, in order."""
        return self._in_order

    def price(self, question: Question) -> str:
        """Answer of the data set, to be entered into a ledger; "" if there is none."""
        return self._problems[question.id].answer

    def demonstration(self, question: Question) -> str:
        """The problem's response to imitate; "" if there is none."""
        return self._problems[question.id].response

    def grade(
        self, question: Question, label: str, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """Rewards of completions if `label` is the answer.

        finished: whether each response ended by itself; None: all did.

        Raises:
            GradingError: the label is empty, or the reward fails; the text names the client.
        """
        # What else the problem says of itself goes to a reward of the user's own; the answer in it does not.
        return self._grade(replace(self._problems[question.id], answer=label), completions, finished)

    def peek(self, question: Question, completions: Sequence[str]) -> list[float]:
        """True rewards by the data set's own answer, whether a label was paid for or not.

        Raises:
            GradingError: as `grade`.
        """
        return self._grade(self._problems[question.id], completions)

    def _grade(
        self, problem: Problem, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float]:
        if not problem.answer:
            raise GradingError(f"{self._client}: problem {problem.id!r} has no answer, so nothing can be graded by it.")
        return rewards(self._client, self._reward, problem, completions, finished)


def rewards(
    client: str,
    reward: Reward,
    problem: Problem,
    completions: Sequence[str],
    finished: Sequence[bool] | None = None,
) -> list[float]:
    """A problem's completions graded by the answer it has.

    finished: whether each response ended by itself; None: all did.

    Raises:
        GradingError: the reward fails; the text names the client.
    """
    try:
        return score(reward, problem, completions, finished)
    except GradingError as error:
        raise GradingError(f"{client}: {error}") from (error.__cause__ or error)
