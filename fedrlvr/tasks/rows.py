"""The published data sets: one function each that turns a row into a problem, and one entry in the table below.

Each function copes with the layouts its data set is spread in. `None` means that the row has no answer and is left out,
which happens in the published files; everything else that does not fit raises DataError with the row's place.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.files import read_json
from fedrlvr.tasks.extraction import last_box, wrap
from fedrlvr.tasks.files import DataRow, answer_text, clean_text, text_field
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.published import PublishedTask, ToProblem
from fedrlvr.tasks.splits import in_split
from fedrlvr.tasks.task import check_options

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def gsm8k(row: DataRow, split: str) -> Problem | None:
    """`question`, `answer` ending in `#### N`; thousands separators go.

    The response to imitate is the worked solution without the calculator's marks (`<<7*2=14>>`), its answer in a box.
    """
    solution = text_field(row.data, ["answer"], row.where)
    steps, marker, answer = solution.rpartition("####")
    if not marker or not answer.strip(" ,"):
        raise DataError(f"{row.where}: 'answer' does not end in '#### number'. Mend or remove the row.")
    prompt = text_field(row.data, ["question"], row.where)
    gold = answer.strip().replace(",", "")
    response = f"{_CALCULATOR.sub('', steps).strip()}\nThe answer is {wrap(gold, 'math')}.".lstrip()
    return Problem(prompt, gold, f"gsm8k-{split}-{row.index}", "gsm8k", "math", response=response)


def math(row: DataRow, split: str) -> Problem | None:
    r"""`problem` with `answer`, or with `solution` whose last `\boxed{}` is the answer; `type` or `subject`.

    The response to imitate is the solution as it is.
    """
    data = row.data
    response = text_field(data, ["solution"], row.where) if data.get("solution") else ""
    if data.get("answer"):
        answer = text_field(data, ["answer"], row.where)
    elif "solution" in data:
        boxed = last_box(text_field(data, ["solution"], row.where))
        if boxed is None or not boxed.strip():
            return None
        answer = boxed.strip()
    elif "answer" in data:
        return None
    else:
        raise DataError(f"{row.where} has no 'answer' and no 'solution'. Add one or remove the row.")
    name = str(data.get("unique_id") or f"math-{split}-{row.index}")
    source = text_field(data, ["type", "subject"], row.where)
    return Problem(text_field(data, ["problem"], row.where), answer, name, source, "math", response=response)


def svamp(row: DataRow, split: str) -> Problem | None:
    r"""`Body`, `Question`, `Answer`, `Type`; the misspelt type of one published row joins its own kind.

    The response to imitate is the published `Equation`, if any, with the answer in a box: `76 - 25 = \boxed{51}`.
    """
    data = row.data
    prompt = f"{text_field(data, ['Body'], row.where)} {text_field(data, ['Question'], row.where)}"
    answer = answer_text(data.get("Answer"), "Answer", row.where)
    source = text_field(data, ["Type"], row.where).replace("Common-Divison", "Common-Division")
    response = ""
    if data.get("Equation"):
        equation = re.sub(r"\.0\b", "", text_field(data, ["Equation"], row.where))
        equation = equation.removeprefix("( ").removesuffix(" )").replace("( ", "(").replace(" )", ")")
        response = f"{equation} = \\boxed{{{answer}}}"
    return Problem(prompt, answer, text_field(data, ["ID"], row.where), source, "math", response=response)


def medqa(row: DataRow, split: str) -> Problem | None:
    """`question` (after the sentences of `context`, if any), `options` by letter, `answer_idx`; `meta_info`."""
    data = row.data
    context = data.get("context") or []
    if not isinstance(context, list) or not all(isinstance(sentence, str) for sentence in context):
        raise DataError(f"{row.where}: 'context' is not a list of sentences. Mend or remove the row.")
    question = " ".join([*context, text_field(data, ["question"], row.where)])
    options = data.get("options")
    if isinstance(options, list):
        options = {o.get("key"): o.get("value") for o in options if isinstance(o, Mapping)}
    if not isinstance(options, Mapping) or len(options) < 2:
        raise DataError(f"{row.where}: 'options' is not an object of at least two options by letter. Mend the row.")
    texts = [options.get(letter) for letter in string.ascii_uppercase[: len(options)]]
    answer = text_field(data, ["answer_idx"], row.where)
    name, source = f"medqa-{split}-{row.index}", str(data.get("meta_info") or "medqa")
    return Problem(_choices(question, texts, row), _letter(answer, texts, row), name, source, "choice")


def medmcqa(row: DataRow, split: str, cop_from: int = 1) -> Problem | None:
    """`question`, `opa`..`opd`, `cop` counted from `cop_from`, `subject_name`, `id`."""
    data = row.data
    cop = data.get("cop")
    if cop is None:
        return None
    if isinstance(cop, bool) or not isinstance(cop, int) or not 0 <= cop - cop_from < 4:
        raise DataError(
            f"{row.where}: 'cop' is {cop!r}, which is no option when the first is {cop_from}. Set the option cop_from "
            f"to {1 - cop_from} if this file counts so, or mend the row."
        )
    texts = [data.get(name) for name in ("opa", "opb", "opc", "opd")]
    prompt = _choices(text_field(data, ["question"], row.where), texts, row)
    name, source = (text_field(data, [key], row.where) for key in ("id", "subject_name"))
    return Problem(prompt, "ABCD"[cop - cop_from], name, source, "choice")


def pubmedqa(row: DataRow, split: str) -> Problem | None:
    """`QUESTION`, `CONTEXTS`, `final_decision` by id (the file), or `question`, `context.contexts`, `pubid` (the hub).

    The source is the label: the natural way to deal these problems unevenly.
    """
    data = row.data
    contexts = data.get("CONTEXTS")
    if contexts is None and isinstance(data.get("context"), Mapping):
        contexts = data["context"].get("contexts")
    if not isinstance(contexts, list) or not contexts or not all(isinstance(text, str) for text in contexts):
        raise DataError(f"{row.where}: 'CONTEXTS' is not a list of texts. Mend or remove the row.")
    question = text_field(data, ["QUESTION", "question"], row.where)
    if data.get("final_decision") is None:
        return None
    answer = text_field(data, ["final_decision"], row.where).lower()
    if answer not in ("yes", "no", "maybe"):
        raise DataError(f"{row.where}: 'final_decision' is not yes, no or maybe. Mend or remove the row.")
    name = data.get("id") or data.get("pubid") or f"pubmedqa-{split}-{row.index}"
    context = clean_text("\n".join(contexts), "CONTEXTS", row.where)
    return Problem(f"{context}\n\nQuestion: {question}", answer, str(name), answer, "yes_no_maybe")


def _choices(question: str, texts: list[Any], row: DataRow) -> str:
    lines = []
    for letter, text in zip(string.ascii_uppercase, texts, strict=False):
        if not isinstance(text, str):
            raise DataError(f"{row.where} has no text for option {letter}. Mend or remove the row.")
        lines.append(f"{letter}. {text.strip()}")
    return clean_text(question + "\n\n" + "\n".join(lines), "question", row.where)


def _letter(answer: str, texts: list[Any], row: DataRow) -> str:
    if answer not in string.ascii_uppercase[: len(texts)] or len(answer) != 1:
        raise DataError(f"{row.where}: 'answer_idx' is not the letter of an option. Mend or remove the row.")
    return answer


class _MedMcqa(PublishedTask):
    """MedMCQA, whose number of the right option is counted from 1 in the published file and from 0 on the hub."""

    def reader(self, path: Path | None, options: Mapping[str, Any]) -> ToProblem:
        """As `PublishedTask.reader`, with the option cop_from."""
        check_options(self.name, options, {"hub", "cop_from"})
        cop_from = options.get("cop_from", 0 if path is None else 1)
        if cop_from not in (0, 1):
            raise ConfigError(f"medmcqa: the option cop_from is {cop_from!r}. It must be 0 or 1.")
        return partial(medmcqa, cop_from=cop_from)


class _PubMedQa(PublishedTask):
    """PubMedQA, whose test problems are those named in a second file, where that file is there."""

    def split(self, problems: list[Problem], split: str, file: Path) -> list[Problem]:
        """As `PublishedTask.split`, by the ids of the second file."""
        ids = file.with_name("test_ground_truth.json")
        if not ids.is_file():
            return in_split(problems, split)
        held_out = _test_ids(ids)
        return [p for p in problems if (p.id in held_out) == (split == "test")]


def _test_ids(path: Path) -> set[str]:
    try:
        ids = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). It should hold an object with the test ids as keys."
        ) from None
    if not isinstance(ids, dict):
        raise DataError(f"{path} does not hold an object with the test ids as keys.")
    return set(ids)


PUBLISHED: tuple[PublishedTask, ...] = (
    PublishedTask("gsm8k", gsm8k, ("train.jsonl", "test.jsonl"), (("openai/gsm8k", "main"),) * 2),
    PublishedTask(
        "math",
        math,
        ("math_train.json", "math500_test.jsonl"),
        (("DigitalLearningGmbH/MATH-lighteval", None), ("HuggingFaceH4/MATH-500", None)),
    ),
    PublishedTask("svamp", svamp, ("SVAMP.json",) * 2, (("ChilleD/SVAMP", None),) * 2),
    PublishedTask(
        "medqa",
        medqa,
        ("dev_mediq.jsonl", "test.jsonl"),
        (("GBaker/MedQA-USMLE-4-options", None),) * 2,
        kinds=("choice",),
    ),
    _MedMcqa(
        "medmcqa",
        medmcqa,
        ("dev.jsonl",) * 2,
        (("openlifescienceai/medmcqa", None),) * 2,
        ("train", "validation"),
        kinds=("choice",),
    ),
    _PubMedQa(
        "pubmedqa",
        pubmedqa,
        ("ori_pqal.json",) * 2,
        (("qiaojin/PubMedQA", "pqa_labeled"),) * 2,
        ("train",) * 2,
        kinds=("yes_no_maybe",),
    ),
)
"""The published data sets. A new one is a function above and an entry here."""
