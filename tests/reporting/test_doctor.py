"""The diagnosis, on machines made up for it and on this one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from fedrlvr.machine import cpuinfo
from fedrlvr.reporting import doctor
from fedrlvr.reporting.doctor import Finding


def test_packages_that_fit_that_do_not_and_that_are_missing() -> None:
    result = list(
        doctor.packages(
            [
                "rich>=1",
                "numpy<1",
                "no-such-package-anywhere>=2",
                "no-such-package-either; extra == 'hub'",
                "rich<1; extra == 'tensorboard'",
                "rich>=1; extra == 'reasoning-gym'",
                "no-such-tool; extra == 'check'",
            ]
        )
    )
    by_name = {finding.name: finding for finding in result}
    assert by_name["packages"].value.startswith("rich ")
    assert by_name["numpy"].status == "note"
    assert by_name["no-such-package-anywhere"].status == "problem"
    assert by_name["extra hub"].status == "ok"
    assert by_name["extra hub"].value == "not installed (no-such-package-either): pip install 'fedrlvr[hub]'"
    assert by_name["extra tensorboard"].status == "note"
    assert by_name["extra reasoning-gym"].value == "installed"
    assert "extra check" not in by_name


def test_processor() -> None:
    assert doctor.processor(4, None, 0.5).status == "ok"
    busy = doctor.processor(4, None, 3.2)
    assert busy.status == "note"
    assert "engine.threads=1" in busy.advice
    granted = doctor.processor(64, 2.5, 0.0)
    assert granted.value == "64 cores, 2.5 granted, load 0.0"
    assert "engine.threads=2" in granted.advice
    assert "engine.threads=1" in doctor.processor(2, 0.5, 0.0).advice
    assert doctor.processor(1, None, 3.0).status == "ok"  # one thread waits for no other of its own
    assert doctor.processor(2, 2.0, 0.0).status == "ok"


def test_memory() -> None:
    assert doctor.memory(16 << 30).status == "ok"
    assert doctor.memory(1 << 30).status == "note"


def test_accelerator_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)

    def examined(flags: frozenset[str] | None) -> dict[str, Finding]:
        return {finding.name: finding for finding in doctor.accelerator(flags)}

    assert "slower" in examined(frozenset({"avx2"}))["bfloat16"].value
    assert "has it" in examined(frozenset({"avx2", "avx512_bf16"}))["bfloat16"].value
    assert "unknown" in examined(None)["bfloat16"].value
    assert examined(frozenset({"sse2"}))["vectors"].status == "note"
    assert "CUDA build" not in examined(None)["GPU"].advice
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "CUDA build" in examined(None)["GPU"].advice


def test_disk_looks_at_the_nearest_directory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 50 << 30})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.disk(tmp_path / "runs" / "new") == Finding("disk", f"53.7 GB free at {tmp_path}")
    usage.free = 1 << 30
    assert doctor.disk(tmp_path).status == "note"
    usage.free = 1 << 20
    assert doctor.disk(tmp_path).status == "problem"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be written to" in doctor.disk(tmp_path).advice


def test_weights(tmp_path: Path) -> None:
    assert "config.json, tokenizer.json missing" in doctor.weights(tmp_path).value
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}", "utf-8")
    assert doctor.weights(tmp_path).status == "problem"  # no weights
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(30, 40), "b": torch.zeros(7)}, path)
    assert doctor.weights(tmp_path) == Finding("embedded model", "1,207 parameters")
    path.write_bytes(path.read_bytes()[:-100])
    assert doctor.weights(tmp_path).status == "problem"


def test_files_of_linux(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert doctor._quota(path) is None
    assert cpuinfo("flags", path=path) is None
    path.write_text("max 100000\n", "ascii")
    assert doctor._quota(path) is None
    path.write_text("150000 100000\n", "ascii")
    assert doctor._quota(path) == 1.5
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nflags : sse\n", "utf-8")
    assert cpuinfo("flags", "Features", path=path) == "fpu avx2 amx_bf16"


def test_this_machine_is_examined_and_shown(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path)
    names = [finding.name for finding in findings]
    for name in ("fedrlvr", "packages", "processor", "torch threads", "memory", "bfloat16", "disk"):
        assert name in names
    assert all(finding.advice for finding in findings if finding.status != "ok")
    out = io.StringIO()
    doctor.show(findings, Console(file=out, width=120))
    assert str(tmp_path) in out.getvalue().replace("\n", "")


def test_show_says_when_something_stands_in_the_way() -> None:
    out = io.StringIO()
    doctor.show([Finding("disk", "full [red]", "problem", "Make room.")], Console(file=out, width=80))
    assert "problem  disk  full [red]" in out.getvalue()
    assert "disk: Make room." in out.getvalue()
    assert "Nothing stands in the way" not in out.getvalue()
