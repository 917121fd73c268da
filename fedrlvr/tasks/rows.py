"""One function per known data set: a row, from a local file or from the hub, to a problem.

Each copes with the layouts its data set is spread in. `None` means that the row has no answer and is left out, which
happens in the published files; everything else that does not fit raises DataError with the row's place.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from fedrlvr.errors import DataError
from fedrlvr.tasks.extraction import last_box
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.reading import Row, answer_text, clean_text, text_field


def gsm8k(row: Row, split: str) -> Problem | None:
    """`question`, `answer` ending in `#### N`; thousands separators go."""
    solution = text_field(row.data, ["answer"], row.where)
    _, marker, answer = solution.rpartition("####")
    if not marker or not answer.strip(" ,"):
        raise DataError(f"{row.where}: 'answer' does not end in '#### number'. Mend or remove the row.")
    prompt = text_field(row.data, ["question"], row.where)
    return Problem(prompt, answer.strip().replace(",", ""), f"gsm8k-{split}-{row.index}", "gsm8k", "math")


def math(row: Row, split: str) -> Problem | None:
    r"""`problem` with `answer`, or with `solution` whose last `\boxed{}` is the answer; `type` or `subject`."""
    data = row.data
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
    return Problem(text_field(data, ["problem"], row.where), answer, name, source, "math")


def svamp(row: Row, split: str) -> Problem | None:
    """`Body`, `Question`, `Answer`, `Type`; the misspelt type of one published row joins its own kind."""
    data = row.data
    prompt = f"{text_field(data, ['Body'], row.where)} {text_field(data, ['Question'], row.where)}"
    answer = answer_text(data.get("Answer"), "Answer", row.where)
    source = text_field(data, ["Type"], row.where).replace("Common-Divison", "Common-Division")
    return Problem(prompt, answer, text_field(data, ["ID"], row.where), source, "math")


def medqa(row: Row, split: str) -> Problem | None:
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


def medmcqa(row: Row, split: str, cop_from: int) -> Problem | None:
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


def pubmedqa(row: Row, split: str) -> Problem | None:
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


def _choices(question: str, texts: list[Any], row: Row) -> str:
    lines = []
    for letter, text in zip(string.ascii_uppercase, texts, strict=False):
        if not isinstance(text, str):
            raise DataError(f"{row.where} has no text for option {letter}. Mend or remove the row.")
        lines.append(f"{letter}. {text.strip()}")
    return clean_text(question + "\n\n" + "\n".join(lines), "question", row.where)


def _letter(answer: str, texts: list[Any], row: Row) -> str:
    if answer not in string.ascii_uppercase[: len(texts)] or len(answer) != 1:
        raise DataError(f"{row.where}: 'answer_idx' is not the letter of an option. Mend or remove the row.")
    return answer
