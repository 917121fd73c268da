"""A decode step as one CUDA graph: recorded once, then replayed for each token without Python or kernel launches.

A graph repeats the same kernels on the same memory. So a step that is captured must find all that changes from token
to token in tensors that stay where they are, and must never look at a value on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedrlvr.errors import ModelError


def wants_static(decode_cache: str, model: Any) -> bool:
    """Whether `engine.decode_cache` asks for steps at fixed shapes on this model; `auto` does on a GPU."""
    if decode_cache != "auto":
        return decode_cache == "static"
    return bool(model.device.type == "cuda") and not _rope_looks_at_positions(model.config)


def capture(step: Callable[[], None], name: str) -> Callable[[], None]:
    """Record one `step`, without running it; the result runs it again on the same memory.

    `step` must have run once before, so that libraries have allocated what they keep.

    Raises:
        ModelError: the step does something that a graph cannot hold. name: of the model, for the message.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: another thread of this process, a grader's say, may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        raise ModelError(
            f"{name}: its decode step cannot be recorded as a CUDA graph ({str(error).splitlines()[0][:200]}). Set "
            "engine.decode_cache = 'growing'."
        ) from error
    return graph.replay


def _rope_looks_at_positions(config: Any) -> bool:
    """Rotary embeddings that change with the longest position read it on the host, which no graph can hold."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer_type = rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]
    return any(entry.get("rope_type") == "dynamic" for entry in by_layer_type)


def can_capture(device: torch.device) -> bool:
    """Whether steps on this device can be recorded."""
    return device.type == "cuda"
