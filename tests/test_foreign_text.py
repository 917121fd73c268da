"""No foreign text reaches a terminal, log or page raw: every way out cleans what it writes; there is no other way."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from factories import make_site, make_strategy, make_terms
from fakes import answering, contexts, start_round, train_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

import fedrlvr
from fedrlvr.cli.main import main
from fedrlvr.config import parse_config
from fedrlvr.config.client_names import check_client_names
from fedrlvr.deployment.site import client_app
from fedrlvr.deployment.site.client_app import app
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.deployment.site.worker import SiteLog
from fedrlvr.deployment.superlink.grid import Roster, SuperLinkGrid
from fedrlvr.deployment.terms import TERMS, Terms
from fedrlvr.errors import FedrlvrError, MessageError, printable
from fedrlvr.output import console, echo, echo_lines, logger
from fedrlvr.pages.guard import error_response
from fedrlvr.reporting.report import render
from fedrlvr.simulation.grid import LocalGrid, delivered
from fedrlvr.wire.messages import read_request
from fedrlvr.wire.serialization import pack

FOREIGN = "x\x1b]0;x\x07\u202e\u200b\r\n"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u200b]")
"""What no output may hold; new lines and tabs are the lines' own."""
PACKAGE = Path(fedrlvr.__file__).parent


def clean(*texts: str) -> None:
    for text in texts:
        assert text
        assert not RAW.search(text), repr(text)


# The ways out.


def test_a_line_a_log_and_a_console_show_foreign_text_with_its_escapes(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    echo(FOREIGN)
    echo(FOREIGN, err=True)
    echo_lines(f"first\n{FOREIGN.strip()}")
    out, err = capsys.readouterr()
    assert out == "x\\x1b]0;x\\x07\\u202e\\u200b\\r\\n\nfirst\nx\\x1b]0;x\\x07\\u202e\\u200b\n"
    clean(out, err)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logger("test")
    log.addHandler(handler)
    try:
        log.warning("a name: %s", FOREIGN)
        try:
            raise KeyError(FOREIGN) from ValueError(FOREIGN)
        except KeyError:
            log.exception("%s", FOREIGN)
    finally:
        log.removeHandler(handler)
    clean(stream.getvalue(), *caplog.messages)
    assert caplog.messages[0] == f"a name: {printable(FOREIGN)}"


def test_a_table_of_foreign_text_is_clean() -> None:
    from rich.table import Table
    from rich.text import Text

    stream = io.StringIO()
    table = Table(title=FOREIGN)
    table.add_column(FOREIGN)
    table.add_row(FOREIGN)
    table.add_row(Text(FOREIGN))
    terminal = console(file=stream, width=200)
    terminal.print(table)
    terminal.print(FOREIGN)
    clean(stream.getvalue())
    assert stream.getvalue().count("x\\x1b") == 5


def test_every_error_of_ours_is_one_printable_line() -> None:
    def kinds(error: type[FedrlvrError]) -> list[type[FedrlvrError]]:
        return [error, *(kind for child in error.__subclasses__() for kind in kinds(child))]

    for kind in kinds(FedrlvrError):
        clean(str(kind(FOREIGN)))
        assert str(kind("round 1, ann: Zürich")) == "round 1, ann: Zürich"


def test_a_log_of_the_site_a_refusal_of_the_desk_and_a_report_are_clean(tmp_path: Path) -> None:
    SiteLog(tmp_path / "site.log")(f"run {FOREIGN}: refused")
    clean((tmp_path / "site.log").read_text("utf-8"))
    clean(json.loads(bytes(error_response(400, FOREIGN).body))["error"])
    record: dict[str, Any] = {
        "round": 1,
        "clients": {FOREIGN: {"reward": 0.5, "bytes_up": 1, "bytes_down": 1}},
        "seconds": {FOREIGN: 1.0},
        "left_out": {FOREIGN: FOREIGN},
        "evaluate": {FOREIGN: {FOREIGN: {"n": 1, "total": 1.0, "squares": 1.0}}},
        "exchanges": [{"clients": {FOREIGN: {"sent": 1, f"dropped_{FOREIGN}": 1}}}],
    }
    config = parse_config({"run": {"name": FOREIGN}, "model": {"name": FOREIGN}})
    clean(
        render(
            config, [{"round": 0, "clients": {}, "seconds": {}}, record], {"train": {(FOREIGN, FOREIGN): 1}, "test": {}}
        )
    )


def test_there_is_no_other_way_out() -> None:
    """Nothing prints, logs or makes a console but output.py, where text is cleaned."""
    allowed = {
        "output.py": {"print", "getLogger"},
        "deployment/flower_private.py": {"getLogger"},  # for a filter of Flower's own log
        "cli/superlink.py": {"getLogger"},  # to set a handler for the loggers of output.py
        "reporting/comparison_table.py": {"print"},
        "reporting/contribution_table.py": {"print"},
        "reporting/doctor.py": {"print"},
        "reporting/progress.py": {"print"},
        "reporting/prompt_table.py": {"print"},
        "reporting/sweep_table.py": {"print"},
        "reporting/tables.py": {"print"},  # of a console
        "reporting/trackers.py": {"getLogger"},  # to silence the loggers of a tracker's package
    }
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        calls = {n.func for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)}
        names = {
            f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)
        }
        out = names & {"print", "getLogger", "Console", "print_exc", "secho"}
        texts = {ast.unparse(f) for f in calls}
        assert out <= allowed.get(name, set()) | ({"Console"} if name == "output.py" else set()), name
        assert not texts & {"typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"}, name
        if name != "output.py":
            assert "print" not in {f.id for f in calls if isinstance(f, ast.Name)}, name


# What others send.


@pytest.mark.parametrize("field", [name for name, info in Terms.model_fields.items() if info.annotation in (str,)])
def test_terms_with_a_foreign_string_leave_no_trace_of_it(
    field: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = {**make_terms().model_dump(mode="json"), field: FOREIGN}
    content = RecordDict({TERMS: ConfigRecord({"json": json.dumps(plain)}), FOREIGN: ConfigRecord({FOREIGN: FOREIGN})})
    answering = Answering(make_site(tmp_path), SiteLog(tmp_path / "site.log"))
    header = {"message_type": "train", "message_id": FOREIGN, "group_id": FOREIGN, "run_id": 1, "node_id": 1}
    reply, _ = answering.reply(header, pack(content))
    assert reply["ok"] is False
    clean(reply["reason"], (tmp_path / "site.log").read_text("utf-8"), *caplog.messages)
    out, err = capfd.readouterr()
    assert not RAW.search(out + err)


@pytest.mark.parametrize("key", ["message_type", "group_id", "message_id", "run_id", "node_id"])
def test_a_header_with_a_foreign_string_is_refused_clean(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = {"message_type": "train", "message_id": "m", "group_id": "1", "run_id": 1, "node_id": 1, key: FOREIGN}
    reply, _ = Answering(make_site(tmp_path), SiteLog(tmp_path / "site.log")).reply(header, pack(RecordDict()))
    clean(reply["reason"], (tmp_path / "site.log").read_text("utf-8"), *caplog.messages)


def test_a_client_app_says_and_sends_no_foreign_text_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = {"ok": False, "kind": "refused", "reason": FOREIGN}
    monkeypatch.setattr(client_app, "ask", lambda *_: (reason, b""))
    org = make_site(tmp_path)
    context = Context(5, 9, {"site": str(org.path)}, RecordDict(), {})
    message = delivered(RecordDict(), run_id=5, node_id=9, message_type="train", group_id=FOREIGN, message_id="m")
    reply = app(message, context)
    clean(reply.error.reason, capsys.readouterr().err)


def test_a_node_that_calls_itself_by_foreign_text_is_announced_clean(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    class Connected:
        def get_nodes(self) -> list[Any]:
            return []

    grid = SuperLinkGrid(Connected(), ["ann"], {}, quorum=1.0, say=lambda line: (lines.append(line), echo(line)))  # type: ignore[arg-type, func-returns-value]
    grid.roster = Roster(Connected(), False)  # type: ignore[arg-type]
    grid.roster.online = lambda: [(FOREIGN, 7)]  # type: ignore[method-assign]
    assert grid.connected() == {}
    clean(capsys.readouterr().out)
    with pytest.raises(ValueError, match="client name") as caught:
        check_client_names([FOREIGN, "ann"])
    clean(str(MessageError(caught.value)))


def test_a_reply_with_foreign_names_and_reasons_is_refused_clean(caplog: pytest.LogCaptureFixture) -> None:
    broken = train_reply(1.0)
    broken["arrays"] = ArrayRecord({FOREIGN: Array("float32", (1,), "numpy.ndarray", b"x")})
    broken["metrics"] = MetricRecord({"num-examples": 1, FOREIGN: 2.0})
    strategy = make_strategy(quorum=0.3)
    replies: dict[int, RecordDict | Error] = {1: train_reply(1.0), 2: broken, 3: Error(0, FOREIGN)}
    grid = LocalGrid(answering(lambda message: replies[message.metadata.dst_node_id]), contexts())
    strategy.aggregate_train(1, grid.send_and_receive(start_round(strategy, 1, grid)))
    assert set(strategy.record.left_out) == {"bob", "cyd"}
    clean(*strategy.record.left_out.values(), *caplog.messages)


def test_keys_of_a_request_are_named_clean() -> None:
    request = json.dumps({FOREIGN: 1, "round": FOREIGN, "train": {FOREIGN: FOREIGN}})
    message = Message(RecordDict({"config": ConfigRecord({"request": request})}), 1, "train")
    from fedrlvr.wire.messages import TrainRequest

    with pytest.raises(MessageError) as caught:
        read_request(message, TrainRequest)
    clean(str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        '"x\\u001b]0;x\\u0007\\u202e\\u200b\\r\\n" = 1',
        '[train]\n"x\\u001b]0;x\\u0007\\u202e\\u200b\\r\\n" = 1',
        '[model]\nname = "/no/x\\u001b]0;x\\u0007\\u202e\\u200b\\r\\n"',
        '[federation]\nclients = ["x\\u001b]0;x\\u0007\\u202e\\u200b\\r\\n", "b"]',
        '[data]\npath = "/no/x\\u001b]0;x\\u0007\\u202e\\u200b\\r\\n.jsonl"',
        '[aggregation]\ntype = "x\\u001b]0;x\\u0007\\u202e\\u200b\\r\\n"',
    ],
)
def test_a_configuration_with_foreign_text_is_refused_clean(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"exp{FOREIGN.strip()}.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(SystemExit):
        main(["run", str(path), "--set", f"run.directory={tmp_path / 'run'}"])
    out, err = capsys.readouterr()
    assert "x\\x1b]0;x\\x07\\u202e\\u200b" in err
    assert not RAW.search(out + err)
