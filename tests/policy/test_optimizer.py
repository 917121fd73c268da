"""StackedAdamW against torch.optim.AdamW client by client, and the learning-rate schedule by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fedrlvr.config import TrainConfig
from fedrlvr.policy.optimizer import StackedAdamW, learning_rate

SHAPES = [(3, 4, 5), (3, 6, 4)]
RATES = [1e-2, 3e-3, 5e-2]
"""A rate for each of the three clients."""


def stacked(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients_of(step: int) -> list[Tensor]:
    """Large for client 0, so that its clip is active; small for the others, so that theirs is not."""
    generator = torch.Generator().manual_seed(100 + step)
    size = torch.tensor([5.0, 0.05, 0.01]).view(-1, 1, 1)
    return [size * torch.randn(shape, generator=generator) for shape in SHAPES]


def advance(optimizer: StackedAdamW, step: int, rates: list[float] = RATES) -> Tensor:
    optimizer.zero_grad()
    for parameter, gradient in zip(optimizer.parameters, gradients_of(step), strict=True):
        parameter.grad = gradient
    norms = optimizer.clip()
    optimizer.step(rates)
    return norms


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_each_client_gets_torchs_own_adamw_and_clipping(weight_decay: float) -> None:
    config = TrainConfig(weight_decay=weight_decay, beta1=0.8, beta2=0.95, max_grad_norm=0.7)
    stack = StackedAdamW(stacked(), config)
    clients, optimizers = [], []
    for client, rate in enumerate(RATES):
        parameters = [nn.Parameter(parameter[client].detach().clone()) for parameter in stacked()]
        clients.append(parameters)
        optimizers.append(
            torch.optim.AdamW(parameters, lr=rate, betas=(0.8, 0.95), eps=1e-8, weight_decay=weight_decay)
        )
    for step in range(6):
        norms = advance(stack, step)
        for client, (parameters, optimizer) in enumerate(zip(clients, optimizers, strict=True)):
            for parameter, gradient in zip(parameters, gradients_of(step), strict=True):
                parameter.grad = gradient[client].clone()
            norm = nn.utils.clip_grad_norm_(parameters, 0.7)
            optimizer.step()
            assert float(norms[client]) == pytest.approx(float(norm), rel=1e-6)
            for parameter, other in zip(stack.parameters, parameters, strict=True):
                torch.testing.assert_close(parameter[client], other, rtol=1e-6, atol=1e-7)
        assert norms[0] > 0.7 > norms[1]


def test_the_first_step_by_hand() -> None:
    # m / (1 - beta1) = g and v / (1 - beta2) = g^2, so the step is the rate times the sign of g.
    parameter = nn.Parameter(torch.tensor([[[1.0, 2.0]]]))
    optimizer = StackedAdamW([parameter], TrainConfig(weight_decay=0.5))
    parameter.grad = torch.tensor([[[0.3, -0.1]]])
    optimizer.step([0.1])
    # Decay first: 1 - 0.1 x 0.5 = 0.95.
    assert parameter.flatten().tolist() == pytest.approx([0.95 - 0.1, 1.9 + 0.1], abs=1e-6)


def test_state_and_restore_continue_as_if_nothing_had_happened() -> None:
    config = TrainConfig(weight_decay=0.1)
    whole = StackedAdamW(stacked(), config)
    for step in range(4):
        advance(whole, step)

    first = StackedAdamW(stacked(), config)
    for step in range(2):
        advance(first, step)
    states = [first.state(client) for client in range(3)]
    second = StackedAdamW([nn.Parameter(p.detach().clone()) for p in first.parameters], config)
    for client, state in enumerate(states):
        second.restore(client, state)
    advance(first, 9)  # the states are copies, so this does not change them
    for step in range(2, 4):
        advance(second, step)
    for parameter, expected in zip(second.parameters, whole.parameters, strict=True):
        assert torch.equal(parameter, expected)


def test_clients_restored_at_different_steps_are_corrected_by_their_own_count() -> None:
    config = TrainConfig()
    old = StackedAdamW(stacked(), config)
    for step in range(5):
        advance(old, step)
    mixed = StackedAdamW([nn.Parameter(p.detach().clone()) for p in old.parameters], config)
    mixed.restore(0, old.state(0))
    assert mixed.steps.tolist() == [[5, 5], [0, 0], [0, 0]]
    afresh = StackedAdamW([nn.Parameter(p.detach().clone()) for p in old.parameters], config)
    for optimizer in (old, mixed, afresh):
        advance(optimizer, 7)
    for parameter, restored, reset in zip(mixed.parameters, old.parameters, afresh.parameters, strict=True):
        assert torch.equal(parameter[0], restored[0])
        assert torch.equal(parameter[1:], reset[1:])


def test_a_gradient_within_the_norm_is_left_as_it_is() -> None:
    parameter = nn.Parameter(torch.zeros(2, 1, 2))
    optimizer = StackedAdamW([parameter], TrainConfig(max_grad_norm=1.0))
    parameter.grad = torch.tensor([[[0.3, 0.4]], [[3.0, 4.0]]])
    assert optimizer.clip().tolist() == [0.5, 5.0]
    torch.testing.assert_close(parameter.grad, torch.tensor([[[0.3, 0.4]], [[0.6, 0.8]]]), rtol=1e-6, atol=0)


def test_the_schedule_by_hand() -> None:
    # 3 rounds x 4 steps, 2 of them warm-up, 10 after it.
    def rates(schedule: str, steps: list[int]) -> list[float]:
        config = TrainConfig(rounds=3, local_steps=4, warmup_steps=2, learning_rate=0.1, schedule=schedule)
        return [learning_rate(config, step) for step in steps]

    assert rates("constant", [0, 1, 2, 11, 50]) == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1])
    assert rates("linear", [0, 1, 2, 7, 11, 12, 50]) == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.01, 0.0, 0.0])
    assert rates("cosine", [0, 2, 7, 12]) == pytest.approx([0.05, 0.1, 0.05, 0.0], abs=1e-12)
    assert rates("cosine", [4]) == pytest.approx([0.05 * (1 + math.cos(0.2 * math.pi))])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(TrainConfig(learning_rate=0.3, schedule="linear"), 0) == 0.3


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-12])
def test_free_of_scale_a_first_step_is_the_sign_of_the_gradient_whatever_its_size(scale: float) -> None:
    # Of the second client one component is loud, and the other near float32's end.
    gradient = torch.tensor([[[1.0, -0.3], [0.01, 0.0]], [[1e-3, 1e-3], [1.0, 1.0]]]) * scale
    gradient[1, 1] *= 1e9
    steps = {}
    for scale_free in (True, False):
        parameter = nn.Parameter(torch.zeros(2, 2, 2))
        optimizer = StackedAdamW([parameter], TrainConfig())
        optimizer.scale_free = scale_free
        parameter.grad = gradient.clone()
        optimizer.step([0.5, 0.5])
        steps[scale_free] = parameter.detach().clone()
    torch.testing.assert_close(steps[True], -0.5 * gradient.sign(), atol=1e-5, rtol=1e-5)
    assert (steps[False][0].abs().amax() > 0.4) == (scale == 1.0)


def test_free_of_scale_gradients_too_small_for_float32_are_none() -> None:
    """Their second moment would be zero, and the step again a multiple of the gradient."""
    parameter = nn.Parameter(torch.zeros(1, 1, 3))
    optimizer = StackedAdamW([parameter], TrainConfig())
    optimizer.scale_free = True
    parameter.grad = torch.tensor([[[1e-17, -1e-25, 0.0]]])
    optimizer.step([0.5])
    assert not parameter.detach().any()
