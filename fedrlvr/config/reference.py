"""Every setting with its default and its sentence, for the reference in the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fedrlvr.config.experiment import Config


def describe() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, docstring) of every setting, for the reference in the docs."""
    for name, info in Config.model_fields.items():
        members: tuple[Any, ...] = getattr(info.annotation, "__args__", (info.annotation,))
        for member in members:
            for key, sub in member.model_fields.items():
                default = (
                    "" if sub.is_required() else json.dumps(sub.get_default(call_default_factory=True), default=str)
                )
                yield f"{name}.{key}", default, sub.description or ""
