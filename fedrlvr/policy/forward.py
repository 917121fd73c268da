"""The training pass: log-probs of response tokens under the model as it is set, and what a model allows of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedrlvr.config import EngineConfig
from fedrlvr.policy.attention import Packing, no_mask
from fedrlvr.policy.batches import MicroBatch
from fedrlvr.policy.logps import token_logps

if TYPE_CHECKING:
    from fedrlvr.policy.base import Base

_log = logging.getLogger("fedrlvr.policy")


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


def heads_apart(base: Base) -> bool:
    """Whether logits can be made from hidden states apart from the model: a plain, frozen head and nothing after it."""
    return base.plain_head and type(base.model.get_output_embeddings()) is nn.Linear


@contextlib.contextmanager
def autocast(base: Base, engine: EngineConfig) -> Iterator[None]:
    """Matrix products in bfloat16 where the engine wants it: always, never, or on a GPU that has it."""
    on_gpu = base.device.type == "cuda" and torch.cuda.is_bf16_supported()
    if engine.autocast == "bfloat16" or (engine.autocast == "auto" and on_gpu):
        with torch.autocast(base.device.type, dtype=torch.bfloat16):
            yield
    else:
        yield


@torch.no_grad()
def has_plain_head(model: Any, name: str) -> bool:
    """Whether the model's logits are its output head's product with the last hidden states, and nothing else.

    Some scale or cap them after the product; those keep their own way to logits.
    """
    ids = torch.tensor([[0, 1, 2]], device=next(model.parameters()).device)
    try:
        head, decoder = model.get_output_embeddings(), model.get_decoder()
        if type(head) is not nn.Linear or decoder is model:
            return False
        ours, theirs = head(decoder(input_ids=ids).last_hidden_state), model(input_ids=ids).logits
    except Exception as error:  # a foreign architecture may fail here in any way, and then it just has no such head
        _log.info("%s: logits cannot be made apart from the model (%s)", name, error)
        return False
    return _alike(ours, theirs)


@torch.no_grad()
def can_pack(model: Any, name: str) -> bool:
    """Whether two responses packed behind their one prompt have the logits that each has behind a prompt of its own."""
    device = next(model.parameters()).device
    prompt, first, second = [0, 1, 2], [3, 4], [5]
    ids = torch.tensor([prompt + first + second], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 4, 3]], device=device)
    try:
        packed = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=no_mask(ids),
            packing=Packing.of([(3, [2, 1])], device),
            use_cache=False,
        ).logits[0]
        apart = [model(input_ids=torch.tensor([prompt + one], device=device)).logits[0] for one in (first, second)]
    except Exception as error:  # as above: an architecture that does not hand the packing to its attention
        _log.warning("%s: a prompt cannot be shared by its responses in training, which costs time (%s)", name, error)
        return False
    alike = _alike(packed[:5], apart[0]) and _alike(packed[5], apart[1][3])
    if not alike:
        _log.warning("%s: a prompt cannot be shared by its responses in training, which costs time", name)
    return alike


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    scale = float(theirs.float().abs().max().clamp(min=1e-6))
    limit = 1e-4 if theirs.dtype == torch.float32 else 3e-2
    return bool((ours.float() - theirs.float()).abs().max() < limit * scale)
