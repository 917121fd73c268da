"""The sampler's switches and the decode step at fixed shapes: none of them changes what is sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import KINDS, end_at, moved_adapter, tiny_cohort
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy import decode
from fedrlvr.policy.base import load_base
from fedrlvr.policy.capabilities import wants_static
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler, capture
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Response

# Lengths 7 to 34: the longest is beyond four of Gemma2's windows, and padding of the others is wider than one.
PROMPTS = ["1 + 1 =", "What is 12 + 345?", "A dose of 5 mg per kg for 20 kg is"]
ENDS = frozenset(range(2, 12))
DECODINGS = {
    "plain": Decoding(6, 20),
    "cut": Decoding(6, 20, 0.8, 0.9, 20),
    "greedy": Decoding(2, 20, 0.0),
}
Drawn = list[list[list[Response]]]


def seated(directory: Path, device: str = "cpu") -> Cohort:
    """Two clients on a model that ends its responses often."""
    if device == "cpu":
        cohort = tiny_cohort(directory)
    else:
        base = load_base(ModelConfig(name=str(directory), device=device, dtype="float32"))
        cohort = Cohort(base, LoraConfig(rank=4, alpha=8.0), EngineConfig())
    end_at(cohort, ENDS)
    cohort.seat({f"client-{i}": moved_adapter(cohort, i) for i in range(2)})
    return cohort


def draw(cohort: Cohort, decoding: Decoding, **engine: Any) -> Drawn:
    """Samples of two clients with three prompts and one, by switches of the engine."""
    ids = [cohort.base.encode(prompt) for prompt in PROMPTS]
    cohort.sampler = DecodeSampler(cohort.base, cohort.stack, EngineConfig(autocast="off", **engine))
    drawn = cohort.sample({"client-0": ids, "client-1": ids[1:2]}, decoding, {"client-0": 5, "client-1": 6})
    return list(drawn.values())


def assert_same(result: Drawn, other: Drawn, tolerance: float = 1e-5) -> None:
    flat = [[r for client in drawn for group in client for r in group] for drawn in (result, other)]
    assert len(flat[0]) == len(flat[1]) > 0
    for a, b in zip(*flat, strict=True):
        assert a.token_ids == b.token_ids
        assert a.finished == b.finished
        assert a.logps == pytest.approx(b.logps, rel=0, abs=tolerance)


@pytest.fixture(autouse=True)
def compactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that were left after each compaction, exact or in equal blocks."""
    left: list[int] = []

    def counting(plain: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[torch.Tensor], torch.Tensor | None]:
        def counted(alive: torch.Tensor) -> torch.Tensor | None:
            rows = plain(alive)
            left.extend([] if rows is None else [len(rows)])
            return rows

        return counted

    monkeypatch.setattr(decode, "_compact", counting(decode._compact))
    monkeypatch.setattr(decode, "_compact_blocks", counting(decode._compact_blocks))
    return left


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_switches_change_no_sample(
    kind: str, decoding: Decoding, model_of: Callable[[str], Path], compactions: list[int]
) -> None:
    cohort = seated(model_of(kind))
    plain = draw(cohort, decoding, decode_cache="growing")
    taken_out = len(compactions)
    lengths = {len(r.token_ids) for client in plain for group in client for r in group}
    assert len(lengths) > 2
    if decoding.responses > 2:
        assert taken_out
    assert_same(draw(cohort, decoding, decode_cache="growing", compact=False), plain)
    assert len(compactions) == taken_out
    assert_same(draw(cohort, decoding, decode_cache="growing", prefill_once=False), plain)
    assert_same(draw(cohort, decoding, decode_cache="growing", shared_cache=False), plain)
    assert len(compactions) == 3 * taken_out
    assert_same(draw(cohort, decoding, decode_cache="static"), plain)
    if decoding.responses > 2:
        assert len(compactions) > 3 * taken_out
    assert_same(draw(cohort, decoding, decode_cache="static", compact=False, prefill_once=False), plain)


def test_looking_seldom_at_which_rows_ended_changes_no_sample(
    llama: Path, monkeypatch: pytest.MonkeyPatch, compactions: list[int]
) -> None:
    cohort = seated(llama)
    plain = draw(cohort, DECODINGS["plain"])
    each_step = len(compactions)
    monkeypatch.setattr(decode, "LOOK_EVERY", {"cpu": 7})
    assert_same(draw(cohort, DECODINGS["plain"]), plain)
    assert 0 < len(compactions) - each_step < each_step


# Capture. A CUDA graph needs a GPU; a tape of a step's operations asks the same of the step: that everything that
# changes lies in tensors that stay where they are, and that nothing is looked at on the host.


@dataclass
class Operation:
    """One operation that was run, with the memory it read and wrote."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def again(self) -> None:
        """The same on the same memory."""
        new = tree_leaves(self.run(*self.args, **self.kwargs))
        for old, value in zip(tree_leaves(self.result), new, strict=True):
            if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                old.copy_(value)


class Tape(TorchDispatchMode):
    """Records operations with their tensors, as a CUDA graph records kernels with their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise RuntimeError(f"{func} looks at a value on the host")
        result = func(*args, **(kwargs or {}))
        self.operations.append(Operation(func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for operation in self.operations:
            operation.again()


def tape_of(taped: list[Tape]) -> Callable[[Callable[[], None], str], Callable[[], None]]:
    """A stand-in for `capture`. Unlike it, recording runs the step, so the first replay is left out."""

    def record(step: Callable[[], None], name: str) -> Callable[[], None]:
        tape = Tape()
        taped.append(tape)
        started = False

        def replay() -> None:
            nonlocal started
            if started:
                tape.replay()
                return
            started = True
            with tape:
                step()

        return replay

    return record


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_recorded_once_and_replayed_gives_the_same_samples(
    kind: str,
    decoding: Decoding,
    model_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    compactions: list[int],
) -> None:
    cohort = seated(model_of(kind))
    plain = draw(cohort, decoding, decode_cache="growing")
    compactions.clear()
    taped: list[Tape] = []
    monkeypatch.setattr(decode, "can_capture", lambda device: True)
    monkeypatch.setattr(decode, "capture", tape_of(taped))
    monkeypatch.setattr(decode, "CAPTURE_WORTH", 3)
    assert_same(draw(cohort, decoding, decode_cache="static"), plain)
    assert len(taped) == 1 + len(compactions)  # one for each shape
    assert all(len(tape.operations) > 50 for tape in taped)


def test_a_step_that_looks_at_a_value_cannot_be_recorded() -> None:
    counter = torch.zeros(1)

    def step() -> None:
        counter.add_(1)
        if counter.item() > 5:
            counter.zero_()

    with pytest.raises(RuntimeError, match="looks at a value on the host"):
        tape_of([])(step, "model")()


def test_the_growing_cache_cannot_be_replayed(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So the tape does tell fixed shapes from others: with the growing cache every replay writes the same position.
    cohort = seated(llama)
    plain = draw(cohort, DECODINGS["plain"], decode_cache="growing", compact=False)
    monkeypatch.setattr(decode, "can_capture", lambda device: True)
    monkeypatch.setattr(decode, "capture", tape_of([]))
    static = decode.RowCache
    monkeypatch.setattr(decode, "RowCache", lambda *args, **kwargs: static(*args, **(kwargs | {"at": None})))
    replayed = draw(cohort, DECODINGS["plain"], decode_cache="static", compact=False)
    assert [r.token_ids for r in replayed[0][0]] != [r.token_ids for r in plain[0][0]]


def test_a_graph_lives_no_longer_than_the_adapters_it_was_captured_with(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = seated(llama)
    monkeypatch.setattr(decode, "can_capture", lambda device: True)
    monkeypatch.setattr(decode, "capture", tape_of([]))
    first = draw(cohort, DECODINGS["plain"], decode_cache="static")
    cohort.seat({f"client-{i}": moved_adapter(cohort, 7 + i) for i in range(2)})
    second = draw(cohort, DECODINGS["plain"], decode_cache="static")
    assert [r.token_ids for r in first[0][0]] != [r.token_ids for r in second[0][0]]
    assert_same(second, draw(cohort, DECODINGS["plain"], decode_cache="growing"))


def test_static_is_for_gpus_and_for_rotary_embeddings_that_stay(llama: Path) -> None:
    model = tiny_cohort(llama).base.model
    assert wants_static("static", model)
    assert not wants_static("growing", model)
    assert not wants_static("auto", model)

    class OnGpu:
        device = torch.device("cuda")
        config = model.config

    assert wants_static("auto", OnGpu)
    OnGpu.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert not wants_static("auto", OnGpu)
    OnGpu.config.rope_parameters = {"full_attention": {"rope_type": "default"}, "sliding": {"rope_type": "dynamic"}}
    assert not wants_static("auto", OnGpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graphs_replay_the_same_samples(
    kind: str, model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = seated(model_of(kind), device="cuda")
    graphs: list[str] = []

    def counted(step: Callable[[], None], name: str) -> Callable[[], None]:
        graphs.append(name)
        return capture(step, name)

    monkeypatch.setattr(decode, "capture", counted)
    monkeypatch.setattr(decode, "CAPTURE_WORTH", 3)
    decoding = replace(DECODINGS["cut"], max_new_tokens=40)
    assert_same(draw(cohort, decoding, decode_cache="static"), draw(cohort, decoding, decode_cache="growing"), 1e-4)
    assert graphs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_step_that_no_graph_can_hold_is_an_error_that_says_what_to_set() -> None:
    counter = torch.zeros(1, device="cuda")
    with pytest.raises(ModelError, match=r"some-model: .*engine\.decode_cache"):
        capture(lambda: counter.fill_(counter.item()), "some-model")
