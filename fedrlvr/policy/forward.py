"""The training pass: log-probs of response tokens under the model as it is set, a chunk of logits at a time.

A token's log-prob depends on its own hidden state only, so its gradient with respect to that state,

    d logp_n / d h_n = (W[y_n] - sum_v p_v W[v]) / temperature

can be computed in the forward pass, while the chunk's probabilities are at hand, and multiplied by the incoming
gradient in the backward pass: as many products as usual, and never more than one chunk of logits. The output head is
frozen, so nothing else needs a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedrlvr.config import EngineConfig
from fedrlvr.policy.attention import no_mask
from fedrlvr.policy.base import Base
from fedrlvr.policy.batches import MicroBatch


def response_logps(base: Base, batch: MicroBatch, temperature: float, engine: EngineConfig) -> Tensor:
    """Log-probs [R, T] of the response tokens at the sampling temperature; 0 where there is no token."""
    inputs: dict[str, Any] = {"input_ids": batch.ids, "position_ids": batch.positions, "use_cache": False}
    if batch.packing is not None:
        inputs["packing"] = batch.packing
        inputs["attention_mask"] = no_mask(batch.ids)
    with autocast(base, engine):
        if heads_apart(base) and engine.response_logits:
            head = base.model.get_output_embeddings()
            hidden_ND = base.model.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)
            logps_M = token_logps(
                hidden_ND.index_select(0, batch.predict_M),
                batch.targets_M,
                head.weight,
                head.bias,
                temperature=temperature,
                logits_at_once=engine.logits_at_once,
            )
        else:
            logits_NV = base.model(**inputs).logits.flatten(0, 1).float()
            if temperature != 1.0:
                logits_NV = logits_NV / temperature
            logps_NV = logits_NV.log_softmax(dim=1)
            logps_M = logps_NV[batch.predict_M, batch.targets_M]
    return logps_M.new_zeros(batch.mask_RT.shape).masked_scatter(batch.mask_RT, logps_M)


def text_logps(base: Base, ids_T: Tensor, engine: EngineConfig) -> Tensor:
    """Log-probs [T - 1] of each token of a text but the first, given those before it."""
    inputs: dict[str, Any] = {"input_ids": ids_T.unsqueeze(0), "use_cache": False}
    targets_N = ids_T[1:]
    with autocast(base, engine):
        if heads_apart(base):
            head = base.model.get_output_embeddings()
            hidden_ND = base.model.get_decoder()(**inputs).last_hidden_state[0, :-1]
            return token_logps(hidden_ND, targets_N, head.weight, head.bias, logits_at_once=engine.logits_at_once)
        logits_NV = base.model(**inputs).logits[0, :-1].float()
    return logits_NV.log_softmax(dim=1).gather(1, targets_N.unsqueeze(1)).squeeze(1)


def heads_apart(base: Base) -> bool:
    """Whether logits can be made from hidden states apart from the model: a plain, frozen head and nothing after it."""
    return base.plain_head and type(base.model.get_output_embeddings()) is nn.Linear


@contextlib.contextmanager
def autocast(base: Base, engine: EngineConfig) -> Iterator[None]:
    """Run matrix products in bfloat16 where the engine wants it: always, never, or on a GPU that supports it."""
    on_gpu = base.device.type == "cuda" and torch.cuda.is_bf16_supported()
    if engine.autocast == "bfloat16" or (engine.autocast == "auto" and on_gpu):
        with torch.autocast(base.device.type, dtype=torch.bfloat16):
            yield
    else:
        yield


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, bias_V: Tensor | None, heat: float, rows: int
    ) -> Tensor:
        logps_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        slope_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets_N), rows):
            part = slice(start, start + rows)
            logits_CV = torch.nn.functional.linear(hidden_ND[part].to(weight_VD.dtype), weight_VD, bias_V).float()
            if heat != 1.0:
                logits_CV /= heat
            logits_CV -= logits_CV.logsumexp(dim=1, keepdim=True)
            each_C, targets_C = torch.arange(len(logits_CV), device=logits_CV.device), targets_N[part]
            logps_N[part] = logits_CV[each_C, targets_C]
            if slope_ND is not None:
                probs_CV = logits_CV.exp_()
                probs_CV[each_C, targets_C] -= 1.0
                slope_ND[part] = (probs_CV.to(weight_VD.dtype) @ weight_VD).to(slope_ND.dtype) * (-1.0 / heat)
        if slope_ND is not None:
            ctx.save_for_backward(slope_ND)
        return logps_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (slope_ND,) = ctx.saved_tensors
        return slope_ND * grads[0].unsqueeze(1).to(slope_ND.dtype), None, None, None, None, None


def token_logps(
    hidden_ND: Tensor,
    targets_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    temperature: float = 1.0,
    logits_at_once: int = 1 << 24,
) -> Tensor:
    """Log-probs [N] of the targets under softmax((W h + b) / temperature), with a gradient for `hidden_ND` alone.

    logits_at_once: most entries of [tokens, V] held at a time; at least one token's.
    """
    rows = max(1, logits_at_once // weight_VD.shape[0])
    return _TokenLogps.apply(hidden_ND, targets_N, weight_VD, bias_V, temperature, rows)
