"""A prompt given as chat messages (verl, TRL): the turns of a conversation that ends in the user's question.

    [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]

A system message may come first, then the user and the assistant speak in turn, the user last. With a chat template the
turns go into it as they are; as plain text they are paragraphs. Tools and images have no place in a prompt and are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fedrlvr.errors import DataError
from fedrlvr.tasks.files import clean_text, type_name
from fedrlvr.tasks.problem import Turn

_ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def conversation(messages: Sequence[Any], name: str, where: str, *, may_end_answered: bool) -> tuple[Turn, ...]:
    """The turns of a conversation, up to the user's last one.

    name, where: the field and the row, for messages.
    may_end_answered: the conversation may end in an assistant's turn, which is left out.

    Raises:
        DataError: the turns are not those of a conversation that ends in the user's question.
    """
    turns = [_turn(message, f"{where}: {name!r}, message {index} (from 0)") for index, message in enumerate(messages)]
    if len(turns) > 1 and turns[-1].role == "assistant":
        if not may_end_answered:
            raise DataError(
                f"{where}: {name!r} ends in an assistant's turn, and the row has no gold answer: none is taken out of "
                "a conversation. Add 'answer', and leave that turn out of 'prompt'."
            )
        turns.pop()
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise DataError(
            f"{where}: {name!r} has {', '.join(roles) or 'no turn'}. A conversation begins with at most one system "
            "message, then user and assistant speak in turn, and the last turn is the user's question."
        )
    return tuple(turns)


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {type_name(message)}. Write it as {{'role': ..., 'content': ...}}.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where} has no 'role' that is known. Use system, user or assistant.")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where}: 'content' is {type_name(content)}. It must be text, without images or tools.")
    return Turn(_ROLES[role], clean_text(content, "content", where))


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
