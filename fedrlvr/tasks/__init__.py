"""Problems, graders, and the division of problems among clients.

Nothing here imports torch, transformers, sympy or datasets: what is heavy is imported on use.
"""

from fedrlvr.tasks.extraction import extract, instruction, wrap
from fedrlvr.tasks.grading import canonical, grade
from fedrlvr.tasks.load import load, task_of
from fedrlvr.tasks.partition import Holding, partition, who_holds_what
from fedrlvr.tasks.problem import KINDS, Kind, Problem, Question
from fedrlvr.tasks.rewards import Reward, grader_for, rewards_for
from fedrlvr.tasks.splits import check_disjoint, drop_overlap, set_aside
from fedrlvr.tasks.task import Task
from fedrlvr.tasks.validation import Failure, Validation, adversarial, validate

__all__ = [
    "KINDS",
    "Failure",
    "Holding",
    "Kind",
    "Problem",
    "Question",
    "Reward",
    "Task",
    "Validation",
    "adversarial",
    "canonical",
    "check_disjoint",
    "drop_overlap",
    "extract",
    "grade",
    "grader_for",
    "instruction",
    "load",
    "partition",
    "rewards_for",
    "set_aside",
    "task_of",
    "validate",
    "who_holds_what",
    "wrap",
]
