"""Hidden states handed out by the sampling pass, against a plain forward pass of the adapted model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import KINDS, end_at, moved_adapter, tiny_cohort
from test_decode import ENDS, PROMPTS, tape_of
from test_sampling import plain_peft
from torch import Tensor, nn

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy import decode
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.hidden_states import HiddenStates, RowStates
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Response

WIDTH = 32
DECODING = Decoding(6, 20)
SEEDS = {"client-0": 5, "client-1": 6}
ENGINES: dict[str, dict[str, Any]] = {
    "growing": {"decode_cache": "growing"},
    "not compacted": {"decode_cache": "growing", "compact": False},
    "prompts copied": {"decode_cache": "growing", "shared_cache": False},
    "each prefilled": {"decode_cache": "growing", "prefill_once": False},
    "two problems at a time": {"decode_cache": "growing", "decode_rows": 24},
    "static": {"decode_cache": "static"},
    "static, not compacted": {"decode_cache": "static", "compact": False},
    "static, each prefilled": {"decode_cache": "static", "prefill_once": False},
    "static, one problem at a time": {"decode_cache": "static", "decode_rows": 1},
}
LOOKS = {torch.ops.aten.is_nonzero, torch.ops.aten.item, torch.ops.aten._local_scalar_dense}
"""How a value gets to the host. In inference mode the first two are seen whole."""
Drawn = dict[str, list[list[Response]]]


def seated(directory: Path, lora: LoraConfig | None = None) -> tuple[Cohort, dict[str, Adapter]]:
    """Two clients with different adapters, on a model that ends its responses often."""
    cohort = tiny_cohort(directory, lora)
    end_at(cohort, ENDS)
    adapters = {f"client-{i}": moved_adapter(cohort, i) for i in range(2)}
    cohort.seat(adapters)
    return cohort, adapters


def prompts_of(cohort: Cohort) -> dict[str, list[list[int]]]:
    """Three of different lengths, and one: in equal blocks the other client has blank rows."""
    ids = [cohort.base.encode(prompt) for prompt in PROMPTS]
    return {"client-0": ids, "client-1": ids[1:2]}


def draw(cohort: Cohort, decoding: Decoding = DECODING, **engine: Any) -> tuple[Drawn, dict[str, HiddenStates]]:
    cohort.sampler = DecodeSampler(cohort.base, cohort.stack, EngineConfig(**engine))
    states: dict[str, HiddenStates] = {}
    return cohort.sample(prompts_of(cohort), decoding, SEEDS, states), states


@torch.no_grad()
def by_forward_pass(model: Any, prompts: list[list[int]], drawn: list[list[Response]]) -> HiddenStates:
    """Hidden states at the last token of each prompt, and where each response's last token is predicted."""

    def last_layer(ids: list[int]) -> Tensor:
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]

    return HiddenStates(
        torch.stack([last_layer(prompt)[-1] for prompt in prompts]),
        torch.stack(
            [
                torch.stack([last_layer([*prompt, *response.token_ids])[-2] for response in responses])
                for prompt, responses in zip(prompts, drawn, strict=True)
            ]
        ),
    )


def assert_close(states: HiddenStates, wanted: HiddenStates, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(states.prompt_PH, wanted.prompt_PH, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(states.response_PGH, wanted.response_PGH, rtol=tolerance, atol=tolerance)


@pytest.fixture
def compactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that were kept each time that rows were taken out."""
    kept: list[int] = []
    plain = RowStates.keep

    def counted(self: RowStates, rows: Tensor) -> None:
        kept.append(len(rows))
        plain(self, rows)

    monkeypatch.setattr(RowStates, "keep", counted)
    return kept


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_a_full_forward_pass(
    kind: str, model_of: Callable[[str], Path], tmp_path: Path, compactions: list[int]
) -> None:
    cohort, adapters = seated(model_of(kind))
    first, _ = draw(cohort, **ENGINES["growing"])
    lengths = {len(r.token_ids) for groups in first.values() for group in groups for r in group}
    assert len(lengths) > 4
    assert {1, 20} <= lengths  # a state that is the prompt's, and one that was never taken out
    wanted = {
        client: by_forward_pass(plain_peft(model_of(kind), adapter, tmp_path / client), prompts, first[client])
        for (client, adapter), prompts in zip(adapters.items(), prompts_of(cohort).values(), strict=True)
    }
    for name, engine in ENGINES.items():
        compactions.clear()
        drawn, states = draw(cohort, **engine)
        assert bool(compactions) != ("not compacted" in name)
        for client in adapters:
            assert [[r.token_ids for r in group] for group in drawn[client]] == [
                [r.token_ids for r in group] for group in first[client]
            ]
            assert_close(states[client], wanted[client])


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_reading_states_changes_no_bit_of_a_sample(engine: dict[str, Any], llama: Path) -> None:
    cohort, _ = seated(llama)
    drawn, _ = draw(cohort, **engine)
    assert cohort.sample(prompts_of(cohort), DECODING, SEEDS) == drawn  # responses compare their log-probs as well


def test_nothing_is_read_unless_it_is_asked_for(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, _ = seated(llama)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(decode, "RowStates", fail)
    assert cohort.sample(prompts_of(cohort), DECODING, SEEDS)
    with pytest.raises(AssertionError):
        draw(cohort)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_recorded_once_and_replayed_reads_the_same_states(
    kind: str, model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, compactions: list[int]
) -> None:
    cohort, _ = seated(model_of(kind))
    plain, wanted = draw(cohort, **ENGINES["growing"])
    monkeypatch.setattr(decode, "can_capture", lambda device: True)
    monkeypatch.setattr(decode, "CAPTURE_WORTH", 3)
    monkeypatch.setattr(decode, "LOOK_EVERY", {"cpu": 2})
    taped: list[Any] = []
    monkeypatch.setattr(decode, "capture", tape_of(taped))
    compactions.clear()
    drawn, states = draw(cohort, **ENGINES["static"])
    assert len(taped) == 1 + len(compactions) > 1
    assert not {operation.run.overloadpacket for tape in taped for operation in tape.operations} & LOOKS
    assert drawn["client-0"][0][0].token_ids == plain["client-0"][0][0].token_ids
    for client, expected in wanted.items():
        assert_close(states[client], expected)


def test_greedy_states_of_one_response(llama: Path, tmp_path: Path) -> None:
    cohort, adapters = seated(llama)
    drawn, states = draw(cohort, Decoding(1, 5, 0.0))
    model = plain_peft(llama, adapters["client-0"], tmp_path)
    assert_close(states["client-0"], by_forward_pass(model, prompts_of(cohort)["client-0"], drawn["client-0"]))


def test_a_response_of_one_token_has_its_prompts_state(llama: Path) -> None:
    cohort, _ = seated(llama)
    _, states = draw(cohort, Decoding(4, 1))
    for features in states.values():
        assert torch.equal(features.response_PGH, features.prompt_PH.unsqueeze(1).expand(-1, 4, -1))
    first, second = states["client-0"].prompt_PH[1], states["client-1"].prompt_PH[0]
    assert not torch.allclose(first, second, atol=1e-3)  # the same prompt under another adapter


def test_tied_heads() -> None:
    cohort = tiny_cohort(Path("embedded"))
    cohort.seat({"client-0": moved_adapter(cohort, 1)})
    model = cohort.base.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    prompts = [cohort.base.encode(prompt) for prompt in ("What is 12 + 345?", "1 + 1 =")]
    states: dict[str, HiddenStates] = {}
    drawn = cohort.sample({"client-0": prompts}, Decoding(3, 12), SEEDS, states)
    assert_close(states["client-0"], by_forward_pass(model, prompts, drawn["client-0"]))


def test_adapted_heads(llama: Path, tmp_path: Path) -> None:
    cohort, adapters = seated(llama, LoraConfig(rank=4, alpha=8.0, targets=("lm_head", "down_proj")))
    drawn, states = draw(cohort)
    model = plain_peft(llama, adapters["client-0"], tmp_path)
    assert_close(states["client-0"], by_forward_pass(model, prompts_of(cohort)["client-0"], drawn["client-0"]))


def test_a_model_that_gives_its_head_all_positions(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, _ = seated(llama)
    _, wanted = draw(cohort)
    plain = cohort.base.model.forward
    monkeypatch.setattr(cohort.base.model, "forward", lambda **inputs: plain(**(inputs | {"logits_to_keep": 0})))
    _, states = draw(cohort)
    assert_close(states["client-0"], wanted["client-0"])


def test_bfloat16_products_leave_states_in_float32(llama: Path, tmp_path: Path) -> None:
    cohort, adapters = seated(llama)
    cohort.base.model.get_decoder().norm.to(torch.bfloat16)  # whose output it then is
    for prefill_once in (True, False):
        drawn, states = draw(cohort, autocast="bfloat16", prefill_once=prefill_once)
        rounded = states["client-0"]
        assert rounded.prompt_PH.dtype == rounded.response_PGH.dtype == torch.float32
        model = plain_peft(llama, adapters["client-0"], tmp_path)
        wanted = by_forward_pass(model, prompts_of(cohort)["client-0"], drawn["client-0"])
        assert not torch.allclose(rounded.response_PGH, wanted.response_PGH, atol=1e-4)
        assert_close(rounded, wanted, 0.2)


def test_clients_without_prompts_have_empty_states(llama: Path) -> None:
    cohort, _ = seated(llama)
    states: dict[str, HiddenStates] = {}
    some = {"client-1": prompts_of(cohort)["client-0"]}
    for engine in ("growing", "static"):
        cohort.sampler = DecodeSampler(cohort.base, cohort.stack, EngineConfig(decode_cache=engine))
        cohort.sample(some, DECODING, SEEDS, states)
        assert [tuple(states["client-0"].prompt_PH.shape), tuple(states["client-0"].response_PGH.shape)] == [
            (0, WIDTH),
            (0, 6, WIDTH),
        ]
        assert tuple(states["client-1"].response_PGH.shape) == (3, 6, WIDTH)
        assert bool(states["client-1"].response_PGH.any(dim=2).all())
    cohort.sample({}, DECODING, SEEDS, states)
    assert [len(states[client].prompt_PH) for client in SEEDS] == [0, 0]


def test_probes_can_be_trained_on_states(llama: Path) -> None:
    cohort, _ = seated(llama)
    _, states = draw(cohort)
    features = states["client-0"]
    assert not features.response_PGH.requires_grad
    probe = nn.Linear(WIDTH, 1)
    # Tensors of inference mode have no backward pass.
    (probe(features.prompt_PH).sum() + probe(features.response_PGH).sum()).backward()
    assert probe.weight.grad is not None
    assert bool(probe.weight.grad.any())


def test_memory_is_one_state_a_row(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, _ = seated(llama)
    seen: list[tuple[int, int]] = []
    plain = decode._Batch.advance

    def watched(self: decode._Batch) -> None:
        plain(self)
        assert self.states is not None
        held = [value.untyped_storage() for value in vars(self.states).values() if isinstance(value, Tensor)]
        seen.append((len(self.where), sum({s.data_ptr(): s.nbytes() for s in held}.values())))

    monkeypatch.setattr(decode._Batch, "advance", watched)
    _, states = draw(cohort, decode_cache="growing")
    assert len(seen) > 10
    for rows, held in seen:  # four prompts, their 24 rows, and the rows being decoded
        assert held == 4 * WIDTH * (4 + 24 + rows)
    for features in states.values():
        assert features.prompt_PH.untyped_storage().nbytes() == 4 * features.prompt_PH.numel()


@pytest.fixture
def pre_hooks(llama: Path) -> tuple[Cohort, Mapping[int, Any]]:
    cohort, _ = seated(llama)
    return cohort, cohort.base.model.get_output_embeddings()._forward_pre_hooks


def test_the_head_is_left_alone_afterwards(
    pre_hooks: tuple[Cohort, Mapping[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, hooks = pre_hooks
    watched: list[int] = []
    plain = decode._draw

    def counted(*args: Any) -> Any:
        watched.append(len(hooks))
        if len(watched) == 4:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(decode, "_draw", counted)
    states: dict[str, HiddenStates] = {}
    with pytest.raises(KeyboardInterrupt):
        cohort.sample(prompts_of(cohort), DECODING, SEEDS, states)
    assert watched == [1] * 4
    assert not hooks
    assert not states  # half of them would be none
    draw(cohort, decode_rows=1)
    assert set(watched) == {1}
    assert not hooks


@pytest.mark.parametrize("head", [None, nn.Identity()], ids=["none", "of no known width"])
def test_a_model_without_an_output_head_cannot_be_read(head: Any, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, _ = seated(llama)
    monkeypatch.setattr(cohort.base.model, "get_output_embeddings", lambda: head)
    with pytest.raises(ModelError, match=r'hidden states.* supervision\.type = "care"'):
        draw(cohort)
    assert cohort.sample(prompts_of(cohort), DECODING, SEEDS)["client-1"]


def test_a_head_that_the_model_does_not_call_cannot_be_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, _ = seated(llama)
    unused = copy.deepcopy(cohort.base.model.get_output_embeddings())
    monkeypatch.setattr(cohort.base.model, "get_output_embeddings", lambda: unused)
    with pytest.raises(ModelError, match=r"hidden states cannot be read"):
        draw(cohort)
    assert not unused._forward_pre_hooks


def test_a_head_that_is_given_tokens_without_rows_cannot_be_read(llama: Path) -> None:
    cohort, _ = seated(llama)
    rows = RowStates(cohort.base)
    with rows:
        cohort.base.model.get_output_embeddings()(torch.zeros(6, WIDTH))
        with pytest.raises(ModelError, match=r"hidden states cannot be read"):
            rows.begin(1, 6)
