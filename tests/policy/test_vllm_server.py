"""A real vLLM server with a real model. scripts/test-vllm makes its environment and calls this; else it is skipped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from models import moved_adapter

from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from fedrlvr.errors import SamplerError
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.sampler import Decoding, agreement
from fedrlvr.policy.vllm.sampler import VllmSampler

PYTHON, MODEL = os.environ.get("FEDRLVR_VLLM_PYTHON"), os.environ.get("FEDRLVR_VLLM_MODEL")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None or MODEL is None, reason="no vLLM: scripts/test-vllm makes its environment"),
]
LONG = "Add the ones first, then the tens, then the hundreds. " * 32
SEEDS = {"a": 1, "b": 2}


@pytest.fixture(scope="module")
def cohort() -> Iterator[Cohort]:
    """Two clients with adapters of their own, sampled from by a server that the cohort starts."""
    assert PYTHON is not None
    assert MODEL is not None
    cohort = Cohort(
        load_base(ModelConfig(name=MODEL)),
        LoraConfig(rank=8),
        EngineConfig(sampler="vllm", vllm_python=Path(PYTHON), vllm_max_loras=2),
    )
    _seat(cohort)
    yield cohort
    assert isinstance(cohort.sampler, VllmSampler)
    assert cohort.sampler._server is not None
    cohort.sampler._server.stop()


def _seat(cohort: Cohort, first: int = 0) -> None:
    cohort.seat({client: moved_adapter(cohort, first + i, std=0.01) for i, client in enumerate("ab")})


def _prompts(cohort: Cohort) -> dict[str, list[list[int]]]:
    texts = ["What is 25 + 31?", LONG]  # the second fills blocks of the cache
    return dict.fromkeys("ab", cohort.base.encode_all(texts))


def test_what_is_drawn_is_scored_alike_here(cohort: Cohort) -> None:
    prompts = _prompts(cohort)
    cohort.begin_training(TrainConfig(), SamplingConfig())
    drawn = cohort.sample(prompts, Decoding(2, 12), SEEDS)
    sampled = [r.logps for groups in drawn.values() for group in groups for r in group]
    cohort.rescore(prompts, drawn)
    scored = [r.logps for groups in drawn.values() for group in groups for r in group]
    assert max(abs(p - q) for a, b in zip(sampled, scored, strict=True) for p, q in zip(a, b, strict=True)) < 1e-3


def test_a_changed_adapter_is_seen_by_the_next_sample(cohort: Cohort) -> None:
    prompts, decoding = _prompts(cohort), Decoding(1, 8, temperature=0.0, past_end=True)
    before = cohort.sample(prompts, decoding, SEEDS)
    _seat(cohort, first=5)
    request = cohort._request(prompts, decoding, SEEDS)
    served_samples, ours = (
        s.sample(request) for s in (cohort.sampler, DecodeSampler(cohort.base, cohort.stack, cohort.engine))
    )
    assert agreement(ours, served_samples).difference < 1e-3
    for client in "ab":
        for was, now in zip(before[client], served_samples[client].responses, strict=True):
            assert max(abs(p - q) for p, q in zip(was[0].logps, now[0].logps, strict=True)) > 1e-2


def test_a_server_that_is_killed_is_started_again(cohort: Cohort) -> None:
    prompts = {"a": [_prompts(cohort)["a"][0]]}
    cohort.sample(prompts, Decoding(1, 2), SEEDS)
    assert isinstance(cohort.sampler, VllmSampler)
    pid = cohort.sampler.server_pid
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.1)
    assert len(cohort.sample(prompts, Decoding(2, 2), SEEDS)["a"][0]) == 2
    assert cohort.sampler.server_pid not in (None, pid)


def test_an_exported_adapter_gives_plain_pefts_greedy_answers(cohort: Cohort, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from fedrlvr.policy.peft_format import save_peft

    adapter = cohort.adapters()["a"]
    save_peft(adapter, tmp_path / "adapter", base_name=str(MODEL))
    plain = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    prompts = cohort.base.encode_all([f"What is {i} + {3 * i + 7}?" for i in range(50)])
    drawn = cohort.sample({"a": prompts}, Decoding(1, 8, temperature=0.0, past_end=True), SEEDS)["a"]
    for ids, (response,) in zip(prompts, drawn, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *response.token_ids[:-1]]])).logits[0, len(ids) - 1 :]
        assert logits.argmax(dim=1).tolist() == response.token_ids


def test_a_server_that_never_comes_up_says_why(cohort: Cohort) -> None:
    engine = EngineConfig(
        sampler="vllm", vllm_python=Path(str(PYTHON)), vllm_arguments=["--no-such-argument"], vllm_max_loras=2
    )
    with pytest.raises(SamplerError, match="no-such-argument"):
        VllmSampler(cohort.base, cohort.stack, engine).sample(cohort._request({"a": [[3]]}, Decoding(1, 1), {}))
    other = EngineConfig(sampler="vllm", vllm_python=Path(sys.executable))  # an environment without vLLM
    with pytest.raises(SamplerError, match=r"engine\.vllm_python"):
        VllmSampler(cohort.base, cohort.stack, other).sample(cohort._request({"a": [[3]]}, Decoding(1, 1), {}))
