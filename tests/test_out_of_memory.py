"""A memory error of torch, numpy or Python becomes one error that names phase, sizes and settings, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from models import tiny_cohort, tiny_model

from fedrlvr.cli.main import main
from fedrlvr.config import EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from fedrlvr.errors import DataError, FedrlvrError, MemoryLimitError
from fedrlvr.out_of_memory import SAMPLING, TRAINING, memory_limit
from fedrlvr.policy import capabilities, decode
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.learner import Learner
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.sampler import Decoding

GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.10 GiB is "
    "free. Including non-PyTorch memory, this process has 138.70 GiB memory in use. Of the allocated memory 137.00 GiB "
    "is allocated by PyTorch, and 1.20 GiB is reserved by PyTorch but unallocated."
)


def on_gpu() -> Exception:
    return torch.cuda.OutOfMemoryError(GPU)


def on_cpu() -> Exception:
    """The error of torch's own allocator, by a request that no machine can meet."""
    with pytest.raises(RuntimeError) as failed:
        torch.empty(10**15)
    return failed.value


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def cohort(llama: Path) -> Cohort:
    cohort = tiny_cohort(llama, engine=EngineConfig(decode_rows=48, micro_batch_tokens=321))
    cohort.seat({"ann": cohort.fresh_adapter(0)})
    cohort.begin_training(TrainConfig(), SamplingConfig(group_size=6))
    return cohort


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (on_gpu, ["GPU memory", "2.00 GiB were asked for", "1.10 GiB of 139.80 GiB were free"]),
        (on_cpu, ["machine memory", "4,000.0 TB were asked for"]),
        (MemoryError, ["machine memory"]),
        (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), ["GPU memory"]),
        (lambda: OSError(12, "Cannot allocate memory"), ["machine memory"]),
        (lambda: MemoryError("Unable to allocate 728. TiB for an array"), ["728 TiB were asked for"]),
    ],
)
def test_each_kind_of_memory_error_in_each_phase(
    error: Callable[[], Exception],
    words: list[str],
    cohort: Cohort,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases: dict[str, tuple[Callable[[], object], list[str]]] = {
        "sampling": (
            lambda: cohort.sample({"ann": [[3, 4]]}, Decoding(8, 5), {"ann": 0}),
            ["engine.decode_rows (now 48)", "sampling.group_size (now 8)"],
        ),
        "training": (
            lambda: cohort.learn({"ann": []}, {"ann": 0.0}),
            [
                "engine.micro_batch_tokens (now 321)",
                "model.gradient_checkpointing = true (now false)",
                "lora.rank (now 4)",
            ],
        ),
        "placing the clients' adapters": (
            lambda: cohort.seat({"ann": cohort.fresh_adapter(0)}),
            ["lora.rank (now 4)"],
        ),
        "loading the model": (
            lambda: load_base(ModelConfig(name=str(llama), device="cpu")),
            ["model.dtype = 'bfloat16' (now \"float32\")", str(llama)],
        ),
    }
    failing = raising(error())
    monkeypatch.setattr(cohort.sampler, "sample", failing)
    monkeypatch.setattr(Learner, "step", failing)
    monkeypatch.setattr(LoraStack, "seat", failing)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", failing)
    for phase, (compute, settings) in phases.items():
        with pytest.raises(MemoryLimitError) as failed:
            compute()
        for word in (f"ran out in {phase}", *words, *settings):
            assert word in str(failed.value)
        assert not re.search(r"\d", failed.value.public.replace("'bfloat16'", "")), "no size and no value"
        assert str(llama) not in failed.value.public


def test_a_setting_that_cannot_help_is_not_named(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort.sampler, "sample", raising(on_gpu()))
    with pytest.raises(MemoryLimitError) as failed:  # a problem of the one client has as many rows
        cohort.sample({"ann": [[3, 4]]}, Decoding(48, 5), {"ann": 0})
    assert "decode_rows" not in str(failed.value)
    assert "engine.cohort" not in str(failed.value)
    with pytest.raises(MemoryLimitError) as failed, memory_limit(TRAINING, {"model.gradient_checkpointing": True}):
        raise on_gpu()
    assert "gradient_checkpointing" not in str(failed.value)


def test_several_clients_may_be_computed_one_after_another(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort.seat({name: cohort.fresh_adapter(0) for name in ("ann", "bob")})
    monkeypatch.setattr(cohort.sampler, "sample", raising(on_gpu()))
    with pytest.raises(MemoryLimitError, match=r"engine\.cohort = false \(now true"):
        cohort.sample({}, Decoding(8, 5), {})


def test_a_failed_step_leaves_the_model_ready_to_sample(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = tiny_cohort(llama, checkpointing=True)
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", raising(on_gpu()))
    with pytest.raises(MemoryLimitError, match=r"engine\.micro_batch_tokens"):
        cohort.self_check()
    assert not cohort.base.model.training
    assert cohort.stack.spans is None
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    cohort.self_check()


def test_an_error_that_was_raised_from_a_memory_error_is_one(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of a model turn any exception into one of ours, or into a saving that the model does without."""
    monkeypatch.setattr(capabilities, "_decoded", raising(on_gpu()))
    with pytest.raises(MemoryLimitError, match="loading the model"):
        load_base(ModelConfig(name=str(llama), device="cpu"))
    monkeypatch.undo()
    cohort = tiny_cohort(llama)
    monkeypatch.setattr(Learner, "logp_gap", raising(on_gpu()))
    with pytest.raises(MemoryLimitError, match="loading the model"):
        cohort.self_check()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", raising(RuntimeError("CUDA error: out of memory")))
    with pytest.raises(MemoryLimitError), memory_limit(SAMPLING):
        decode.capture(lambda: None, "tiny")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), DataError("the prompt 'out of memory' is too long"), OSError(28, "full")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as failed, memory_limit(SAMPLING):
        raise error
    assert failed.value is error


def test_the_command_line_ends_with_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory that runs out in no phase of its own is no bug to report either."""
    monkeypatch.setattr("fedrlvr.reporting.doctor.examine", raising(on_cpu()))
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert err.startswith("error: machine memory ran out")
    assert len(err.splitlines()) == 1


def test_it_is_an_error_of_ours_and_a_memory_error() -> None:
    assert issubclass(MemoryLimitError, FedrlvrError)
    assert issubclass(MemoryLimitError, MemoryError)
