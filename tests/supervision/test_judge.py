"""The judge: what it learns, says, remembers and shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from planted import GROUP, HIDDEN, auc, seen, world
from safetensors.torch import load, save
from torch import Tensor

from fedrlvr.supervision import cag
from fedrlvr.supervision.features import Labelled
from fedrlvr.supervision.judge import Judge, Settings, learning_rate
from fedrlvr.supervision.probes import CorrectionProbe, ReliabilityProbe


def judge(seed: int = 0, settings: Settings | None = None) -> Judge:
    return Judge(HIDDEN, GROUP, torch.Generator().manual_seed(seed), settings)


def taught(updates: int = 3, seed: int = 0) -> Judge:
    result = judge(seed)
    for update in range(updates):
        result.learn(world(6, 100 + update).labelled())
    return result


def same(tensors: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return tensors.keys() == other.keys() and all(torch.equal(tensors[name], other[name]) for name in tensors)


def test_a_planted_signal_is_found() -> None:
    """Half of the votes are right. Only the hidden states tell which: the clusters are the same in all."""
    fresh, probes = world(300, 1, signal=0.5), judge()
    known = fresh.labelled()
    before = probes.judge(fresh.seen)
    for step in range(20):
        probes.learn(world(13, 1000 + step, signal=0.5).labelled())
    after = probes.judge(fresh.seen)
    worth = known.outside_P > 0
    assert auc(before.reliable_P, known.right_P) < 0.7
    assert auc(after.reliable_P, known.right_P) > 0.95
    assert auc(before.score_P, worth) < 0.6
    assert auc(after.score_P, worth) > 0.9


def test_the_score_is_the_gap_expected_of_the_number() -> None:
    taken = seen("plain", "unanimous", "tied", "unreadable", "half")
    opinion = taught().judge(taken)
    assert ((opinion.reliable_P > 0) & (opinion.reliable_P < 1)).all()
    votes = [5, 8, 4, 0, 3]
    for problem, vote in enumerate(votes):
        numbers = opinion.number_PC[problem].tolist()
        expected = sum(chance * cag(GROUP, vote, y) for y, chance in enumerate(numbers) if chance)
        assert opinion.score_P[problem].item() == pytest.approx(expected, rel=1e-5)
    assert opinion.score_P[1] == opinion.score_P[3] == 0
    assert opinion.score_P[[0, 2, 4]].min() > GROUP**0.5


def test_judging_changes_nothing_and_does_not_depend_on_who_else_is_judged() -> None:
    probes = taught()
    before, taken = probes.state(), seen("plain", "tied", "half")
    together = probes.judge(taken)
    alone = probes.judge(replace(taken, **{name: tensor[1:2] for name, tensor in taken.tensors().items()}))
    assert torch.allclose(together.score_P[1:2], alone.score_P, rtol=1e-5)
    assert torch.allclose(together.reliable_P[1:2], alone.reliable_P, rtol=1e-5)
    assert not together.score_P.requires_grad
    assert same(probes.state()[0], before[0])


def test_no_problems_can_be_judged_and_learned_from() -> None:
    probes, nothing = judge(), world(0, 0).labelled()
    assert probes.judge(nothing).score_P.shape == (0,)
    before = probes.state()[0]
    assert probes.learn(nothing) == probes.learn(None) == {}
    assert same(probes.state()[0], before)
    assert probes.updates == 0


def test_a_single_labelled_problem_can_be_learned_from() -> None:
    probes = judge()
    losses = probes.learn(world(1, 0).labelled())
    assert set(losses) == {"reliability_loss", "response_loss", "correction_loss"}
    tensors = probes.state()[0]
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert tensors["weights/reliability.prompt.0.num_batches_tracked"] == 0
    assert tensors["weights/reliability.response.0.num_batches_tracked"] == 3  # of eight responses


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Labelled]]:
    """Every batch each probe has learned from."""
    seen_by: dict[str, list[Labelled]] = {"reliability": [], "correction": []}

    def record(name: str, loss: Callable[[object, Labelled], object]) -> Callable[[object, Labelled], object]:
        def recorded(self: object, batch: Labelled) -> object:
            seen_by[name].append(batch)
            return loss(self, batch)

        return recorded

    for name, kind in (("reliability", ReliabilityProbe), ("correction", CorrectionProbe)):
        monkeypatch.setattr(kind, "loss", record(name, kind.loss))
    return seen_by


def test_each_step_is_on_the_new_problems_and_16_replayed_ones(batches: dict[str, list[Labelled]]) -> None:
    probes, parts = judge(), [world(problems, 30 + problems).labelled() for problems in (5, 10, 9)]
    for part in parts:
        probes.learn(part)
    probes.learn(None)
    for of_probe in batches.values():
        assert [len(batch) for batch in of_probe] == [5] * 3 + [15] * 3 + [9 + 15] * 3 + [16] * 3
        assert torch.equal(of_probe[0].prompt_PH, parts[0].prompt_PH)
        assert torch.equal(of_probe[3].prompt_PH[:10], parts[1].prompt_PH)
        assert len({tuple(batch.prompt_PH[:, 0].tolist()) for batch in of_probe[-3:]}) == 3  # drawn anew
    assert probes.updates == 4


def test_the_number_is_learned_from_evenly_drawn_labels(batches: dict[str, list[Labelled]]) -> None:
    probes, batch = judge(), world(40, 5).labelled()
    outside_P = torch.zeros(40, dtype=torch.int64)
    outside_P[:8] = 2
    possible_PC = batch.possible_PC | (torch.arange(9) == 2)
    probes.learn(replace(batch, outside_P=outside_P, possible_PC=possible_PC))
    probes.learn(None)
    assert [int((batch.outside_P == 2).sum()) for batch in batches["correction"][3:]] == [8, 8, 8]
    assert min(int((batch.outside_P == 2).sum()) for batch in batches["reliability"][3:]) < 8


def test_the_response_loss_counts_one_and_a_half_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the two parts as good as equal and opposite losses of one parameter, what is left is half of it."""
    probes, gradients = judge(settings=Settings(steps=1, clip=1e9)), []

    def loss(probe: ReliabilityProbe, batch: Labelled) -> tuple[Tensor, Tensor]:
        bias = probe.head[3].bias
        bias.register_hook(lambda gradient: gradients.append(gradient.tolist()))
        return -bias.sum(), bias.sum()

    monkeypatch.setattr(ReliabilityProbe, "loss", loss)
    probes.learn(world(4, 0).labelled())
    assert gradients == [[0.5, 0.5]]


def test_an_update_is_three_small_clipped_steps_without_decay() -> None:
    probes = judge()
    loud = {name: tensor * (30 if name.endswith("3.weight") else 1) for name, tensor in probes.shared().items()}
    probes.load_flattened(torch.cat([tensor.flatten() for tensor in loud.values()]))
    probes.learn(world(6, 0).labelled())
    tensors = probes.state()[0]
    steps = {float(tensor) for name, tensor in tensors.items() if name.endswith(".step")}
    assert steps == {3.0}
    moved = max(float((tensors[f"weights/{name}"] - loud[name]).abs().max()) for name in loud if "running" not in name)
    assert 0.9e-4 < moved < 3.1e-4
    assert probes._optimizer.param_groups[0]["weight_decay"] == 0
    for probe in probes._probes.values():
        squares = sum(float(parameter.grad.square().sum()) for parameter in probe.parameters())
        assert squares**0.5 == pytest.approx(1, rel=1e-4)  # the gradient of such weights is longer


def test_a_judge_goes_on_exactly_from_its_state() -> None:
    probes = taught()
    tensors, plain = probes.state()
    other = taught(updates=1, seed=9)
    other.load(load(save(tensors)), json.loads(json.dumps(plain)))
    assert same(other.state()[0], tensors)
    for step in (7, 8):
        batch = world(6, step).labelled()
        assert probes.learn(batch) == other.learn(batch)
    assert same(probes.state()[0], other.state()[0])
    assert probes.state()[1] == other.state()[1] == {"hidden": HIDDEN, "group": GROUP, "updates": 5}
    taken = seen("plain", "tied", "half")
    assert torch.equal(probes.judge(taken).score_P, other.judge(taken).score_P)


def test_what_was_learned_matters_to_the_state() -> None:
    assert not same(taught().state()[0], taught(seed=1).state()[0])
    assert same(taught().state()[0], taught().state()[0])


def test_a_judge_that_has_learned_nothing_has_a_state_too() -> None:
    tensors, plain = judge(4).state()
    probes = taught()
    probes.load(load(save(tensors)), plain)
    fresh, batch = judge(4), world(6, 7).labelled()
    assert probes.updates == 0
    assert probes.learn(batch) == fresh.learn(batch)
    assert same(probes.state()[0], fresh.state()[0])


def test_a_state_is_a_copy_and_taken_as_one() -> None:
    probes = taught()
    tensors, plain = probes.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    other = judge()
    other.load(tensors, plain)
    probes.learn(world(6, 7).labelled())
    other.learn(world(6, 7).labelled())
    assert same(tensors, kept)


def changed(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        new = change(tensors.pop(name))
        if new is not None:
            tensors[name] = new

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed("weights/correction.head.3.bias", lambda tensor: None), "correction.head.3.bias"),
        (changed("weights/correction.head.3.bias", lambda tensor: tensor[:-1]), "correction.head.3.bias is"),
        (changed("weights/correction.head.3.bias", lambda tensor: tensor.double()), "torch.float64"),
        (changed("moments/reliability.head.3.bias.exp_avg", lambda tensor: None), "head.3.bias.exp_avg"),
        (changed("moments/reliability.head.3.bias.step", lambda tensor: tensor.reshape(1)), "head.3.bias.step is"),
        (changed("replay/right_P", lambda tensor: None), "replayed problems are not whole"),
        (changed("replay/right_P", lambda tensor: tensor[1:]), "replayed problems are not whole"),
        (changed("replay/response_PGH", lambda tensor: tensor[:, 1:]), "the judge takes"),
        (changed("rng", lambda tensor: None), "names that differ"),
        (changed("rng", lambda tensor: tensor[1:]), "torch.uint8"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "a judge's state has no other"),
        (lambda tensors: tensors.update({"weights/other": torch.zeros(1)}), "names that differ.*'other'"),
    ],
)
def test_a_state_that_is_not_whole_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors, plain = taught(1, seed=5).state()
    spoil(tensors)
    probes = taught(1)
    before = probes.state()
    with pytest.raises(ValueError, match=message):
        probes.load(tensors, plain)
    assert same(probes.state()[0], before[0])
    assert probes.state()[1] == before[1]


def test_a_state_of_other_widths_is_refused() -> None:
    tensors, plain = taught().state()
    for key in ("hidden", "group"):
        with pytest.raises(ValueError, match="other widths"):
            judge().load(tensors, {**plain, key: 3})


def test_shared_weights_are_copies() -> None:
    probes = taught()
    weights = probes.shared()
    kept = {name: tensor.clone() for name, tensor in weights.items()}
    probes.learn(world(6, 7).labelled())
    assert same(weights, kept)
    assert not same(probes.shared(), kept)


def test_features_of_other_widths_are_refused() -> None:
    wide = Judge(HIDDEN + 1, GROUP, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"\(8, 16\).* \(8, 17\)"):
        wide.judge(seen("plain"))
    with pytest.raises(ValueError, match="the judge takes"):
        wide.learn(world(2, 0).labelled())


def test_the_score_beside_masked_problems_is_the_chance_that_the_group_is_mixed() -> None:
    probes, taken = judge(settings=Settings(worth="mixed")), seen("plain", "unanimous", "tied", "unreadable", "half")
    probes.learn(world(6, 0).labelled())
    opinion = probes.judge(taken)
    for problem, votes in enumerate([5, 8, 4, 0, 3]):
        chance = opinion.reliable_P[problem].item() + opinion.number_PC[problem, 1:].sum().item()
        expected = GROUP**0.5 * chance if 0 < votes < GROUP else 0.0
        assert opinion.score_P[problem].item() == pytest.approx(expected, rel=1e-5), votes


def test_the_held_out_judgements_are_part_of_the_state() -> None:
    probes, other = taught(), judge(9)
    for number in range(10):
        probes.hold_out(number / 10, number > 4)
    assert probes.auc == 1
    other.load(*probes.state())
    assert other.auc == 1
    tensors, plain = probes.state()
    del tensors["held_out"]
    with pytest.raises(ValueError, match="held-out"):
        other.load(tensors, plain)
    assert other.auc == 1


@pytest.mark.parametrize(
    ("width", "rate"), [(16, 1e-3), (128, 1e-3), (256, 5e-4), (576, 0.128 / 576), (1280, 1e-4), (4096, 1e-4)]
)
def test_the_learning_rate_falls_with_the_width(width: int, rate: float) -> None:
    assert learning_rate(width) == pytest.approx(rate)
