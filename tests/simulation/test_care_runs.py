"""CARE and its ledger in whole runs of the embedded reasoner: no answer leaks, a label is paid for once, people answer
while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.client.app import CohortApp
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError, MessageError
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.reporting.observer import Event, Observer, RoundSaved, StepEnded
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.server.strategy import WrappingStrategy
from fedrlvr.simulation.run import Federation, new_cohort, resume, run
from fedrlvr.tasks import load

CLIENTS = ("ann", "bob")
GARBAGE = "-987654"
Tree = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of two of the embedded reasoner's families as a user's own files: 24 to train on, 8 held out."""
    directory = tmp_path_factory.mktemp("problems")
    for split, per_cell in (("train", 12), ("test", 4)):
        result = load("embedded", None, split, size=per_cell, seed=0, families=["sum", "difference"], levels=["easy"])
        rows = [{"prompt": p.prompt, "answer": p.answer, "id": p.id, "source": p.source} for p in result]
        write(directory / f"{split}.jsonl", rows)
    return directory


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def settings(problems: Path, directory: Path, how: Mapping[str, Any], **changes: Mapping[str, Any]) -> Tree:
    """Three rounds of two steps of four problems, for two clients of one family each."""
    tree: Tree = {
        "run": {"seed": 1, "directory": str(directory)},
        "data": {"name": "jsonl", "path": str(problems)},
        "prompt": {"instruction": ""},
        "partition": {"type": "source"},
        "federation": {"clients": list(CLIENTS)},
        "lora": {"rank": 4, "alpha": 8.0},
        "sampling": {"group_size": 4, "max_new_tokens": 32},
        "train": {"rounds": 3, "local_steps": 2, "problems_per_step": 4, "learning_rate": 3e-3},
        "evaluate": {"every": 0},
        "engine": {"threads": 1},
        "supervision": dict(how),
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


def ledger(directory: Path, client: str) -> LabelLedger:
    return LabelLedger(directory / "clients" / client / "ledger.sqlite")


def paid(directory: Path) -> set[str]:
    """Problems that somebody asked about."""
    result = set()
    for client in CLIENTS:
        opened = ledger(directory, client)
        result |= {entry.problem for entry in opened.entries()}
        opened.close()
    return result


CARE = {"type": "care", "budget": 0.25, "vote_free_share": 0.3, "trusted": 0.25}


@pytest.fixture(scope="module")
def true(problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CARE."""
    directory = tmp_path_factory.mktemp("true") / "run"
    fedrlvr.run(settings(problems, directory, CARE))
    return directory


def with_garbage(problems: Path, directory: Path, spared: Callable[[str], bool]) -> Path:
    """The same problems, with garbage for the answers of those that are not spared."""
    directory.mkdir()
    rows = rows_of(problems / "train.jsonl")
    assert any(not spared(row["id"]) for row in rows)
    write(directory / "train.jsonl", [{**r, "answer": r["answer"] if spared(r["id"]) else GARBAGE} for r in rows])
    (directory / "test.jsonl").write_bytes((problems / "test.jsonl").read_bytes())
    return directory


def no_leak(problems: Path, true: Path, tmp_path: Path, how: Mapping[str, Any]) -> None:
    bought = paid(true)
    assert len(bought) == len(CLIENTS) * 3, "a quarter of each client's twelve problems, though all are drawn twice"
    mended = with_garbage(problems, tmp_path / "garbage", bought.__contains__)
    fedrlvr.run(settings(mended, tmp_path / "again", how))
    assert paid(tmp_path / "again") == bought
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(true)


def test_no_answer_that_was_not_paid_for_changes_a_byte(problems: Path, true: Path, tmp_path: Path) -> None:
    no_leak(problems, true, tmp_path, CARE)


@pytest.mark.parametrize("how", [{**CARE, "share_probes": True}, {"type": "random", "budget": 0.25}])
def test_nor_with_shared_probes_or_another_selection(how: dict[str, Any], problems: Path, tmp_path: Path) -> None:
    fedrlvr.run(settings(problems, tmp_path / "true", how))
    no_leak(problems, tmp_path / "true", tmp_path, how)


def test_an_answer_that_was_paid_for_does(problems: Path, true: Path, tmp_path: Path) -> None:
    bought = paid(true)
    wrong = with_garbage(problems, tmp_path / "garbage", lambda problem: problem not in bought)
    fedrlvr.run(settings(wrong, tmp_path / "again", CARE))
    assert adapter_bytes(tmp_path / "again") != adapter_bytes(true)


def test_the_probes_learn_after_every_update_and_are_remembered(true: Path) -> None:
    for client in CLIENTS:
        memory = Checkpoints(true, 1).load_memory(3, client)
        assert json.loads(str(memory.config_records["fedrlvr"]["supervision"]))["updates"] == 3 * 2
        rounds = [line["clients"][client] for line in without_seconds(true)[1:]]
        assert all(numbers["reliability_loss"] > 0 for numbers in rounds)
        assert [sum(numbers["calibration"]["n"]) for numbers in rounds if "calibration" in numbers] == [2, 1]
        assert all("probe_auc" not in numbers for numbers in rounds), "three labels are too few"


def test_an_audit_changes_nothing_but_what_is_known_of_the_run(problems: Path, true: Path, tmp_path: Path) -> None:
    fedrlvr.run(settings(problems, tmp_path / "audited", {**CARE, "audit": True}))
    assert adapter_bytes(true) == adapter_bytes(tmp_path / "audited")
    plain, audited = without_seconds(true)[1], without_seconds(tmp_path / "audited")[1]
    for client in CLIENTS:
        known = {key for key in audited["clients"][client] if key not in plain["clients"][client]}
        assert {"pass@1", "audit_majority_right"} <= known
        assert all(key == "pass@1" or key.startswith("audit_") for key in known)


def test_a_label_is_paid_for_once_and_used_whenever_its_problem_is_drawn(problems: Path, tmp_path: Path) -> None:
    # 12 problems a client, four a step: after three steps every problem has been drawn, and then they come again.
    tree = settings(problems, tmp_path / "run", {"type": "random", "budget": 1.0}, train={"rounds": 3})
    fedrlvr.run(tree)
    rounds = [line["clients"]["ann"] for line in without_seconds(tmp_path / "run")[1:]]
    assert [numbers["labels_asked"] for numbers in rounds] == [8, 4, 0]
    assert [numbers["labels_used"] for numbers in rounds] == [8, 8, 8]
    assert [numbers["labels_total"] for numbers in rounds] == [8, 12, 12]
    assert [numbers["share_known"] for numbers in rounds] == [0.0, 0.5, 1.0]
    opened = ledger(tmp_path / "run", "ann")
    assert {entry.uses for entry in opened.entries()} == {2}
    opened.close()


def test_a_budget_that_is_spent_evenly_lasts_until_the_end(problems: Path, tmp_path: Path) -> None:
    fedrlvr.run(settings(problems, tmp_path / "run", {"type": "random", "budget": 0.5, "spend": "even"}))
    for client in CLIENTS:  # half of twelve problems in six steps
        rounds = [line["clients"][client] for line in without_seconds(tmp_path / "run")[1:]]
        assert [numbers["labels_asked"] for numbers in rounds] == [2, 2, 2]
        assert rounds[-1]["labels_total"] == 6
        assert sum(numbers["labels_used"] for numbers in rounds) > 6


def test_all_labels_bought_train_as_all_labels_given(problems: Path, tmp_path: Path) -> None:
    fedrlvr.run(settings(problems, tmp_path / "given", {"type": "labels"}))
    fedrlvr.run(settings(problems, tmp_path / "bought", {"type": "entropy", "budget": 1.0}))
    assert adapter_bytes(tmp_path / "given") == adapter_bytes(tmp_path / "bought")


class Stop(Exception):
    """Ends a run from within."""


class StopAtStep(Observer):
    """Ends a run in the middle of a round, when a step's labels are in the ledger."""

    essential = True

    def __init__(self, round_: int) -> None:
        self.round = round_

    def notify(self, event: Event) -> None:
        if isinstance(event, StepEnded) and event.round == self.round:
            raise Stop


def stopped_in_mid_round(tree: Tree) -> Path:
    with pytest.raises(Stop):
        run(parse_config(tree), observer=StopAtStep(2))
    return Path(tree["run"]["directory"])


def same_as(directory: Path, whole: Path) -> None:
    assert adapter_bytes(directory) == adapter_bytes(whole)
    assert without_seconds(directory) == without_seconds(whole)
    assert paid(directory) == paid(whole)


def test_a_run_that_stopped_in_mid_round_asks_the_same_again(problems: Path, true: Path, tmp_path: Path) -> None:
    directory = stopped_in_mid_round(settings(problems, tmp_path / "cut", CARE))
    assert len(paid(directory)) > len(CLIENTS) * 2, "labels of the round that is not done"
    resume(directory)
    same_as(directory, true)


def test_so_does_one_with_trapo(problems: Path, tmp_path: Path) -> None:
    how = {"type": "trapo", "budget": 0.5, "vote_free_share": 0.5, "trusted": 0.25}
    fedrlvr.run(settings(problems, tmp_path / "whole", how))
    directory = stopped_in_mid_round(settings(problems, tmp_path / "cut", how))
    resume(directory)
    same_as(directory, tmp_path / "whole")
    trusted = [line["clients"]["ann"]["share_reliable"] for line in without_seconds(directory)[1:]]
    assert trusted[0] == 0
    assert trusted[2] > 0


@pytest.mark.slow
def test_so_does_one_with_exchanges_shared_probes_and_fgrpo(problems: Path, tmp_path: Path) -> None:
    how = {**CARE, "share_probes": True}
    changes: Tree = {
        "coordination": {"type": "pubswap", "exchanges": 2, "public_problems": 2},
        "data": {"public_size": 4},
        "aggregation": {"weights": "fgrpo"},
    }
    fedrlvr.run(settings(problems, tmp_path / "whole", how, **changes))
    directory = stopped_in_mid_round(settings(problems, tmp_path / "cut", how, **changes))
    resume(directory)
    same_as(directory, tmp_path / "whole")


class Experts(Observer):
    """Answers everything that is open at each client when a round is done, from what they know."""

    essential = True

    def __init__(self, directory: Path, known: Mapping[str, str]) -> None:
        self.directory, self.known = directory, known

    def notify(self, event: Event) -> None:
        for client in CLIENTS if isinstance(event, RoundSaved) else ():
            path = self.directory / "clients" / client / "ledger.sqlite"
            if not path.exists():
                continue
            opened = LabelLedger(path)
            while (question := opened.next_open("Dr. Ito", at=0.0)) is not None:
                opened.answer(question.problem, "correct", self.known[question.problem], expert="Dr. Ito", at=1.0)
            opened.close()


def test_people_answer_while_a_run_goes_on_and_it_uses_their_labels_next(problems: Path, tmp_path: Path) -> None:
    rows = rows_of(problems / "train.jsonl")
    directory = tmp_path / "unlabelled"
    directory.mkdir()
    write(directory / "train.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in rows])
    (directory / "test.jsonl").write_bytes((problems / "test.jsonl").read_bytes())
    desk = {**CARE, "budget": 0.5, "labels_from": "desk"}
    tree = settings(directory, tmp_path / "run", desk, train={"rounds": 6})
    known = {row["id"]: row["answer"] for row in rows}
    run(parse_config(tree), observer=Experts(tmp_path / "run", known))
    rounds = [line["clients"]["ann"] for line in without_seconds(tmp_path / "run")[1:]]
    assert rounds[0]["labels_asked"] == 4
    assert rounds[0]["labels_used"] == 0, "nobody has answered yet, and training does not wait"
    assert all("pass@1" not in numbers for numbers in rounds), "nobody knows it"
    assert sum(numbers["labels_used"] for numbers in rounds) > 0
    assert rounds[-1]["labels_total"] == sum(numbers["labels_asked"] for numbers in rounds[:-1])
    asked = sum(numbers["labels_asked"] for numbers in rounds)
    assert asked <= 12, "each of the client's twelve problems is asked about once at most"


def test_labels_of_people_serve_later_runs(problems: Path, tmp_path: Path) -> None:
    desk = {"type": "random", "budget": 0.5, "labels_from": "desk"}
    ledgers = {"ledgers": str(tmp_path / "ledgers")}
    first = settings(
        problems, tmp_path / "first", desk, run={"seed": 1, "directory": str(tmp_path / "first"), **ledgers}
    )
    fedrlvr.run(first)
    known = {row["id"]: row["answer"] for row in rows_of(problems / "train.jsonl")}
    for client in CLIENTS:
        opened = LabelLedger(tmp_path / "ledgers" / f"{client}.sqlite")
        while (question := opened.next_open("Dr. Ito", at=0.0)) is not None:
            opened.answer(question.problem, "correct", known[question.problem], expert="Dr. Ito", at=1.0)
        opened.close()
    second = settings(problems, tmp_path / "second", desk, run={"directory": str(tmp_path / "second"), **ledgers})
    fedrlvr.run(second)
    assert without_seconds(tmp_path / "first")[1]["clients"]["ann"]["labels_used"] == 0
    assert without_seconds(tmp_path / "second")[1]["clients"]["ann"]["labels_used"] > 0


def test_a_total_budget_ends_the_asking(problems: Path, tmp_path: Path) -> None:
    care = {**CARE, "budget": 0.5, "budget_total": 3}
    fedrlvr.run(settings(problems, tmp_path / "run", care))
    for client in CLIENTS:
        asked = [line["clients"][client]["labels_asked"] for line in without_seconds(tmp_path / "run")[1:]]
        assert asked == [3, 0, 0]


def test_probes_that_a_server_made_up_are_refused(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cannot tell a weight from a variance, the client can."""
    from fedrlvr.server.shared_probes import SharedProbes

    ends = SharedProbes.end

    def negative(self: SharedProbes) -> None:
        ends(self)
        if self.average is not None:
            self.average = -self.average.abs()

    monkeypatch.setattr(SharedProbes, "end", negative)
    with pytest.raises(MessageError, match=r"ann: round 2: .*running_var"):
        fedrlvr.run(settings(problems, tmp_path / "run", {**CARE, "share_probes": True}))


def test_probes_are_not_shared_past_a_strategy_around_ours(problems: Path, tmp_path: Path) -> None:
    tree = settings(problems, tmp_path / "run", {**CARE, "share_probes": True})
    config = parse_config(tree)
    federation = Federation(config, tmp_path / "run", new_cohort(config), Observer(), wrap=WrappingStrategy)
    with pytest.raises(ConfigError, match="share_probes"):
        federation.go(resume=False)


def test_a_client_without_a_place_for_a_ledger_says_so(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    made = CohortApp.__init__

    def without(self: CohortApp, cohort: Any, sites: Any, *rest: Any) -> None:
        made(self, cohort, {node: replace(site, ledger=None) for node, site in sites.items()}, *rest)

    monkeypatch.setattr(CohortApp, "__init__", without)
    with pytest.raises(MessageError, match=r"ann: supervision\.type = 'care' .*ledger"):
        fedrlvr.run(settings(problems, tmp_path / "run", CARE))
