"""examples/tour.ipynb: its cells run in their order, and it is stored without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tour.ipynb"


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    result: list[dict[str, Any]] = notebook["cells"]
    return result


def test_no_output_is_stored() -> None:
    for cell in cells():
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    assert NOTEBOOK.stat().st_size < 20_000


def test_links_of_the_notebook_exist() -> None:
    for cell in cells():
        for part in "".join(cell["source"]).split("](")[1:]:
            assert (NOTEBOOK.parent / part.partition(")")[0]).is_file()


@pytest.mark.slow
def test_the_cells_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = []
    for cell in cells():
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        if last is not None:
            assert isinstance(last, ast.Expr)
            shown.append(eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names))
    assert "4 clients in 2 rounds" in capsys.readouterr().out
    assert len(names["run"].rounds) == 3
    assert shown[0] == Path("runs/tour")
    assert shown[4] == [0, 0, 0, 3]
    assert (tmp_path / "runs" / "tour" / "reward.svg").stat().st_size > 1000
