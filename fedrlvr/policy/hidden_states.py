"""Hidden states from the sampling pass itself: what the model handed to its output head before a token was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedrlvr.errors import ModelError
from fedrlvr.policy.base import Base
from fedrlvr.policy.lora import StackedLinear


@dataclass(frozen=True)
class HiddenStates:
    """Last-layer hidden states, after the final norm, of one client's P problems with G responses each.

    prompt_PH: at the last token of each prompt. response_PGH: what each response's last token was drawn from, so at its
    last token but one; of a finished response that is the last token of its text, of a response of one token the last
    of its prompt. This is our reading of CARE (arXiv 2605.25864): the authors' code reads the last token itself, which
    is never fed to the model while sampling and would cost a forward pass of its own.
    Float32, detached, on the model's device.
    """

    prompt_PH: Tensor
    response_PGH: Tensor

    @staticmethod
    def room(base: Base, problems: int, responses: int) -> HiddenStates:
        """Room for states to be written. Call it outside of inference mode, in whose tensors nothing can be trained.

        Raises:
            ModelError: the model has no output head of which the input could be read.
        """
        size = width(base)
        return HiddenStates(
            torch.zeros(problems, size, device=base.device), torch.zeros(problems, responses, size, device=base.device)
        )


class RowStates:
    """The states of the rows being decoded, R of them. Open it (`with`) to read the output head's input.

    last_RH: what each row's newest token was drawn from, until the row ended. It stays where it is from step to step,
    so that a CUDA graph can hold it. prompt_PH: at the last tokens of the prompts, blank ones as well.
    all_RH: of all rows that the batch began with.
    """

    prompt_PH: Tensor
    last_RH: Tensor
    all_RH: Tensor

    def __init__(self, base: Base) -> None:
        self._name, self._head = base.name, _head(base)
        self._seen: Tensor | None = None

    def __enter__(self) -> Self:
        self._hook = self._head.register_forward_pre_hook(self._see)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def begin(self, repeats: int, responses: int) -> None:
        """Take the prefill's states: each prompt has `responses` rows, of which one in `repeats` was computed."""
        newest = self._newest()
        self.last_RH = newest.repeat_interleave(repeats, dim=0)
        self.prompt_PH = newest[:: responses // repeats].clone()  # a view would keep all positions of the prompts
        self.all_RH = torch.empty_like(self.last_RH)

    def advance(self, ended_R: Tensor) -> None:
        """Take the newest step's states for the rows that had not ended before its token."""
        self.last_RH.copy_(torch.where(ended_R.unsqueeze(1), self.last_RH, self._newest()))

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only, in this order."""
        self.last_RH = self.last_RH.index_select(0, rows)

    def write(self, where_R: Tensor) -> None:
        """Write the states of the rows at hand, which are these of all rows."""
        self.all_RH.index_copy_(0, where_R.to(self.all_RH.device), self.last_RH)

    def hand_out(self, states: Sequence[HiddenStates], places: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Write to these problems of each client's `HiddenStates`, whose rows begin at `starts`."""
        for client_states, at, start in zip(states, places, starts, strict=True):
            _, responses, width = client_states.response_PGH.shape
            first, indices = start // responses, torch.tensor(at, dtype=torch.int64, device=self.all_RH.device)
            rows_PGH = self.all_RH[start : start + len(at) * responses].view(len(at), responses, width)
            client_states.prompt_PH.index_copy_(0, indices, self.prompt_PH[first : first + len(at)].float())
            client_states.response_PGH.index_copy_(0, indices, rows_PGH.float())

    def _see(self, _head: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen = inputs[0] if inputs else None

    def _newest(self) -> Tensor:
        """[rows, H]: the last position of the forward pass that ran last, in the precision it was computed in."""
        seen, self._seen = self._seen, None
        if seen is None or seen.dim() != 3:
            raise _unreadable(self._name)
        return seen[:, -1]


def width(base: Base) -> int:
    """Number H of values in a hidden state.

    Raises:
        ModelError: the model has no output head of which the input could be read.
    """
    head = _head(base)
    linear = head.base if isinstance(head, StackedLinear) else head
    if not isinstance(linear, nn.Linear):
        raise _unreadable(base.name)
    return linear.in_features


def _head(base: Base) -> nn.Module:
    output_embeddings: Any = getattr(base.model, "get_output_embeddings", None)
    head = output_embeddings() if output_embeddings else None
    if not isinstance(head, nn.Module):
        raise _unreadable(base.name)
    return head


def _unreadable(name: str) -> ModelError:
    return ModelError(
        f"{name}: its last hidden states cannot be read, because it has no output embeddings that it gives them to. "
        'supervision.type = "care" cannot be used with it.'
    )
