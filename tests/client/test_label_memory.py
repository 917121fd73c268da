"""What a client remembers of its probes and of its labels' numbers, under way and from round to round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import make_adapter
from fakes import contexts
from flwr.app import ConfigRecord, Context
from torch import Tensor

from fedrlvr.client.metrics import LabelMetrics
from fedrlvr.client.state import MEMORY, ROUND_SUPERVISION, SUPERVISION, Memory, SupervisionState
from fedrlvr.errors import MessageError
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.supervision import Fate, Supervised, clusters
from fedrlvr.supervision.features import Labelled, features, labelled
from fedrlvr.supervision.judge import Judge
from fedrlvr.wire.messages import adapter_to_arrays

HIDDEN, GROUP = 4, 3
VOTES = [clusters(["a", "a", "b"]), clusters(["a", None, "b"]), clusters(["b", "b", "b"])]
REWARDS = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def batch(seed: int) -> Labelled:
    hidden = torch.randn(3, GROUP + 1, HIDDEN, generator=torch.Generator().manual_seed(seed))
    seen = features(hidden[:, 0], hidden[:, 1:], VOTES, [[1, 2, 3]] * 3, 4)
    return labelled(seen, [0, 1, 2], VOTES, REWARDS)


def judge(*updates: int) -> Judge:
    """A judge that has learned from these batches."""
    result = Judge(HIDDEN, GROUP, torch.Generator().manual_seed(7))
    for seed in updates:
        result.learn(batch(seed))
    return result


def numbers() -> LabelMetrics:
    metrics = LabelMetrics(total=4)
    verdicts = [
        Supervised(REWARDS[0], 1.0, Fate.KNOWN, true=True),
        Supervised(REWARDS[1], 1.0, Fate.QUERIED, true=True),
        Supervised([1.0] * 3, 0.1, Fate.TRUSTED, true=False),
    ]
    metrics.supervised(VOTES, verdicts, [0.1, 0.7, 0.9])
    metrics.audit(VOTES, verdicts, REWARDS, [0.1, 0.7, 0.9], [1.1, 2.3, 0.0])
    metrics.learned({"reliability_loss": 0.1, "correction_loss": 1 / 3})
    return metrics


def pause(memory: Memory, context: Context) -> None:
    memory.pause(context, adapter_to_arrays(make_adapter(1.0)), None, {"m": torch.zeros(2)})


def same(tensors: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return tensors.keys() == other.keys() and all(
        torch.equal(tensors[name], other[name]) and tensors[name].dtype == other[name].dtype for name in tensors
    )


def exactly(kept: SupervisionState | None, expected: Judge) -> None:
    """The probes are this judge's state, and a judge that loads them goes on as it does."""
    assert kept is not None
    tensors, plain = expected.state()
    assert same(kept.tensors, tensors)
    assert kept.plain == plain
    again = judge(99)
    again.load(kept.tensors, kept.plain)
    other = judge(99)
    other.load(tensors, plain)
    assert again.learn(batch(50)) == other.learn(batch(50))
    assert same(again.state()[0], other.state()[0])


@pytest.fixture
def context() -> Context:
    return contexts()[1]


def test_a_round_under_way_keeps_probes_and_numbers_exactly(context: Context) -> None:
    taught = judge(1, 2)
    assert taught.updates == 2
    pause(
        Memory(cursor=8, steps=2, round_steps=2, labels=numbers(), supervision=SupervisionState(*taught.state())),
        context,
    )
    kept = Memory.of(context, under_way=True)
    exactly(kept.supervision, taught)
    assert kept.labels == numbers()
    assert (kept.cursor, kept.steps, kept.round_steps) == (8, 2, 2)


def test_probes_last_from_round_to_round_and_numbers_do_not(context: Context) -> None:
    taught = judge(1, 2)
    Memory(cursor=8, steps=2, labels=numbers(), supervision=SupervisionState(*taught.state())).finish(context, None)
    kept = Memory.of(context, under_way=False)
    exactly(kept.supervision, taught)
    assert kept.labels is None
    assert (kept.cursor, kept.steps, kept.round_steps) == (8, 2, 0)


def test_probes_that_have_learned_nothing_are_kept_too(context: Context) -> None:
    Memory(supervision=SupervisionState(*judge().state())).finish(context, None)
    exactly(Memory.of(context, under_way=False).supervision, judge())
    pause(Memory(supervision=SupervisionState(*judge().state()), labels=LabelMetrics()), context)
    kept = Memory.of(context, under_way=True)
    exactly(kept.supervision, judge())
    assert kept.labels == LabelMetrics()


def test_a_round_begun_anew_does_not_see_the_one_that_broke_off(context: Context) -> None:
    before, broken = judge(1), judge(1, 2, 3)
    Memory(cursor=4, steps=1, supervision=SupervisionState(*before.state())).finish(context, None)
    begun = Memory.of(context, under_way=False)
    pause(
        Memory(begun.cursor + 8, begun.steps + 2, 2, labels=numbers(), supervision=SupervisionState(*broken.state())),
        context,
    )
    exactly(Memory.of(context, under_way=True).supervision, broken)
    anew = Memory.of(context, under_way=False)
    exactly(anew.supervision, before)
    assert (anew.labels, anew.cursor, anew.steps) == (None, 4, 1)


def test_a_first_round_that_broke_off_leaves_no_probes(context: Context) -> None:
    pause(Memory(labels=numbers(), supervision=SupervisionState(*judge(1).state())), context)
    assert Memory.of(context, under_way=False) == Memory()


def test_of_a_round_under_way_the_newest_is_kept(context: Context) -> None:
    for updates in ((1,), (1, 2)):
        pause(Memory(supervision=SupervisionState(*judge(*updates).state())), context)
    exactly(Memory.of(context, under_way=True).supervision, judge(1, 2))


def test_a_round_without_probes_does_not_find_those_of_one_that_broke_off(context: Context) -> None:
    pause(Memory(labels=numbers(), supervision=SupervisionState(*judge(1).state())), context)
    pause(Memory(cursor=3), context)
    kept = Memory.of(context, under_way=True)
    assert (kept.supervision, kept.labels, kept.cursor) == (None, None, 3)


def test_the_end_of_a_round_leaves_only_what_lasts(context: Context) -> None:
    memory = Memory(cursor=8, steps=2, labels=numbers(), supervision=SupervisionState(*judge(1).state()))
    pause(memory, context)
    assert ROUND_SUPERVISION in context.state
    memory.finish(context, None)
    assert set(context.state) == {MEMORY, SUPERVISION}
    with pytest.raises(MessageError, match="no round is under way"):
        Memory.of(context, under_way=True)


def test_without_probes_nothing_of_them_is_remembered(context: Context) -> None:
    Memory(cursor=8, steps=2).finish(context, None)
    assert dict(context.state) == {MEMORY: ConfigRecord({"cursor": 8, "steps": 2})}
    assert Memory.of(context, under_way=False) == Memory(cursor=8, steps=2)


def test_what_is_kept_does_not_change_with_the_judge(context: Context) -> None:
    taught = judge(1)
    Memory(supervision=SupervisionState(*taught.state())).finish(context, None)
    taught.learn(batch(2))
    exactly(Memory.of(context, under_way=False).supervision, judge(1))


def test_a_checkpoint_keeps_the_probes_exactly(context: Context, tmp_path: Path) -> None:
    taught = judge(1, 2)
    Memory(cursor=8, steps=2, supervision=SupervisionState(*taught.state())).finish(context, None)
    store = Checkpoints(tmp_path, keep=2)
    store.save_memories(3, {"ann": context})
    again = Context(1, 1, {}, store.load_memory(3, "ann"), {})
    exactly(Memory.of(again, under_way=False).supervision, taught)


def test_a_clients_numbers_are_only_numbers() -> None:
    """What a train reply carries of the labels: no prompt, no answer, no name of a problem."""
    kinds = {type(value) for value in numbers().summary().values()}
    assert kinds <= {int, float, list}
    assert all(type(item) in (int, float) for v in numbers().summary().values() if isinstance(v, list) for item in v)
    assert "problem" not in " ".join(numbers().summary())
