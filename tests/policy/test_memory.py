"""The memory a run will need, with numbers worked out by hand for a tiny Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import moved_adapter, tiny_cohort

from benchmarks.tiny_models import save_tiny
from fedrlvr.config import Config, LoraConfig, parse_config
from fedrlvr.policy import memory
from fedrlvr.policy.memory import estimate


def config(**changes: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]},
        "federation": {"clients": 3},
        "sampling": {"group_size": 2, "max_new_tokens": 10},
        "train": {"problems_per_step": 5},
        "evaluate": {"samples": 1},
    }
    for name, section in changes.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree)


@pytest.fixture
def cohort(llama: Path):  # type: ignore[no-untyped-def]
    cohort = tiny_cohort(llama, LoraConfig(rank=4, alpha=8.0, targets=["q_proj"]))
    cohort.seat({"a": moved_adapter(cohort, 0)})
    return cohort


def test_the_parts_of_a_tiny_llama(cohort) -> None:  # type: ignore[no-untyped-def]
    needed = estimate(cohort, config(), longest_prompt=20, test_problems=0)
    # Adapters on two layers q_proj [32, 32] at rank 4: 512 numbers; 3 clients x 6 copies and 3 at the server.
    assert needed.adapters == 4 * (2 * 4 * (32 + 32)) * (3 * 6 + 3)
    # Two layers keep a key and a value of 2 heads of 8 numbers: 256 bytes a token. 15 prompts of 20 tokens are kept
    # once for their 30 responses of 10 tokens; 100 tokens of vocabulary at 12 bytes; prompts while they are computed
    # take 4 numbers of the width 32 and of the widest adapted layer, 32.
    assert needed.rows == 30
    assert needed.sampling == 256 * (15 * 20 + 30 * 10) + 12 * 30 * 100 + 15 * 20 * 4 * (32 + 32) * 4
    parameters = sum(parameter.numel() for parameter in cohort.base.model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in cohort.base.model.buffers())
    assert needed.weights == 4 * (parameters - 2 * 4 * 64) + buffers  # without the one client's factors
    assert needed.peak == needed.weights + needed.adapters + max(needed.sampling, needed.training)


def test_what_lowers_it(cohort) -> None:  # type: ignore[no-untyped-def]
    def needed(**changes: dict[str, object]) -> memory.MemoryEstimate:
        return estimate(cohort, config(**changes), longest_prompt=20, test_problems=0)

    plain = needed()
    assert needed(engine={"decode_rows": 6}).sampling < plain.sampling
    assert needed(engine={"decode_rows": 6}).rows == 6
    assert needed(engine={"shared_cache": False}).sampling > plain.sampling
    assert needed(engine={"micro_batch_tokens": 1}).training < plain.training
    assert needed(federation={"clients": 3, "arm": "central"}).adapters < plain.adapters
    assert needed(train={"problems_per_step": 50}).sampling > plain.sampling


def test_a_recurrent_model_has_a_state_for_each_row(tmp_path: Path) -> None:
    """Mamba: two layers of a convolution state [48, 4] and a recurrent one [48, 8], whatever the length."""
    cohort = tiny_cohort(save_tiny(tmp_path, "mamba"))
    assert memory._cache_bytes(cohort.base.model, cohort.base.decoding) == (2 * 4 * (48 * 4 + 48 * 8), 0)
