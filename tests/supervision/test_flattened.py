"""A judge's shared weights end to end: what travels, in what order, and what is refused."""

from __future__ import annotations

import pytest
import torch
from planted import GROUP, HIDDEN, seen, world
from torch import Tensor

from fedrlvr.supervision.judge import Judge


def taught(seed: int, updates: int = 1) -> Judge:
    judge = Judge(HIDDEN, GROUP, torch.Generator().manual_seed(seed))
    for update in range(updates):
        judge.learn(world(6, 10 * seed + update).labelled())
    return judge


def same(tensors: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return tensors.keys() == other.keys() and all(torch.equal(tensors[name], other[name]) for name in tensors)


def test_the_weights_are_end_to_end_in_the_order_of_what_is_shared() -> None:
    judge = taught(1)
    flat, at = judge.flattened(), 0
    assert (flat.dtype, flat.device.type, flat.dim()) == (torch.float32, "cpu", 1)
    for tensor in judge.shared().values():
        assert torch.equal(flat[at : at + tensor.numel()].view(tensor.shape), tensor)
        at += tensor.numel()
    assert at == len(flat)


def test_another_judge_takes_them_exactly_and_keeps_the_rest_of_its_own() -> None:
    judge, other = taught(1), taught(2)
    kept = other.state()[0]
    other.load_flattened(judge.flattened())
    assert same(other.shared(), judge.shared())
    assert torch.equal(other.flattened(), judge.flattened())
    assert torch.equal(other.judge(seen("plain", "half")).score_P, judge.judge(seen("plain", "half")).score_P)
    shared = {f"weights/{name}" for name in judge.shared()}
    rest = {name: tensor for name, tensor in kept.items() if name not in shared}
    assert {"rng", "replay/prompt_PH", "moments/reliability.head.3.bias.exp_avg"} <= set(rest)
    assert same({name: other.state()[0][name] for name in rest}, rest)


def test_a_mean_of_two_is_a_judge() -> None:
    judge, other = taught(1), taught(2)
    mean = (judge.flattened() + other.flattened()) / 2
    judge.load_flattened(mean)
    assert torch.equal(judge.flattened(), mean)
    name = "reliability.head.0.running_var"
    assert not torch.equal(judge.shared()[name], other.shared()[name])
    assert all(torch.isfinite(torch.tensor(list(judge.learn(world(6, 3).labelled()).values()))))


def test_what_is_given_and_taken_are_copies() -> None:
    judge, other = taught(1), taught(2)
    flat = judge.flattened()
    kept = flat.clone()
    other.load_flattened(flat)
    judge.learn(world(6, 7).labelled())
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
    judge, flat = taught(1), taught(2).flattened()
    before = judge.state()[0]
    with pytest.raises(ValueError, match=message):
        judge.load_flattened(spoil(flat))  # type: ignore[operator]
    assert same(judge.state()[0], before)
