"""Responses that a simulation writes down: they change nothing, and show no label that was not paid for."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import CLIENTS, Configs, Runs, adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.reporting.responses import LoggedResponse, read_logged, response_files


def logged(directory: Path) -> list[LoggedResponse]:
    return [response for path in response_files(directory).values() for response in read_logged(path)]


def test_they_are_of_each_round_s_first_step_and_change_nothing(
    finished: Runs, configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path / "run", run={"responses": 0}, train={"rounds": 5}))
    with_them = finished("all")
    assert response_files(tmp_path / "run") == {}
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(with_them)
    assert without_seconds(tmp_path / "run") == without_seconds(with_them)
    files = response_files(with_them)
    assert list(files) == list(CLIENTS)
    for client, path in files.items():
        responses = read_logged(path)
        assert [response.round for response in responses] == [n for n in (1, 2, 3, 4, 5) for _ in range(4)]
        first = responses[:4]  # of two problems, the first response to each and then the second
        assert first[0].problem == first[2].problem != first[1].problem == first[3].problem
        for response in responses:
            assert response.prompt == f"train {response.problem.rpartition('-')[2]} of {client}?"
            assert response.reward == response.grade == float(sum(map(ord, response.text)) % 2 == 0)  # parity
            assert response.gold == response.problem.rpartition("-")[2]
            assert 0 < response.tokens <= 8
            assert response.mean_logp is not None
            assert response.mean_logp < 0


def test_the_text_of_a_response_that_is_not_graded_is_shown(configured: Configs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path / "run", train={"rounds": 1, "unfinished": "zero"}))
    cut = [response for response in logged(tmp_path / "run") if not response.finished]
    assert cut
    assert all(response.text and response.reward == 0 for response in cut)


@pytest.mark.parametrize("kind", ["majority", "random", "audited"])
def test_a_gold_answer_is_shown_where_its_label_was_paid_for_or_is_audited(
    kind: str, configured: Configs, tmp_path: Path
) -> None:
    sections = {
        "majority": {"type": "majority"},
        "random": {"type": "random", "budget": 0.5},
        "audited": {"type": "majority", "audit": True},
    }
    directory = tmp_path / "run"
    fedrlvr.run(configured(directory, supervision=sections[kind]))
    responses = logged(directory)
    assert len(responses) == 2 * 3 * 4
    for response in responses:
        assert (response.gold is None) == (response.grade is None)
        assert response.gold in (None, response.problem.rpartition("-")[2])
    shown = {response.problem for response in responses if response.gold is not None}
    if kind == "random":
        paid = set()
        for client in CLIENTS:
            ledger = LabelLedger(directory / "clients" / client / "ledger.sqlite")
            paid |= {entry.problem for entry in ledger.entries()}
            ledger.close()
        assert shown
        assert shown <= paid
        assert len(shown) < len({response.problem for response in responses})
    else:
        assert bool(shown) == (kind == "audited")
