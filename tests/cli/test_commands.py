"""The commands beside `run`: what they print, what they write, how they end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
from rich.text import Text
from small_runs import adapter_bytes
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedrlvr.cli.main import app
from fedrlvr.config import ModelConfig, load_resolved
from fedrlvr.policy.base import load_base
from fedrlvr.policy.peft_format import load_peft

Command = Callable[..., Any]
Toml = Callable[..., Path]
Arm = Callable[[str], Path]


@pytest.mark.report
def test_run_ends_with_a_table_and_says_where_everything_lies(fedrlvr: Command, toml: Toml, tmp_path: Path) -> None:
    said = fedrlvr("run", toml(), "--quiet")
    assert said.code == 0, said.err
    assert "error" not in said.err
    shown = "".join(said.out.split())  # a table may break a long path
    for word in ("ann", "bob", "cyd", "report.html", "adapter", "metrics.jsonl"):
        assert word in shown
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"adapter", "checkpoints", "report.html"}


def test_run_without_a_directory_makes_one_that_is_named_by_the_run(
    fedrlvr: Command, toml: Toml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = toml(run={"name": "trial"}, train={"rounds": 1})
    path.write_text(re.sub(r"^directory = .*\n", "", path.read_text("utf-8"), flags=re.M), "utf-8")
    assert fedrlvr("run", path).code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"trial-\d{8}-\d{6}", made.name)
    assert load_resolved(made / "config.json").run.directory == tmp_path / "runs" / made.name


def test_a_run_that_trains_nothing_says_so_last_and_exits_with_3_unless_it_is_allowed(
    fedrlvr: Command, toml: Toml, tmp_path: Path
) -> None:
    path = toml(data={"rewards": "small_runs:zero"}, sampling={"group_size": 16})
    said = fedrlvr("run", path, "--quiet")
    assert said.code == 3
    assert said.err.splitlines()[-1].startswith("Nothing was trained: no optimizer step had a gradient")
    (advice,) = (line for line in said.out.splitlines() if line.startswith("advice: "))
    assert "rewards of rounds" not in advice
    assert "Every reward" in advice
    again = fedrlvr("run", "--resume", tmp_path / "run", "--quiet", "--allow-nothing")
    assert (again.code, again.err.splitlines()[-1]) == (0, said.err.splitlines()[-1])
    shown = fedrlvr("responses", tmp_path / "run", "--client", "bob", "--wrong")
    assert shown.code == 0
    assert shown.out.count("bob, round 2, problem bob-train-") == 4


def test_the_settings_that_are_written_down_are_those_that_ran(runs: Arm) -> None:
    config = load_resolved(runs("local") / "config.json")
    assert (config.federation.arm, config.train.rounds, config.run.seed) == ("local", 2, 3)
    again = json.loads((runs("local") / "config.json").read_text("utf-8"))
    assert json.loads(config.model_dump_json()) == again


def numbers_after(word: str, text: str) -> list[str]:
    return re.findall(r"\d+\.?\d*", next(line for line in text.splitlines() if word in line))


def test_eval_of_a_run_and_of_its_base_model(fedrlvr: Command, runs: Arm, toml: Toml) -> None:
    trained = fedrlvr("eval", runs("federated"))
    again = fedrlvr("eval", toml(), "--adapter", runs("federated") / "adapter")
    base = fedrlvr("eval", runs("federated"), "--base")
    assert trained.code == again.code == base.code == 0, trained.err + again.err + base.err
    assert trained.out == "round 2 of 2\n" + again.out, "the same adapter on the same problems"
    for source in ("ann", "bob", "cyd"):
        assert "4" in numbers_after(source, trained.out), "four held-out problems each"
    assert fedrlvr("eval", toml(), "--base").out == base.out


def test_tasks_shows_who_holds_what_without_a_model(
    fedrlvr: Command, toml: Toml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrlvr.policy import base

    monkeypatch.setattr(base, "load_base", lambda _: pytest.fail("a model was loaded"))
    said = fedrlvr("tasks", toml())
    assert said.code == 0, said.err
    for client in ("ann", "bob", "cyd"):
        held = numbers_after(client, said.out)
        assert "8" in held
        assert "4" in held
    assert not (tmp_path / "run").exists()
    assert fedrlvr("tasks").code == 0, "the embedded default"


def test_tasks_writes_each_clients_problems_to_files_of_its_own(fedrlvr: Command, toml: Toml, tmp_path: Path) -> None:
    said = fedrlvr("tasks", toml(), "--write", tmp_path / "own")
    assert said.code == 0, said.err
    files = {str(path.relative_to(tmp_path / "own")): path for path in (tmp_path / "own").rglob("*.jsonl")}
    assert sorted(files) == [
        f"{client}/{split}.jsonl" for client in ("ann", "bob", "cyd") for split in ("test", "train")
    ]
    rows = [json.loads(line) for line in files["bob/train.jsonl"].read_text("utf-8").splitlines()]
    assert len(rows) == 8
    assert {row["source"] for row in rows} == {"bob"}
    again = fedrlvr("tasks", toml(), "--write", tmp_path / "own")
    assert again.code == 1
    assert "exists already" in again.err


def test_tasks_names_the_instruction_that_written_problems_need(fedrlvr: Command, tmp_path: Path) -> None:
    """The embedded problems are put bare; an organisation's task of written problems would append a sentence."""
    embedded = ("--set", "data.train_size=8", "--set", "data.test_size=4", "--write")
    assert 'needs: prompt = {instruction = ""}\n' in fedrlvr("tasks", *embedded, tmp_path / "bare").out
    stated = fedrlvr("tasks", "--set", 'prompt.instruction=Say "so".', *embedded, tmp_path / "stated").out
    assert 'needs: prompt = {instruction = "Say \\"so\\"."}\n' in stated
    written = ("--set", "data.name=jsonl", "--set", f"data.path={tmp_path / 'bare' / 'north'}")
    assert "instruction" not in fedrlvr("tasks", *written, "--write", tmp_path / "own").out


def test_validate_passes_what_is_gradable_and_fails_a_reward_that_pays_for_nonsense(
    fedrlvr: Command, toml: Toml
) -> None:
    path = toml()
    path.write_text(re.sub(r"^rewards = .*\n", "", path.read_text("utf-8"), flags=re.M), "utf-8")
    sound = fedrlvr("validate", path, "--attacked", "2")
    assert sound.code == 0, sound.out + sound.err
    assert sound.out.splitlines() == [f"{client}: 12 problems, 0 failures" for client in ("ann", "bob", "cyd")]
    public = fedrlvr("validate", path, "--attacked", "2", "--set", "data.public_size=3")
    assert public.out.splitlines()[-1] == "the public set: 3 problems, 0 failures"
    unsound = fedrlvr("validate", toml(), "--attacked", "2")
    assert unsound.code == 1
    assert re.search(r"ann: 12 problems, [1-9]\d* failures", unsound.out)
    assert re.search(r"^  ann-\w+-\d+: .", unsound.out, re.M), "which problem, and why"


def test_doctor_looks_at_this_machine(fedrlvr: Command) -> None:
    said = fedrlvr("doctor")
    assert said.code in (0, 1)
    assert "unexpected" not in said.err
    for word in ("torch", "flwr", "core", "disk"):
        assert word in said.out.lower()


def test_help_names_every_command_and_a_wrong_one_is_told(fedrlvr: Command) -> None:
    said = fedrlvr("--help")
    assert said.code == 0
    for word in ("run", "sweep", "eval", "tasks", "validate", "export", "doctor", "--debug"):
        assert word in said.out
    wrong = fedrlvr("trian")
    assert wrong.code == 2
    assert "Traceback" not in wrong.err
    assert "trian" in wrong.err


def test_export_writes_the_adapter_peft_reads(fedrlvr: Command, runs: Arm, model: Path, tmp_path: Path) -> None:
    assert fedrlvr("export", runs("federated"), tmp_path / "whole" / "peft").code == 0
    assert (
        adapter_bytes_of(tmp_path / "whole" / "peft") == adapter_bytes(runs("federated"))["adapter_model.safetensors"]
    )
    config = json.loads((tmp_path / "whole" / "peft" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(model))
    card = (tmp_path / "whole" / "peft" / "README.md").read_text("utf-8")
    assert f'base_model: "{model.name}"' in card
    assert "| rounds | 2 of 2, 2 local steps each |" in card
    assert "| training problems | 24 at 3 clients" in card
    assert str(model.parent) not in card
    assert json.loads((tmp_path / "whole" / "peft" / "prompt.json").read_text("utf-8"))["instruction"]["math"] == ""
    assert fedrlvr("export", runs("local"), tmp_path / "bob", "--client", "bob").code == 0
    assert adapter_bytes_of(tmp_path / "bob") == adapter_bytes(runs("local"))["bob/adapter_model.safetensors"]


def adapter_bytes_of(directory: Path) -> bytes:
    return (directory / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("arm", "client"), [("federated", None), ("local", "cyd")])
def test_merged_weights_are_the_base_with_the_adapter(
    arm: str, client: str | None, fedrlvr: Command, runs: Arm, model: Path, tmp_path: Path
) -> None:
    """Plain transformers on the merged weights, against base + scale B A written out by hand."""
    extra = [] if client is None else ["--client", client]
    said = fedrlvr("export", runs(arm), tmp_path / "merged", "--merged", *extra)
    assert said.code == 0, said.err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = load_base(ModelConfig(name=str(model), device="cpu"))
    prompt = "What is 6 x 7? Say it in one word."
    assert tokenizer(prompt)["input_ids"] == base.encode(prompt)
    ids = torch.tensor([base.encode(prompt)])
    adapter = load_peft(runs(arm) / "adapter" / (client or ""))
    hooks = []
    for name, factors in adapter.layers.items():

        def update(_: Any, inputs: Any, output: Any, factors: Any = factors) -> Any:
            return output + adapter.alpha / adapter.rank * (inputs[0] @ factors.A.T @ factors.B.T)

        hooks.append(base.model.get_submodule(name).register_forward_hook(update))
    with torch.no_grad():
        expected = base.model(ids).logits
        got = merged(ids).logits
        for hook in hooks:
            hook.remove()
        plain = base.model(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert float((plain - expected).abs().max()) > 1e-2, "the adapter does nothing"


def helped(command: click.Command) -> Iterator[str]:
    """The texts of a command's help, and of the commands in it."""
    yield command.help or ""
    for parameter in command.params:
        yield str(getattr(parameter, "help", None) or "")
    for inner in getattr(command, "commands", {}).values():
        yield from helped(inner)


def test_no_help_loses_a_word_as_markup() -> None:
    texts = list(helped(typer.main.get_command(app)))
    assert len(texts) > 100
    assert [text for text in texts if Text.from_markup(text).plain != text] == []
