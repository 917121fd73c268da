"""The commands and snippets of README and docs/, run as a reader would run them; smaller, where a run takes minutes.

Every command is also parsed, with its options and settings, by test_docs.py; those that are only parsed need a network,
root, hours, or other machines.
"""

from __future__ import annotations

import ast
import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from docpages import ROOT, Block, block, blocks, commands
from factories import make_card

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.lora_rule import RULES, LoraRule
from fedrlvr.privacy.rule import SiteRule

Command = Callable[..., Any]

SMALL = {
    "train.rounds": 1,
    "train.local_steps": 2,
    "train.problems_per_step": 2,
    "data.train_size": 64,
    "data.test_size": 16,
    "sampling.max_new_tokens": 24,
}
"""A run of the embedded reasoner in seconds."""


def sets(**more: object) -> list[str]:
    """`--set` for a small run; a double underscore stands for the dot."""
    values = {**SMALL, **{key.replace("__", "."): value for key, value in more.items()}}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def program(snippet: Block, directory: Path) -> str:
    """The output of a snippet, run as a program of its own in a directory."""
    done = subprocess.run(
        [sys.executable, "-c", snippet.text],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed(page: str, start: str) -> list[str]:
    """The lines of a page's sample output, but for what was left out and blank lines."""
    lines = block(page, "text", start).text.splitlines()
    return [line.strip() for line in lines if line.strip(" .─")]


def own_problems(directory: Path) -> None:
    """The rows and the configuration of docs/data.md, with two held-out rows."""
    rows = block("docs/data.md", "json", "heparin").text
    (directory / "mine").mkdir()
    (directory / "mine" / "train.jsonl").write_text(rows, "utf-8")
    test = rows.splitlines()[:2]
    renamed = "\n".join(line.replace("12 beds", "20 beds").replace("heparin", "warfarin") for line in test)
    (directory / "mine" / "test.jsonl").write_text(renamed + "\n", "utf-8")
    (directory / "own.toml").write_text(block("docs/data.md", "toml", 'path = "mine"').text, "utf-8")


def test_own_problems_are_loaded_and_validated_as_the_page_shows(here: Path, fedrlvr: Command) -> None:
    own_problems(here)
    output = ""
    for words in commands(block("docs/data.md", "sh", "fedrlvr tasks own.toml")):
        done = fedrlvr(*words[1:])
        assert done.code == 0, done.err
        output += done.out
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for line in printed("docs/data.md", "family"):
        assert " ".join(line.split()) in lines


def test_grading_and_partition_from_python(here: Path) -> None:
    out = program(block("docs/data.md", "python", "partition("), here)
    assert out == "1.0\n{'north': 512, 'south': 512}\n"


@pytest.mark.slow
def test_a_reward_of_ones_own(here: Path, fedrlvr: Command) -> None:
    own_problems(here)
    snippet = block("docs/data.md", "python", "def graded")
    (here / snippet.directive.removeprefix("file: ")).write_text(snippet.text, "utf-8")
    import rewards

    assert rewards.graded(r"\boxed{3}", "3") == 1.0
    assert rewards.graded(500 * "x" + r"\boxed{3}", "3") == 0.5
    assert rewards.graded(r"\boxed{4}", "3") == 0.0
    (words,) = commands(block("docs/data.md", "sh", "data.rewards"))
    sizes = ["--set", "data.train_size=4", "--set", "data.test_size=2"]
    done = fedrlvr(*words[1:], *sets(), *sizes, "--quiet", "--allow-nothing")  # four problems are too few to learn from
    assert done.code == 0, done.err


def middle(directory: Path, monkeypatch: pytest.MonkeyPatch) -> LoraRule:
    """The rule of docs/extending.md, its file imported from a directory and its entry in the table."""
    snippet = block("docs/extending.md", "python", "class Middle")
    path = directory / Path(snippet.directive.removeprefix("file: ")).name
    path.write_text(snippet.text, "utf-8")
    spec = spec_from_file_location("fedrlvr.aggregation.middle", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fedrlvr.aggregation.middle", module)
    spec.loader.exec_module(module)
    entry = block("docs/extending.md", "python", "entry of RULES").text.splitlines()[1].removesuffix(",")
    call = ast.parse(entry, mode="eval").body
    assert isinstance(call, ast.Call)
    rule = LoraRule(*map(ast.literal_eval, call.args))
    monkeypatch.setitem(RULES, rule.name, rule)
    return rule


def test_the_rule_that_the_page_adds_computes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aggregation = middle(tmp_path, monkeypatch).aggregation()
    adapters = [
        Adapter.from_tensors({"q.A": torch.tensor([[a, 1.0]]), "q.B": torch.tensor([[b]])}, 2.0)
        for a, b in ((1.0, 9.0), (2.0, 8.0), (6.0, 1.0), (100.0, 2.0))
    ]
    # A: of 1, 2, 6 and 100 the mean of 2 and 6, and 1 where all are 1; B: of 1, 2, 8 and 9 the mean of 2 and 8.
    tensors = dict(aggregation.aggregate((adapter, 1.0) for adapter in adapters).adapter.tensors())  # type: ignore[union-attr]
    assert tensors["q.A"].tolist() == [[4.0, 1.0]]
    assert tensors["q.B"].tolist() == [[5.0]]
    with pytest.raises(ValueError, match="3 clients"):
        aggregation.aggregate((adapter, 1.0) for adapter in adapters[:2])


def test_the_rule_that_the_page_adds_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fedrlvr: Command, toml: Callable[..., Path]
) -> None:
    rule = middle(tmp_path, monkeypatch)
    (words,) = commands(block("docs/extending.md", "sh", "aggregation.type"))
    assert words[2:] == ["--set", f"aggregation.type={rule.name}"]
    done = fedrlvr(words[1], toml(), *words[2:], "--quiet")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_reading_metrics_prints_the_rounds(here: Path, runs: Callable[[str], Path]) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "first").symlink_to(runs("federated"))
    rounds = [line.split() for line in program(block("docs/report.md", "python", "metrics.jsonl"), here).splitlines()]
    assert [number for number, _ in rounds] == [str(at + 1) for at in range(len(rounds))]
    assert rounds
    assert all(0 <= float(reward) <= 1 for _, reward in rounds)


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs(here: Path) -> None:
    snippet = block("README.md", "python", "fedrlvr.run")
    assert len([line for line in snippet.text.splitlines() if line]) <= 12
    assert re.match(r"runs/\S+ \{'north': 0\.\d+, 'south': 0\.\d+\}", program(snippet, here))


@pytest.mark.slow
def test_start_from_the_first_run_to_the_export(here: Path, fedrlvr: Command) -> None:
    """Every command of docs/start.md, on small runs."""
    (here / "exp.toml").write_text('[federation]\nclients = ["north", "south"]\n', "utf-8")
    first = sets(train__rounds=2)
    extra: dict[str, list[str]] = {"doctor": [], "export": [], "eval": [], "verdict": [], "responses": []}
    seen = []
    for shell in (each for each in blocks(ROOT / "docs" / "start.md") if each.language == "sh"):
        for words in commands(shell):
            name, arguments = words[1], words[2:]
            more = extra.get(name, sets() if name == "sweep" else first)
            if "--resume" in arguments:
                more = []
                arguments = [word.replace("train.rounds=41", "train.rounds=3") for word in arguments]
            if name == "run" and "exp.toml" in arguments:
                arguments = [word.replace("train.rounds=20", "train.rounds=2") for word in arguments]
            if name == "validate":
                more = [*first, "--attacked", "2"]
            done = fedrlvr(name, *arguments, *more)
            worse = name == "verdict" and "Worse than alone" in done.out
            assert done.code == int(worse), (words, done.err)
            seen.append(name)
    assert set(seen) == {"run", "doctor", "tasks", "validate", "sweep", "eval", "export", "verdict", "responses"}
    assert (here / "out" / "adapter_config.json").is_file()
    assert (here / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_labels_in_a_spreadsheet(here: Path, fedrlvr: Command) -> None:
    """The desk's run, then its table out, an answer, and the table in; the page itself is tests/labels' matter."""
    path = ROOT / "examples" / "desk.toml"
    small = sets(train__local_steps=3, train__problems_per_step=4)
    assert fedrlvr("run", path, *small, "--quiet", "--allow-nothing").code == 0  # nobody gives a label while it runs
    out, back = commands(block("docs/labels.md", "sh", "--export"))
    done = fedrlvr(*out[1:])
    assert done.code == 0, done.err
    assert re.fullmatch(r"wrote \d+ problems to labels.csv\n", done.out)
    with (here / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["answer"] = "7"
    with (here / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = fedrlvr(*back[1:])
    assert done.code == 0, done.err
    assert done.out == "stored 1 new answers of Dr. Ruiz\n"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def background(words: list[object], log: Path) -> subprocess.Popen[bytes]:
    """A command that goes on until it is interrupted."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fedrlvr.cli.main", *map(str, words)],
            cwd=log.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def test_the_rule_of_a_site_decides_by_a_card(here: Path) -> None:
    snippet = block("docs/privacy.md", "python", "def decide")
    (here / "site_rule.py").write_text(snippet.text, "utf-8")
    rule = SiteRule("site_rule:decide", here, 60.0)
    cards = [make_card(run=run, kind=kind) for run, kind in (("a", "scores"), ("spring-2027", "scores"))]
    cards.append(make_card(run="spring-2027"))
    try:
        assert [rule.decide(card)[0] for card in cards] == [False, True, None]
    finally:
        rule.close()


@pytest.fixture
def stopped() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are interrupted at the end, in the reverse order."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_federation_on_one_machine(here: Path, fedrlvr: Command, stopped: list[subprocess.Popen[bytes]]) -> None:
    """docs/organisations.md, "Try it on one machine", for one organisation and with its hint about the instruction."""
    superlink_port, site_port = free_port(), free_port()
    for words in commands(block("docs/organisations.md", "sh", "--insecure")):
        words = [word.replace(":18000", f":{superlink_port}").replace("19001", str(site_port)) for word in words[1:]]
        if words[1] == "run":
            stopped.append(background(words, here / f"{words[0]}.log"))
            until = time.monotonic() + 60
            while time.monotonic() < until and "Uvicorn running" not in (here / f"{words[0]}.log").read_text("utf-8"):
                time.sleep(0.2)
            continue
        done = fedrlvr(*words, *(sets() if words[0] == "tasks" else []))
        assert done.code == 0, (words, done.out, done.err)
        if words[0] == "tasks":
            assert 'prompt = {instruction = ""}' in done.out
        if words[:2] == ["site", "init"]:
            path = here / "site-a" / "site.toml"
            text = path.read_text("utf-8")
            path.write_text(
                re.sub(r"^(path = .*)$", r'\1\nprompt = {instruction = ""}', text, count=1, flags=re.M), "utf-8"
            )
    status = fedrlvr("site", "status", "site-a")
    assert "clinic-a: site run is process" in status.out, status


def test_a_run_is_loaded_as_the_page_shows(here: Path, runs: Callable[[str], Path]) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "first").symlink_to(runs("federated"))
    out = program(block("docs/report.md", "python", "load_run"), here)
    assert "round" in out
    assert (here / "reward.svg").stat().st_size > 1000


@pytest.mark.slow
def test_a_sweep_is_compared_as_the_page_shows(here: Path, fedrlvr: Command) -> None:
    sweep, compare = commands(block("docs/compare.md", "sh", "--html"))
    done = fedrlvr(*sweep[1:], *sets(), "--set", "evaluate.every=1", "--quiet")
    assert done.code == 0, done.err
    done = fedrlvr(*compare[1:])
    assert done.code == 0, done.err
    for part in ("scores over tokens", "paired by seed (0, 1, 2)", "train.learning_rate"):
        assert part in done.out
    assert (here / "rates.html").stat().st_size > 10_000
    assert (here / "rates.csv").read_text("utf-8").startswith("arm,run,seed,rounds")
