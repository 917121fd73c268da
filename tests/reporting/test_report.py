"""The page: self-contained, escaped, the same bytes for the same run, and whole whatever is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_samples import numbers, run_records, score

from fedrlvr.config import Config, parse_config
from fedrlvr.errors import CheckpointError
from fedrlvr.reporting.figures import COLOURS, Curve, draw_curves
from fedrlvr.reporting.report import _read_holdings, render, write_report
from fedrlvr.reporting.scores import dropped_responses

VOID = {"meta", "br", "hr", "img", "input", "link"}
HELD = {"train": {("alpha", "sum"): 70, ("beta", "dose"): 30}, "test": {("alpha", "sum"): 7}}
FILE = {"train": [["alpha", "sum", 70], ["beta", "dose", 30]], "test": [["alpha", "sum", 7]]}


class Page(HTMLParser):
    """Checks that tags close in order; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "dt", "dd"):
            self.words += " "

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


def page(records: list[dict], config: Config | None = None, holdings: dict | None = None) -> Page:
    return Page(render(config or parse_config({"train": {"rounds": 2}}), records, holdings))


def test_headline_and_table_of_a_run() -> None:
    words = re.sub(r"\s+", " ", page(run_records(), holdings=HELD).words)
    # sum: 6 of 20, then 10 of 20; dose: 10 of 20, then 12 of 20; means 40 % and 55 %.
    assert "40.0 % → 55.0 %" in words
    assert "Pass@1 on 40 held-out problems, the mean over 2 families, went from 40.0 % to 55.0 %: +15.0 points" in words
    assert "the interval includes no change" in words
    assert "alpha sum 10 20.0 %" in words
    assert "Tokens sampled 400" in words
    assert "70 / 7" in words
    assert "4.0 kB" in words  # 2 x 2,010 bytes up
    assert "rounds 2" in words  # of the configuration


def test_a_clear_rise_is_called_one() -> None:
    records = [
        {"round": r, "clients": {}, "seconds": {}, "evaluate": {"a": {"x": score(400, right)}}}
        for r, right in ((0, 100), (1, 200))
    ]
    words = re.sub(r"\s+", " ", page(records).words)
    assert "rose from 25.0 % to 50.0 %: +25.0 points, 95 % interval +18.4 to +31.3." in words


def test_nothing_comes_from_elsewhere_and_no_script_runs() -> None:
    result = page(run_records(rounds=3, evaluated=(0, 1, 3)), holdings=HELD)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(result.tags)
    for name, value in result.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href", "src"):
            assert str(value).startswith("#")
    text = render(Config(), run_records())
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_colours_belong_to_the_page() -> None:
    result = page(run_records(rounds=3, evaluated=(0, 1, 3)))
    assert result.ids
    assert len(result.ids) == len(set(result.ids))
    style = " ".join(str(value) for name, value in result.attributes if name in ("style", "fill", "stroke"))
    assert "var(--line-1)" in style
    assert not re.findall(r"(?:fill|stroke): #", style)  # each colour is the style sheet's, for light and dark


def test_the_same_run_gives_the_same_page() -> None:
    records = run_records(rounds=3, evaluated=(0, 1, 3))
    assert render(Config(), records, HELD) == render(Config(), json.loads(json.dumps(records)), HELD)


def test_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>$x_{$"
    records = run_records(rounds=3, evaluated=(0, 1, 3))
    for record in records:
        for sources in record.get("evaluate", {}).values():
            sources[evil] = score(4, 1)
    result = page(records, parse_config({"run": {"name": evil}}), {"train": {("alpha", evil): 1}, "test": {}})
    assert "script" not in result.tags
    assert result.words.count(evil) >= 4  # the heading, the table, the legend, the holdings


def test_who_was_left_out_is_said_with_the_reason_and_escaped() -> None:
    records = run_records()
    assert "Left out" not in page(records).words
    records[2]["left_out"] = {"beta": "round 2, beta: <blink>no</blink> adapter"}
    result = page(records)
    assert re.search(r"2 *beta *round 2, beta: <blink>no</blink> adapter", " ".join(result.words.split()))
    assert "blink" not in result.tags


def test_public_responses_that_were_dropped_are_counted_by_client_and_reason() -> None:
    records = run_records()
    for record in records[1:]:
        exchanged = {"alpha": {"sent": 8, "dropped_tail": 2, "dropped_hidden": 1}, "beta": {"sent": 8}}
        record["exchanges"] = [{"exchange": 1, "clients": exchanged}] * 2
    assert dropped_responses(records) == [("alpha", 32, {"hidden": 4, "tail": 8})]
    assert "hidden 4, tail 8" in page(records).words


def test_personal_adapters_have_a_table_of_their_own_and_who_was_left_out_of_them_is_said() -> None:
    records = run_records()
    part = {"clients": {}, "seconds": {}, "evaluate": records[-1]["evaluate"], "left_out": {"client-1": "no disk"}}
    config = parse_config({"personal": {"type": "finish", "steps": 7}})
    page = render(config, [*records[:-1], {**records[-1], "personal": part}])
    assert "<h2>Personal adapters</h2>" in page
    assert "7 local steps" in page
    assert "no disk" in page
    assert "personal finish" in page
    assert "<h2>Personal adapters</h2>" not in render(config, records)


def test_client_weights_are_drawn_where_they_change() -> None:
    records = run_records()
    for alpha, record in ((0.5, records[1]), (0.5, records[2])):
        record["clients"]["alpha"]["weight"], record["clients"]["beta"]["weight"] = alpha, 1 - alpha
    assert "Weight of each client's adapter" not in page(records).words
    records[2]["clients"]["alpha"]["weight"] = 0.7
    assert "Weight of each client's adapter" in page(records).words


def test_the_servers_step_is_drawn_where_there_is_one() -> None:
    records = run_records()
    assert "The server's step" not in page(records).words
    records[1]["server_step"] = {"learning_rate": 1.8, "mean_cosine": 0.1, "norms": {"alpha": 1.0, "beta": 2.0}}
    records[2]["server_step"] = {"learning_rate": 1.0, "norms": {"alpha": 1.0}}  # one client was left
    assert "The server's step" in page(records).words
    how = {"server_learning_rate": "auto", "server_optimizer": "nesterov"}
    method = page(records, parse_config({"aggregation": how})).words
    assert "aggregation fedit (server step auto, server optimizer nesterov)" in method


def test_the_method_names_what_differs_in_the_aggregation() -> None:
    plain = parse_config({"aggregation": {"type": "ffa"}})
    assert "aggregation ffa" in page(run_records(), plain).words
    assert "aggregation ffa (" not in page(run_records(), plain).words
    how = {"type": "ffa", "weights": "equal", "robust": "clip", "precision": "int8"}
    assert (
        "aggregation ffa (weights equal, robust clip, sent in int8)"
        in page(run_records(), parse_config({"aggregation": how})).words
    )


@pytest.mark.parametrize(
    "records",
    [
        [],
        run_records(rounds=0, evaluated=(0,)),
        run_records(rounds=1, evaluated=(0, 1)),
        run_records(evaluated=()),
        [{"round": 1, "clients": {"a": numbers(None) | {"ratio_mean": None, "ratio_max": None}}, "seconds": {}}],
        [{"round": 1, "clients": {"a": dict.fromkeys(numbers())}, "seconds": {"train": 0.0}}],
        [{"round": r, "clients": {"a": dict.fromkeys(numbers(), 0)}, "seconds": {}} for r in (1, 2)],
    ],
    ids=["no round", "round 0", "one round", "no evaluation", "some nulls", "all null", "all zero"],
)
def test_whatever_is_missing_the_page_is_whole(records: list[dict]) -> None:
    assert "Configuration" in page(records).words


def test_many_clients_are_drawn_as_a_bundle_and_folded() -> None:
    names = [f"client-{i}" for i in range(1, 61)]
    records = [
        {
            "round": r,
            "clients": {name: numbers(i / 60) for i, name in enumerate(names)},
            "seconds": {},
            "evaluate": {name: {"sum": score(4, r), "dose": score(4, 2)} for name in names},
        }
        for r in (0, 1, 2)
    ]
    result = page(records)
    assert result.tags.count("details") == 2
    assert "each of 60 clients" in result.words
    style = " ".join(str(value) for name, value in result.attributes if name == "style")
    assert "var(--accent)" in style


def test_a_line_for_each_client_and_one_round_has_a_mark() -> None:
    svg = draw_curves(Curve("reward", "Reward"), {"a": [(1, 0.5)], "b": [(1, 0.7)]})
    ElementTree.fromstring(svg)  # well-formed by itself
    assert 'aria-label="Reward"' in svg
    for line in ("var(--line-1)", "var(--line-2)"):
        assert line in svg
    assert "var(--line-3)" not in svg
    bundle = draw_curves(Curve("reward", "Reward"), {str(i): [(1, 0.5), (2, 0.7)] for i in range(COLOURS + 1)})
    assert "var(--line-1)" not in bundle


def test_settings_that_differ_from_the_default_are_marked() -> None:
    text = render(parse_config({"train": {"rounds": 7}, "partition": {"type": "dirichlet", "alpha": 0.3}}), [])
    marked = re.findall(r'<div class="set"><dt>(\w+)</dt><dd>([^<]*)</dd>', text)
    assert marked == [("type", "dirichlet"), ("alpha", "0.3"), ("rounds", "7")]


def test_write_report_takes_the_holdings_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "holdings.json").write_text(json.dumps(FILE), "utf-8")
    path = write_report(tmp_path, Config(), run_records())
    assert path == tmp_path / "report.html"
    assert "Problems by client" in path.read_text("utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holdings.json", "report.html"]


def test_write_report_errors_leave_the_old_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()  # what no file can replace
    with pytest.raises(CheckpointError, match=r"report\.html cannot be written"):
        write_report(tmp_path, Config(), [])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_server_that_knows_of_no_ones_problems_has_a_report_without_who_holds_what(tmp_path: Path) -> None:
    (tmp_path / "holdings.json").write_text('{"digest": "x", "public": 8}', "utf-8")
    assert _read_holdings(tmp_path / "holdings.json") is None


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"train": [["a", 3]], "test": []}'])
def test_damaged_holdings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "holdings.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"holdings\.json"):
        write_report(tmp_path, Config(), [])


def test_command_versions_and_machine_of_the_start_are_shown() -> None:
    about = {
        "command": "fedrlvr run 'a b.toml' <x>",
        "machine": "2 cores",
        "versions": {"fedrlvr": "0.9.1", "torch": "2.0"},
        "continued": [{"round": 3, "versions": {"fedrlvr": "0.9.2"}}],
    }
    text = render(parse_config({"run": {"seed": 7}}), run_records(), about=about)
    words = Page(text).words
    for part in (
        "fedrlvr run 'a b.toml' <x>",
        "fedrlvr 0.9.1, torch 2.0; 2 cores",
        "round 3",
        "fedrlvr 0.9.2",
        "Seed 7",
    ):
        assert part in words
    assert "How it was made" not in render(Config(), run_records())


def test_long_tables_and_values_are_cut_short_with_a_note() -> None:
    records = run_records(1, evaluated=(0, 1))
    names = [f"client-{number:03}" for number in range(250)]
    for record in records:
        record["evaluate"] = {name: {"sum": score(4, 2)} for name in names}
        record["clients"] = {name: {"bytes_up": 1, "bytes_down": 1, "reward": 0.5} for name in names}
    records[1]["left_out"] = dict.fromkeys(names, "late")
    config = parse_config({"prompt": {"instruction": "x" * 5000}, "run": {"responses": 0}})
    words = re.sub(
        r"\s+", " ", page(records, config, {"train": {}, "test": {(name, "sum"): 4 for name in names}}).words
    )
    for part in ("200 of 250 lines", "200 of 250 times", "200 of 250 clients; metrics.jsonl", "clients; holdings.json"):
        assert part in words
    assert "client-000 (1)" in words
    assert "and others" in words
    assert "3,000 more characters in config.json" in words
    assert "client-249" not in words


@pytest.mark.slow
def test_a_thousand_rounds_of_a_hundred_clients_are_less_than_two_megabytes() -> None:
    names = [f"client-{number}" for number in range(100)]
    more = {"labels_asked": 1, "labels_used": 1, "labels_total": 5, "share_query": 0.2, "share_masked": 0.8}
    more |= {"public_pass@1": 0.5, "swapped_in": 2, "rescued": 1, "unreadable": 0.1, "unfinished": 0.2}
    records = []
    for round_ in range(1001):
        wave = [((round_ * (number + 3)) % 97) / 97 for number in range(100)]
        records.append(
            {
                "round": round_,
                "clients": {
                    name: numbers(part, weight=part, kl_to_base=part, majority_right=part, **more)
                    for name, part in zip(names, wave, strict=True)
                },
                "seconds": {"train": 1.0},
                "evaluate": {
                    name: {s: score(10, round(10 * part)) for s in "abc"}
                    for name, part in zip(names, wave, strict=True)
                },
                "left_out": {name: "late" for name, part in zip(names, wave, strict=True) if part > 0.7},
            }
        )
    held = {part: {(name, s): 10 for name in names for s in "abc"} for part in ("train", "test")}
    text = render(parse_config({"train": {"rounds": 1000}, "supervision": {"type": "care"}}), records, held)
    assert len(text.encode()) < 2_000_000
    assert "mean of several consecutive rounds" in text
    Page(text)
