"""A prompt given as chat messages (verl, TRL): the text of the one question in it.

    [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]

The system message may be missing. A problem's prompt is one text, so a system message stands before the question,
with an empty line between them, in the user's turn. Several questions, answers before the question, tools and images
have no place in such a text and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrlvr.errors import DataError
from fedrlvr.tasks.files import clean_text, type_name

_SYSTEM = ("system", "developer")


def question_text(messages: Sequence[Any], name: str, where: str, *, may_end_answered: bool) -> str:
    """The text of a conversation's only question, after its system message.

    name, where: the field and the row, for messages.
    may_end_answered: the conversation may end in an assistant's turn, which is left out.

    Raises:
        DataError: the conversation is not one question with at most a system message before it.
    """
    turns = [_turn(message, f"{where}: {name!r}, message {index} (from 0)") for index, message in enumerate(messages)]
    system = [turns.pop(0)[1]] if turns and turns[0][0] in _SYSTEM else []
    if len(turns) == 2 and turns[1][0] == "assistant":
        if not may_end_answered:
            raise DataError(
                f"{where}: {name!r} ends in an assistant's turn, and the row has no gold answer: none is taken out of "
                "a conversation. Add 'answer', and leave that turn out of 'prompt'."
            )
        turns.pop()
    if [role for role, _ in turns] != ["user"]:
        roles = ", ".join(role for role, _ in turns) or "no turn"
        raise DataError(
            f"{where}: {name!r} has {roles} after the system message, if any. A problem is one question: leave one "
            "turn of the role user."
        )
    return clean_text("\n\n".join([*system, turns[0][1]]), name, where)


def _turn(message: Any, where: str) -> tuple[str, str]:
    """Role and text of one message."""
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {type_name(message)}. Write it as {{'role': ..., 'content': ...}}.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise DataError(f"{where} has no 'role' in text. Use system or user.")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where}: 'content' is {type_name(content)}. It must be text, without images or tools.")
    return role, clean_text(content, "content", where)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
