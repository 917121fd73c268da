"""Writes docs/results/vllm.md."""
from __future__ import annotations
from collections.abc import Mapping
from typing import Any
def write(results: Mapping[str, Any]) -> str:
    return ""
