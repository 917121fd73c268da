"""A judge's shared weights end to end: what travels, in what order, and what is refused."""

from __future__ import annotations

import pytest
import torch
from planted import GROUP, HIDDEN, seen, world
from torch import Tensor

from fedrlvr.supervision.judge import Judge


def taught(seed: int, updates: int = 1) -> Judge:
    one = Judge(HIDDEN, GROUP, torch.Generator().manual_seed(seed))
    for update in range(updates):
        one.learn(world(6, 10 * seed + update).labelled())
    return one


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_are_end_to_end_in_the_order_of_what_is_shared() -> None:
    one = taught(1)
    flat, at = one.flattened(), 0
    assert (flat.dtype, flat.device.type, flat.dim()) == (torch.float32, "cpu", 1)
    for tensor in one.shared().values():
        assert torch.equal(flat[at : at + tensor.numel()].view(tensor.shape), tensor)
        at += tensor.numel()
    assert at == len(flat)


def test_another_judge_takes_them_exactly_and_keeps_the_rest_of_its_own() -> None:
    one, other = taught(1), taught(2)
    kept = other.state()[0]
    other.load_flattened(one.flattened())
    assert same(other.shared(), one.shared())
    assert torch.equal(other.flattened(), one.flattened())
    assert torch.equal(other.judge(seen("plain", "half")).score_P, one.judge(seen("plain", "half")).score_P)
    shared = {f"weights/{name}" for name in one.shared()}
    rest = {name: tensor for name, tensor in kept.items() if name not in shared}
    assert {"rng", "replay/prompt_PH", "moments/reliability.head.3.bias.exp_avg"} <= set(rest)
    assert same({name: other.state()[0][name] for name in rest}, rest)


def test_a_mean_of_two_is_a_judge() -> None:
    one, other = taught(1), taught(2)
    mean = (one.flattened() + other.flattened()) / 2
    one.load_flattened(mean)
    assert torch.equal(one.flattened(), mean)
    name = "reliability.head.0.running_var"
    assert not torch.equal(one.shared()[name], other.shared()[name])
    assert all(torch.isfinite(torch.tensor(list(one.learn(world(6, 3).labelled()).values()))))


def test_what_is_given_and_taken_are_copies() -> None:
    one, other = taught(1), taught(2)
    flat = one.flattened()
    kept = flat.clone()
    other.load_flattened(flat)
    one.learn(world(6, 7).labelled())
    other.learn(world(6, 8).labelled())
    assert torch.equal(flat, kept)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda flat: flat[1:], "the probes have"),
        (lambda flat: torch.cat([flat, flat[:1]]), "the probes have"),
        (lambda flat: flat.unsqueeze(0), "the probes have"),
        (lambda flat: flat.double(), "torch.float64"),
        (lambda flat: flat * torch.nan, "no probe has"),
        (lambda flat: flat.abs() * -1, "running_var has values that no probe has"),
    ],
)
def test_what_is_no_judges_is_refused_and_changes_nothing(spoil: object, message: str) -> None:
    one, flat = taught(1), taught(2).flattened()
    before = one.state()[0]
    with pytest.raises(ValueError, match=message):
        one.load_flattened(spoil(flat))  # type: ignore[operator]
    assert same(one.state()[0], before)
