"""The decode loop against transformers' own, and the draw against the distribution it inverts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from models import GEMMA2_WINDOW, KINDS, end_at, moved_adapter, tiny_cohort
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, SamplingConfig
from fedrlvr.errors import DataError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import (
    BLOCK,
    _compact,
    _compact_blocks,
    _draw,
    _invert,
    _truncate,
    left_pad,
    position_ids,
    spans_of,
)
from fedrlvr.policy.peft_format import save_peft
from fedrlvr.policy.sampler import Decoding

PROMPTS = ["1 + 1 =", "What is 12 + 345?", "A dose of 5 mg per kg for 20 kg is"]


def seated(directory: Path, clients: int = 1, decode_rows: int = 1024) -> tuple[Cohort, dict[str, Adapter]]:
    cohort = tiny_cohort(directory, engine=EngineConfig(decode_rows=decode_rows))
    adapters = {f"client-{i}": moved_adapter(cohort, i) for i in range(clients)}
    cohort.seat(adapters)
    return cohort, adapters


def ids_of(cohort: Cohort) -> list[list[int]]:
    return [cohort.base.encode(prompt) for prompt in PROMPTS]


def plain_peft(directory: Path, adapter: Adapter, where: Path) -> PeftModel:
    """The same policy without anything of ours beneath."""
    save_peft(adapter, where, base_name=str(directory))
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), where).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_log_probs_are_those_of_a_full_forward_pass(
    kind: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = model_of(kind)
    cohort, adapters = seated(directory, clients=2)
    ids, temperature = ids_of(cohort), 0.8
    assert max(map(len, ids)) > 2 * GEMMA2_WINDOW  # so that the sliding window cuts something
    decoding = Decoding(responses=3, max_new_tokens=14, temperature=temperature, top_p=0.9, top_k=20)
    drawn = cohort.sample(dict.fromkeys(adapters, ids), decoding, {"client-0": 5, "client-1": 6})
    for client, adapter in adapters.items():
        model = plain_peft(directory, adapter, tmp_path / client)
        for prompt, responses in zip(ids, drawn[client], strict=True):
            for response in responses:
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *response.token_ids]])).logits[0, len(prompt) - 1 : -1]
                logps = torch.log_softmax(logits / temperature, dim=-1)
                wanted = logps.gather(1, torch.tensor([response.token_ids]).T).squeeze(1)
                # Of the whole distribution, not of what top-p and top-k leave.
                torch.testing.assert_close(torch.tensor(response.logps), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_transformers_own_greedy(kind: str, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    directory = model_of(kind)
    cohort, adapters = seated(directory, clients=2)
    ids = ids_of(cohort)
    decoding = Decoding(responses=1, max_new_tokens=16, temperature=0.0)
    drawn = cohort.sample(dict.fromkeys(adapters, ids), decoding, {})
    for client, adapter in adapters.items():
        model = plain_peft(directory, adapter, tmp_path / client)
        for prompt, (response,) in zip(ids, drawn[client], strict=True):
            whole = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=16,
            )
            assert response.token_ids == whole[0, len(prompt) :].tolist()
            assert response.finished == (response.token_ids[-1] in cohort.base.eos_ids)


def test_slicing_by_decode_rows_does_not_change_samples(llama: Path) -> None:
    def lengths_and_tokens(decode_rows: int) -> list[list[list[int]]]:
        cohort, adapters = seated(llama, clients=2, decode_rows=decode_rows)
        prompts = {"client-0": ids_of(cohort), "client-1": ids_of(cohort)[:1]}
        drawn = cohort.sample(prompts, Decoding(4, 12), {"client-0": 5, "client-1": 6})
        return [[list(r.token_ids) for r in group] for client in adapters for group in drawn[client]]

    whole = lengths_and_tokens(1024)
    assert len(whole) == 4
    assert lengths_and_tokens(1) == whole  # one prompt of each client at a time
    assert lengths_and_tokens(16) == whole  # two


def test_taking_ended_rows_out_does_not_change_samples(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> dict[str, list[list[list[int]]]]:
        cohort, adapters = seated(llama, clients=2)
        end_at(cohort, frozenset(range(2, 22)))
        drawn = cohort.sample(dict.fromkeys(adapters, ids_of(cohort)), Decoding(8, 24), {"client-0": 5, "client-1": 6})
        return {client: [[list(r.token_ids) for r in group] for group in groups] for client, groups in drawn.items()}

    kept: list[int] = []

    def counted(alive: torch.Tensor) -> torch.Tensor | None:
        rows = _compact(alive)
        kept.extend([] if rows is None else [len(rows)])
        return rows

    monkeypatch.setattr("fedrlvr.policy.decode._compact", counted)
    with_compaction = run()
    assert len(kept) >= 3  # from 48 rows at least to 6
    assert kept == sorted(kept, reverse=True)
    monkeypatch.setattr("fedrlvr.policy.decode._compact", lambda alive: None)
    assert run() == with_compaction


def test_responses_end_at_the_first_end_token_or_at_the_limit(llama: Path) -> None:
    cohort, adapters = seated(llama)
    ends = frozenset(range(2, 22))
    end_at(cohort, ends)
    drawn = cohort.sample(dict.fromkeys(adapters, ids_of(cohort)), Decoding(16, 6), {"client-0": 1})
    responses = [r for group in drawn["client-0"] for r in group]
    assert {r.finished for r in responses} == {True, False}
    for response in responses:
        assert len(response.token_ids) == len(response.logps)
        assert not ends & set(response.token_ids[:-1])
        assert response.finished == (response.token_ids[-1] in ends)
        assert response.finished or len(response.token_ids) == 6
        assert response.text == cohort.base.decode(list(response.token_ids))


def test_too_long_a_prompt_is_an_error(llama: Path) -> None:
    cohort, _ = seated(llama)
    with pytest.raises(DataError, match=r"500 .*sampling\.max_new_tokens = 20 .* 512"):
        cohort.sample({"client-0": [[5] * 500]}, Decoding(1, 20), {"client-0": 0})


# The draw itself.

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, 0.2, 0.3, -3.0])
CHI_SQUARE_9 = 27.88  # exceeded once in a thousand with 9 degrees of freedom


def drawn_tokens(decoding: Decoding, count: int, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    u = torch.rand(count, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return _draw(logits.expand(count, -1), u, decoding)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    count = 20_000
    tokens = drawn_tokens(Decoding(1, 1, temperature), count)
    expected = torch.softmax(LOGITS.double() / temperature, dim=0) * count
    observed = torch.bincount(tokens, minlength=10)
    assert float(((observed - expected) ** 2 / expected).sum()) < CHI_SQUARE_9


def test_the_quantile_decides() -> None:
    # Probabilities 0.5, 0.25, 0.25: cumulative 0.5, 0.75, 1.
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(5, -1)
    u = torch.tensor([0.0, 0.49, 0.51, 0.76, 1 - 2**-53], dtype=torch.float64)
    tokens, logps = _draw(logits, u, Decoding(1, 1))
    assert tokens.tolist() == [0, 0, 1, 2, 2]
    assert logps.tolist() == pytest.approx([-0.693147, -0.693147, -1.386294, -1.386294, -1.386294], abs=1e-6)


def test_the_extremes_of_the_quantile_never_reach_a_cut_token() -> None:
    # The tokens at both ends of the vocabulary have no probability left.
    logits = torch.tensor([-50.0, 1.0, 2.0, -50.0]).expand(2, -1)
    u = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert _draw(logits, u, Decoding(1, 1, top_k=2))[0].tolist() == [1, 2]


def test_blocks_invert_the_same_distribution() -> None:
    # Wider than a block and no multiple of it, with cut entries; against one running sum over everything.
    generator = torch.Generator().manual_seed(3)
    rows, width = 4_000, 3 * BLOCK + 17
    weights = torch.rand(1, width, generator=generator)
    weights[:, :40] = 0
    weights[:, BLOCK : 2 * BLOCK] = 0
    weights[:, -5:] = 0
    u = torch.rand(rows, generator=generator, dtype=torch.float64)
    u[:2] = torch.tensor([0.0, 1 - 2**-53])
    cumulative = weights[0].double().cumsum(0) / weights.double().sum()
    chosen = _invert(weights.expand(rows, -1), u)
    assert bool((weights[0, chosen] > 0).all())
    assert chosen[:2].tolist() == [40, width - 6]
    # Blocks are summed in single precision: the running sums agree to about 1e-6, so u must lie that near.
    assert bool((u < cumulative[chosen] + 1e-6).all())
    assert bool((u >= cumulative[chosen - 1] - 1e-6).all())


def kept(decoding: Decoding, logits: Sequence[float]) -> list[int]:
    logps = torch.log_softmax(torch.tensor([logits]), dim=-1)
    return torch.isfinite(_truncate(logps, decoding)[0]).nonzero().flatten().tolist()


def test_top_k_and_top_p_by_hand() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().tolist()
    assert kept(Decoding(1, 1, top_k=2), logits) == [1, 2]
    assert kept(Decoding(1, 1, top_k=0), logits) == [0, 1, 2, 3]
    assert kept(Decoding(1, 1, top_k=9), logits) == [0, 1, 2, 3]
    assert kept(Decoding(1, 1, top_p=0.65), logits) == [1, 2]  # 0.4 alone is short of 0.65, 0.7 is not
    assert kept(Decoding(1, 1, top_p=0.75), logits) == [1, 2, 3]
    assert kept(Decoding(1, 1, top_p=1e-6), logits) == [1]  # the likeliest token always stays
    # Of the three that top-k leaves, 0.4 / 0.9 = 0.44 and (0.4 + 0.3) / 0.9 = 0.78.
    assert kept(Decoding(1, 1, top_k=3, top_p=0.7), logits) == [1, 2]


@pytest.mark.parametrize("decoding", [Decoding(1, 1, top_k=3), Decoding(1, 1, top_p=0.6), Decoding(1, 1, 2.0, 0.5, 4)])
def test_nothing_outside_the_kept_set_is_drawn(decoding: Decoding) -> None:
    tempered = (LOGITS / decoding.temperature).tolist()
    allowed = set(kept(decoding, tempered))
    assert set(drawn_tokens(decoding, 5_000).tolist()) == allowed
    assert 0 in allowed
    assert len(allowed) < 10


def test_left_padding_and_positions() -> None:
    ids, mask = left_pad([[7, 8, 9], [5]], 0, torch.device("cpu"))
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert position_ids(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_compaction_by_hand() -> None:
    alive = torch.tensor([False, True, False, True, True])
    rows = _compact(alive)
    assert rows is not None
    assert rows.tolist() == [1, 3, 4]
    assert _compact(torch.tensor([True] * 9 + [False])) is None  # nine of ten would stay


def test_compaction_in_equal_blocks_by_hand() -> None:
    # Two clients of four rows. Client 0 has rows 1 and 3 alive, client 1 (its rows are 4 to 7) row 2 alone.
    alive = torch.tensor([[False, True, False, True], [False, False, True, False]])
    rows = _compact_blocks(alive)
    assert rows is not None
    assert rows.tolist() == [1, 3, 6, 4]  # client 1 keeps one dead row
    alive[0, 0] = True
    assert _compact_blocks(alive) is None  # three of four of client 0 are alive: not half of the batch would go


def test_whose_the_tokens_are_by_hand() -> None:
    """Two tokens a row: client 0 has one row, client 2 two; equal blocks of everybody need no spans."""
    assert spans_of(torch.tensor([0, 2, 2]), 3, 2) == [(0, 0, 2), (2, 2, 6)]
    assert spans_of(torch.tensor([0, 0, 1, 1]), 2, 5) is None
    assert spans_of(torch.tensor([0, 0, 1, 1]), 3, 1) == [(0, 0, 2), (1, 2, 4)]


def test_decoding_of_a_config() -> None:
    config = SamplingConfig(group_size=6, max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=3)
    assert Decoding.of(config) == Decoding(6, 9, 0.5, 0.9, 3)
