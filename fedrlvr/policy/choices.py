"""The choices of a cohort for its computation, with reasons: for `doctor`, `site check` and a run's first lines."""

from __future__ import annotations

import torch

from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.forward import autocast
from fedrlvr.policy.learner import suitable_tokens


def choices(cohort: Cohort) -> dict[str, str]:
    """Sampler, attention, number format and sizes of batches, by part, each with its reason."""
    base, engine = cohort.base, cohort.engine
    compared = "" if cohort.agreement is None else f"; {cohort.agreement}"
    tokens = engine.micro_batch_tokens or suitable_tokens(base)
    why = "engine.micro_batch_tokens" if engine.micro_batch_tokens else f"for this model on {base.device.type}"
    return {
        "sampler": f"{cohort.sampler.description}{compared}",
        "attention": _attention(base),
        "number format": _format(cohort),
        "batches": (
            f"up to {engine.decode_rows:,} responses side by side in sampling (engine.decode_rows), {tokens:,} tokens "
            f"at a time in training ({why})"
        ),
    }


def _attention(base: Base) -> str:
    kernels = "torch's kernels for CPUs"
    if base.device.type == "cuda":
        backends = torch.backends.cuda
        enabled = {
            "flash": backends.flash_sdp_enabled(),
            "memory-efficient": backends.mem_efficient_sdp_enabled(),
            "cuDNN": backends.cudnn_sdp_enabled(),
            "math": backends.math_sdp_enabled(),
        }
        kernels = f"the kernels of torch that fit each shape ({', '.join(name for name, on in enabled.items() if on)})"
    if not base.packs:
        kind = type(base.model).__name__
        return f"that of transformers, with {kernels}: {kind} cannot share a prompt among its responses in training"
    where = "training and in sampling" if base.shares else "training"
    return f"packed, a prompt once for its responses in {where}, with {kernels}"


def _format(cohort: Cohort) -> str:
    base, engine = cohort.base, cohort.engine
    weights = str(base.model.dtype).removeprefix("torch.")
    with autocast(base, engine):
        kind = base.device.type
        cast = torch.is_autocast_enabled(kind)
        products = str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if cast else weights
    why = f"engine.autocast = {engine.autocast!r}"
    if engine.autocast == "auto":
        why += ", which is bfloat16 on a GPU that supports it and nowhere else"
    return f"weights in {weights} (model.dtype), products in {products} ({why})"
