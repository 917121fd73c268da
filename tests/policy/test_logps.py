"""Log-probs from hidden states a chunk at a time: against autograd of whole logits, and never more than a chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedrlvr.policy.forward import token_logps

TOKENS, WIDTH, VOCABULARY = 11, 6, 50


class Largest(TorchDispatchMode):
    """Remembers the most entries a tensor with VOCABULARY columns had."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            # The weight's transpose has as many columns, and WIDTH rows.
            if isinstance(tensor, torch.Tensor) and tensor.shape[1:] == (VOCABULARY,) and len(tensor) != WIDTH:
                self.entries = max(self.entries, tensor.numel())
        return out


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    bias = torch.randn(VOCABULARY, generator=generator)
    return hidden, torch.randint(VOCABULARY, (TOKENS,), generator=generator), weight, bias


def test_by_hand() -> None:
    """Two words, h = ln 3, W = (1, 0): probabilities 3/4 and 1/4; d log p_0 / d h = 1 - 3/4, d log p_1 / d h = -3/4."""
    hidden = torch.full((2, 1), 3.0).log().requires_grad_()
    logps = token_logps(hidden, torch.tensor([0, 1]), torch.tensor([[1.0], [0.0]]))
    assert logps.tolist() == pytest.approx([torch.tensor(0.75).log().item(), torch.tensor(0.25).log().item()])
    logps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([0.25, -0.75])


@pytest.mark.parametrize("rows", [1, 4, TOKENS, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
def test_as_autograd_of_whole_logits(rows: int, temperature: float, with_bias: bool) -> None:
    """Tolerance 1e-5."""
    hidden, targets, weight, bias = draw(1)
    weights = torch.linspace(-1, 2, TOKENS)
    logits = (hidden @ weight.T + (bias if with_bias else 0.0)) / temperature
    wanted = logits.log_softmax(dim=1)[torch.arange(TOKENS), targets]
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), hidden)

    logps = token_logps(
        hidden,
        targets,
        weight,
        bias if with_bias else None,
        temperature=temperature,
        logits_at_once=rows * VOCABULARY,
    )
    torch.testing.assert_close(logps, wanted, rtol=1e-5, atol=1e-5)
    (actual,) = torch.autograd.grad((logps * weights).sum(), hidden)
    torch.testing.assert_close(actual, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, VOCABULARY, 4 * VOCABULARY + 3])
def test_never_more_than_a_chunk_of_logits(at_once: int) -> None:
    hidden, targets, weight, bias = draw(2)
    with Largest() as largest:
        token_logps(hidden, targets, weight, bias, logits_at_once=at_once).sum().backward()
    assert largest.entries == max(1, at_once // VOCABULARY) * VOCABULARY


def test_half_precision_hidden_states_get_half_precision_gradients() -> None:
    """The sums over the vocabulary are in float32: the log-probs are as exact as the logits. Tolerance 2 %."""
    hidden, targets, weight, _ = draw(3)
    half = hidden.detach().bfloat16().requires_grad_()
    logps = token_logps(half, targets, weight.bfloat16())
    assert logps.dtype == torch.float32
    wanted = token_logps(half.detach().float(), targets, weight.bfloat16().float())
    torch.testing.assert_close(logps, wanted, rtol=2e-2, atol=2e-2)
    (gradient,) = torch.autograd.grad(logps.sum(), half)
    assert gradient.dtype == torch.bfloat16
