"""Several runs beside each other on the page of `fedrlvr watch`: what the server answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from watched import TOKEN, everything, write_run

from fedrlvr.reporting.watch import compared_runs
from fedrlvr.reporting.watch.app import make_watch
from fedrlvr.reporting.watch.compared_runs import compared
from fedrlvr.reporting.watch.hub import Hub


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of one arm, and one run of another that is not finished."""
    made = [write_run(tmp_path / f"a{seed}", everything(), finished=True, run={"seed": seed}) for seed in range(3)]
    return [*made, write_run(tmp_path / "b", everything()[:-2], train={"local_steps": 7})]


def test_runs_that_differ_in_the_seed_are_one_line(runs: list[Path]) -> None:
    result = compared(runs, "rounds")
    assert [row["seeds"] for row in result["rows"]] == ["0, 1, 2", "0"]
    assert [chart["title"] for chart in result["charts"]] == ["Held-out pass@1", "Mean reward in training"]
    chart = result["charts"][0]
    assert chart["x"] == [0.0, 2.0, 4.0]
    assert [line["name"] for line in chart["lines"]] == ["1 a0 and 2 more", "2 b"]
    assert result["command"] == f"fedrlvr compare {' '.join(map(str, runs))} --over rounds"
    assert chart["lines"][1]["values"][-1] is None
    assert [None not in line["values"] for line in chart["lines"]] == [True, False]
    (setting,) = (item for item in result["differing"] if item["name"] == "train.local_steps")
    assert [arms for _, arms in setting["values"]] == ["1", "2"]
    assert any("are compared as far as they go" in note for note in result["notes"])


def test_lines_over_a_cost_have_places_of_their_own(runs: list[Path]) -> None:
    steps = compared(runs, "steps")["charts"][0]
    assert steps["over"] == "steps"
    assert len(steps["x"]) == len({*steps["x"]}) > 3
    for line in steps["lines"]:
        assert 0 < sum(value is not None for value in line["values"]) < len(steps["x"])


def test_the_server_compares_the_runs_that_are_asked_for(runs: list[Path], tmp_path: Path) -> None:
    hub = Hub([tmp_path])
    hub.search()
    hub.look()
    web = TestClient(make_watch(hub, TOKEN), "http://localhost:1", headers={"Authorization": f"Bearer {TOKEN}"})

    def ask(ids: list[str], **more: Any) -> Any:
        return web.get("/api/comparison", params={"run": ids, **more})

    ids = [run.id for run in hub.runs]
    answer = ask(ids).json()
    assert answer["command"].startswith("fedrlvr compare ")
    assert len(answer["rows"]) == 2
    assert ask(ids[:1], over="bytes").json()["over"] == "bytes"
    assert ask([*ids, "0123456789abcdef"]).status_code == 404
    assert ask(ids, over="money").status_code == 422
    assert ask([]).status_code == 422
    assert ask(ids * compared_runs.MOST).status_code == 422
    (runs[0] / "metrics.jsonl").write_text("{broken}\n{broken}\n", "utf-8")
    broken = ask(ids)
    assert broken.status_code == 422
    assert "metrics.jsonl" in broken.json()["error"]
