"""What the command line prints when a run ends."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from run_samples import numbers, run_records, score

from fedrlvr.config import Config, parse_config
from fedrlvr.reporting import units
from fedrlvr.reporting.scores import Estimate
from fedrlvr.reporting.tables import final_table, holdings_table, participation_table, scores_table
from fedrlvr.tasks.partition import Holding


def console(width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width), out


def squeezed(out: io.StringIO) -> str:
    return re.sub(r"\s+", " ", out.getvalue())


def test_final_table(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    screen, out = console()
    final_table(run_records(), Config(), tmp_path, screen)
    text = squeezed(out)
    # Wilson for 2 and 4 of 10: 0.0567 to 0.5098, and 0.1682 to 0.6873.
    assert "alpha sum 10 20.0 % [5.7, 51.0] 40.0 % [16.8, 68.7] +20.0" in text
    assert "all dose 20" in text  # sum is in two hands, so families have lines of their own
    assert re.search(r"all mean 40 40\.0 % .* 55\.0 % .* \+15\.0", text)
    assert "alpha 2.0 kB 4.5 kB" in text
    assert "all 4.0 kB 9.0 kB" in text
    assert "report" in text
    assert "adapter" not in text  # it is not there


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_off(width: int, tmp_path: Path) -> None:
    screen, out = console(width)
    final_table(run_records(), Config(), tmp_path, screen)
    for number in ("20.0 %", "[5.7, 51.0]", "40.0 %", "[16.8, 68.7]", "+20.0"):
        assert number in out.getvalue()


def test_final_table_without_evaluation_or_rounds(tmp_path: Path) -> None:
    for records in (run_records(evaluated=()), []):
        screen, out = console()
        final_table(records, Config(), tmp_path, screen)
        assert "Nothing was evaluated." in out.getvalue()


def test_final_table_of_many_clients_sums_them_up(tmp_path: Path) -> None:
    names = [f"client-{i}" for i in range(1, 31)]
    evaluate = {name: {"dose": score(4, 1), "sum": score(4, 3)} for name in names}
    records = [{"round": 0, "clients": dict.fromkeys(names, numbers()), "seconds": {}, "evaluate": evaluate}]
    screen, out = console()
    final_table(records, Config(), tmp_path, screen)
    assert "client-16 mean 8 50.0 %" in squeezed(out)
    assert "client-17" not in out.getvalue()
    assert "14 more in the report" in squeezed(out)
    assert "all dose 120 25.0 %" in squeezed(out)


def test_scores_table_reads_no_markup() -> None:
    screen, out = console()
    scores = {"[red]x": {"n": 20, "total": 0, "squares": 0}, "y": score(10, 10)}
    scores_table({"ann": scores}, screen)
    assert "[red]x 20 0.0 % [0.0, 16.1]" in squeezed(out)
    assert "all mean 30 50.0 %" in squeezed(out)


def test_holdings_table() -> None:
    screen, out = console()
    config = parse_config({"partition": {"type": "iid"}})
    train, test = [Holding("b", "sum", 1200), Holding("a", "sum", 3)], [Holding("b", "dose", 7)]
    holdings_table(config, train, test, 5, screen)
    text = squeezed(out)
    assert "partition iid" in text
    assert "a sum 3 0" in text
    assert "b dose 0 7" in text
    assert "all 1,203 7" in text
    assert "no client's hands: 5 problems" in text


def test_units() -> None:
    assert units.percent(0.3141) == "31.4 %"
    assert units.percent(None) == units.with_interval(None) == units.points(None) == units.duration(None) == "–"
    assert units.points(Estimate(0.042, -0.0001, 0.094, 9)) == "+4.2 [0.0, +9.4]"
    assert [units.size(n) for n in (0, 999, 1000, 999_949, 1_000_000, 2_500_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "999.9 kB",
        "1.0 MB",
        "2.5 TB",
    ]
    assert [units.duration(s) for s in (0.04, 59.9, 60, 3729)] == ["0.0 s", "59.9 s", "1:00", "1:02:09"]


def test_who_missed_rounds_is_listed_with_the_last_reason() -> None:
    screen, out = console()
    missed = {
        1: {"bob": "too late"},
        2: {"bob": "too late", "cyd": "[red]away[/red]"},
        3: {"bob": "refused"},
        5: {},
        7: {"bob": "gone"},
    }
    records = [
        {"round": 0},
        *({"round": number, "clients": {"ann": {}}, "left_out": of} for number, of in missed.items()),
    ]
    participation_table(records, screen)
    text = squeezed(out)
    assert "of 5 that are done" in text
    assert "bob 1-3, 7 gone" in text
    assert "cyd 2 [red]away[/red]" in text
    assert "ann" not in text


def test_where_nobody_missed_a_round_nothing_is_printed() -> None:
    screen, out = console()
    participation_table([{"round": 1, "clients": {"ann": {}}}], screen)
    assert out.getvalue() == ""
