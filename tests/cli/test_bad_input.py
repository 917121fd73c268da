"""Every mistake a person can make ends in one paragraph, an exit code that is not 0, and finished rounds intact."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model

Refused = Callable[..., str]
Toml = Callable[..., Path]
Arm = Callable[[str], Path]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.ruonds=2", ["unknown key 'train.ruonds'", "did you mean 'train.rounds'"]),
        ("trian.rounds=2", ["unknown key 'trian'", "did you mean 'train'"]),
        ("train.group_size=4", ["unknown key 'train.group_size'", "did you mean 'sampling.group_size'"]),
        ("train.rounds=many", ["train.rounds", "whole number", "'many'"]),
        ("train.rounds=0", ["train.rounds", "greater than or equal to 1"]),
        ("sampling.group_size=1", ["sampling.group_size", "greater than or equal to 2", "got 1"]),
        ("train.learning_rate=nan", ["train.learning_rate"]),
        ("train.loss=ppo", ["train.loss", "'grpo'"]),
        ("partition.type=random", ["partition"]),
        ("partition.alpha=1.0", ["partition.alpha", "has no effect"]),
        ("federation.clients=[]", ["federation.clients", "between 1 and 4096"]),
        ('federation.clients=["a","a"]', ["client names must differ"]),
        ('federation.clients=["../a"]', ["client name '../a'"]),
        ("data.public_size=-1", ["data.public_size"]),
        ("rounds", ["section.key=value"]),
        ("run.seed.deep=3", ["'seed' is a value"]),
        ("data.name=gms8k", ["no data set 'gms8k'", "did you mean 'gsm8k'"]),
        ("data.path=/nowhere/at/all", ["/nowhere/at/all", "no such file"]),
        ("data.options={colour=1}", ["no option 'colour'"]),
        ("data.rewards=nobody_has_this:f", ["nobody_has_this", "cannot be imported"]),
        ("data.rewards=small_runs:nothing", ["small_runs", "no function 'nothing'"]),
        ("data.rewards=small_runs", ["no import path", "module:function"]),
        ("data.rewards=small_runs:not_a_number", ["small_runs:not_a_number", "finite"]),
        ("data.rewards=small_runs:tells_all", ["raised ValueError on problem"]),
        ("model.device=abacus", ["model.device", "abacus"]),
        ('lora.targets=["q_prj"]', ["lora.targets", "q_prj", "q_proj"]),
        ("sampling.max_new_tokens=510", ["ann", "max_new_tokens", "512"]),
        ("data.max_prompt_tokens=2", ["no training problem has at most data.max_prompt_tokens = 2"]),
        ("data.max_prompt_tokens=510", ["data.max_prompt_tokens = 510", "512 positions"]),
        ('run.trackers=["carrier-pigeon"]', ["run.trackers"]),
        ("run.tracker=tensorboard", ["run.trackers"]),
        ("run.mlflow_uri=http://localhost:1", ["run.mlflow_uri", "run.trackers"]),
        ("run.mlflow_uri=http://me:secret@localhost:1", ["run.mlflow_uri", "MLFLOW_TRACKING_USERNAME"]),
    ],
)
def test_a_wrong_setting(override: str, words: list[str], refused: Refused, toml: Toml, tmp_path: Path) -> None:
    refused(words, "run", toml(), "--set", override)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_file_that_is_no_configuration(refused: Refused, tmp_path: Path) -> None:
    refused(["missing.toml", "No such file"], "run", tmp_path / "missing.toml")
    refused([tmp_path, "Is a directory"], "run", tmp_path)
    (tmp_path / "a.toml").write_bytes(b"# caf\xe9\n[run]\n")
    refused(["a.toml", "position 5", "not valid TOML in UTF-8"], "run", tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("[run\n", "utf-8")
    refused(["b.toml", "not valid TOML", "line 1"], "run", tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("rounds = 3\n", "utf-8")
    refused(["c.toml", "unknown key 'rounds'", "train.rounds"], "tasks", tmp_path / "c.toml")


GOOD = '{"prompt": "p%d", "answer": "%d", "source": "ann"}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["train.jsonl", "is empty"]),
        (b"\n\n", ["train.jsonl", "is empty"]),
        ((GOOD % (1, 1) + '{"prompt": "p"}\n').encode(), ["train.jsonl, line 2", "has no answer"]),
        ((GOOD % (1, 1)).encode() + b'{"prompt": "\xff", "answer": "1"}\n', ["train.jsonl, line 2", "not UTF-8"]),
        ((GOOD % (1, 1) + "{]\n").encode(), ["train.jsonl, line 2", "not JSON"]),
        ((GOOD % (1, 1) + "[]\n").encode(), ["train.jsonl, line 2", "not a JSON object"]),
        ((GOOD % (1, 1) + GOOD % (2, 2)).encode(), ["left without problems", "3 clients"]),
        (("".join(GOOD % (i, i) for i in range(9)) + '{"prompt": "%s", "answer": "1"}\n' % ("x" * 600)).encode(),
         ["the prompt of problem", "601 tokens", "512"]),
    ],
    ids=["empty", "blank", "no-answer", "bytes", "not-json", "list", "too-few", "too-long"],
)  # fmt: skip
def test_a_data_file_that_cannot_be_used(
    content: bytes, words: list[str], refused: Refused, toml: Toml, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes(content)
    (data / "test.jsonl").write_text(GOOD % (100, 100), "utf-8")
    refused(words, "run", toml(data={"path": str(data)}, partition={"type": "iid"}))
    assert not (tmp_path / "run").exists()


def test_a_partition_that_leaves_a_client_with_nothing(refused: Refused, toml: Toml) -> None:
    skewed = toml(partition={"type": "dirichlet", "alpha": 1e-6}, federation={"clients": 4})  # of three sources
    refused(["left without problems by the partition 'dirichlet'", "larger alpha"], "run", skewed)


def make_model(kind: str, directory: Path) -> None:
    if kind == "empty":
        directory.mkdir()
    elif kind == "file":
        directory.write_text("a model", "utf-8")
    elif kind != "absent":
        tiny_model(directory)
        weights = directory / "model.safetensors"
        if kind == "no-weights":
            weights.unlink()
        elif kind == "cut-weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif kind == "config":
            (directory / "config.json").write_text('{"model_type": "abacus"}', "utf-8")
        elif kind == "no-tokenizer":
            for file in directory.glob("tokenizer*"):
                file.unlink()
        elif kind == "pickled":
            weights.rename(directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    "kind", ["absent", "empty", "file", "no-weights", "cut-weights", "config", "no-tokenizer", "pickled"]
)
def test_a_model_path_that_is_no_model(kind: str, refused: Refused, toml: Toml, tmp_path: Path) -> None:
    make_model(kind, tmp_path / "model")
    refused(["model.name", str(tmp_path / "model")], "run", toml(), "--set", f"model.name={tmp_path / 'model'}")


def test_an_adapter_of_another_model(refused: Refused, runs: Arm, model: Path, toml: Toml, tmp_path: Path) -> None:
    adapter = runs("federated") / "adapter"
    other = tiny_model(tmp_path / "neox", "gpt_neox")
    refused(
        [str(adapter), "adapter of another model"],
        "eval", toml(), "--adapter", adapter, "--set", f"model.name={other}",
    )  # fmt: skip
    refused(
        [str(adapter), "lora.targets"],
        "eval", toml(), "--adapter", adapter, "--set", "lora.targets=['q_proj']",
    )  # fmt: skip
    refused([str(tmp_path), "adapter_config.json is missing"], "eval", toml(), "--adapter", tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"\0" * 50)
    refused([str(broken), "cannot be read"], "eval", toml(), "--adapter", broken)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    shutil.copy(adapter / "adapter_model.safetensors", broken)
    (broken / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}), "utf-8")
    refused([str(broken), "use_dora"], "eval", toml(), "--adapter", broken)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_damaged_checkpoint(refused: Refused, runs: Arm, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs("federated"), directory)
    newest = directory / "checkpoints" / "round-0002"
    (newest / "adapter.safetensors").write_bytes(b"\0" * 100)
    before = everything(directory)
    refused([newest, "is damaged", "Delete", "round before"], "run", "--resume", directory)
    assert everything(directory) == before


def test_a_directory_that_is_no_run_or_holds_one_already(
    refused: Refused, runs: Arm, toml: Toml, tmp_path: Path
) -> None:
    refused([tmp_path, "not a run directory"], "run", "--resume", tmp_path)
    refused(["leave out CONFIG"], "run", toml(), "--resume", runs("federated"))
    refused([tmp_path, "not a run directory"], "eval", tmp_path)
    refused([tmp_path, "not a run directory"], "export", tmp_path, tmp_path / "out")
    before = everything(runs("federated"))
    refused(
        [runs("federated"), "already holds a run", "--resume"],
        "run", toml(), "--set", f"run.directory={runs('federated')}",
    )  # fmt: skip
    assert everything(runs("federated")) == before


def test_a_run_directory_that_cannot_be_made(refused: Refused, toml: Toml, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    for place in ("file", "file/run"):
        refused(
            [str(tmp_path / "file"), "cannot be written"], "run", toml(), "--set", f"run.directory={tmp_path / place}"
        )


def test_a_run_configuration_that_was_damaged(refused: Refused, runs: Arm, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs("federated"), directory)
    for content in (b"{", b"[]", b"\xff\xfe", b'{"train": {"rounds": "x"}}'):
        (directory / "config.json").write_bytes(content)
        refused([directory / "config.json"], "run", "--resume", directory)


def test_an_export_that_cannot_be(refused: Refused, runs: Arm, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    refused(["there", "exists already"], "export", runs("federated"), tmp_path / "there")
    refused(["leave out --client"], "export", runs("federated"), tmp_path / "a", "--client", "ann")
    refused(["name one with --client"], "export", runs("local"), tmp_path / "a")
    refused(["dan"], "export", runs("local"), tmp_path / "a", "--client", "dan")
    refused([".."], "export", runs("local"), tmp_path / "a", "--client", "..")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("in the way", "utf-8")
    for extra in ([], ["--merged"]):
        refused(["cannot be written"], "export", runs("federated"), tmp_path / "file" / "out", *extra)


def test_eval_is_told_which_adapter(refused: Refused, runs: Arm, toml: Toml, tmp_path: Path) -> None:
    refused(["--adapter DIR", "--base"], "eval", toml())
    refused(["leave out --adapter"], "eval", toml(), "--base", "--adapter", tmp_path)
    refused(["--set changes a TOML"], "eval", runs("federated"), "--set", "run.seed=1")


def test_debug_shows_the_whole_traceback(fedrlvr: Callable[..., Any], toml: Toml) -> None:
    plain = fedrlvr("run", toml(), "--set", "train.rounds=many")
    debug = fedrlvr("run", toml(), "--set", "train.rounds=many", "--debug")
    assert plain.code == debug.code == 1
    assert "Traceback" not in plain.err
    assert "Traceback (most recent call last)" in debug.err
    assert debug.err.endswith(plain.err)


def test_a_bug_of_ours_is_one_line_too(
    fedrlvr: Callable[..., Any], toml: Toml, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrlvr.simulation import run as run_module

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(run_module, "deal", broken)
    said = fedrlvr("run", toml())
    assert said.code == 70
    assert said.err.startswith("unexpected error, please report it: KeyError")
    assert "Traceback" not in said.err
    assert "Traceback" in fedrlvr("run", toml(), "--debug").err

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "deal", interrupted)
    said = fedrlvr("run", toml())
    assert said.code == 130
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("interrupted_in", "kept"), [("deal", False), ("public_set", False), ("configure_train", True)]
)
def test_the_last_line_of_an_interrupted_run_says_how_to_go_on(
    interrupted_in: str,
    kept: bool,
    fedrlvr: Callable[..., Any],
    toml: Toml,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fedrlvr.server.strategy import FederatedRLVR
    from fedrlvr.simulation import run as run_module

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if kept:
        monkeypatch.setattr(FederatedRLVR, "configure_train", interrupted)
    else:
        monkeypatch.setattr(run_module, interrupted_in, interrupted)
    said = fedrlvr("run", toml(), "--quiet")
    assert said.code == 130
    last = said.err.splitlines()[-1]
    assert str(tmp_path / "run") in last
    assert last.endswith(f"fedrlvr run --resume {tmp_path / 'run'}") == kept
    assert (tmp_path / "run").exists() == kept
    if kept:
        monkeypatch.undo()
        assert fedrlvr("run", "--resume", tmp_path / "run", "--quiet").code == 0


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_process_of_its_own_ends_the_same_way(tmp_path: Path) -> None:
    wrong = shell("-m", "fedrlvr", "run", "--set", "train.ruonds=2")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: ")
    assert "train.rounds" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    debug = shell("-m", "fedrlvr", "run", "--set", "train.ruonds=2", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "--set", "train.ruonds=2"]])
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("torch", "transformers", "flwr", "sympy", "math_verify", "matplotlib", "numpy")
    program = (
        "import sys\nfrom fedrlvr.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    said = shell("-c", program, *arguments)
    assert said.stdout.strip().splitlines()[-1] == "[]", said.stdout + said.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| head -1", ">&-", ">&- 2>&-", "| true"])
def test_a_run_outlives_whoever_reads_its_output(redirection: str, toml: Toml, tmp_path: Path) -> None:
    path = toml()
    command = f"{sys.executable} -m fedrlvr run {path} 2>>{tmp_path / 'err'} {redirection}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment, check=False
    )
    assert said.returncode == 0, said.stderr + (tmp_path / "err").read_text("utf-8")
    assert "Traceback" not in said.stderr + (tmp_path / "err").read_text("utf-8")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("redirection", ["| true", ">&-"])
def test_short_output_without_a_reader_is_no_error(redirection: str) -> None:
    command = f"{sys.executable} -m fedrlvr --help {redirection}"
    said = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
