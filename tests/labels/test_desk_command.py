"""The command `fedrlvr desk`: whose ledger, tables out and in, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from desks import TOKEN, ask, desk, ledger_of, run_directory

from fedrlvr.cli.desk import find_ledger
from fedrlvr.config import load_resolved
from fedrlvr.errors import ConfigError
from fedrlvr.hosts import is_loopback
from fedrlvr.labels.ledger import LabelLedger


def test_the_ledger_is_the_one_the_run_writes(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", run={"directory": str(tmp_path / "run")})
    settings = load_resolved(run / "config.json")
    assert find_ledger(run, None, None, read_only=False) == (settings.ledger_file(run, "clinic"), "clinic")
    shelf = run_directory(
        tmp_path / "two", run={"ledgers": str(tmp_path / "shelf")}, federation={"clients": ["a", "b"]}
    )
    settings = load_resolved(shelf / "config.json")
    assert find_ledger(shelf, "b", None, read_only=False) == (settings.ledger_file(shelf, "b"), "b")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert find_ledger(moved, None, None, read_only=False)[0] == moved / "clients" / "clinic" / "ledger.sqlite"


def test_the_central_arm_has_one_ledger(tmp_path: Path) -> None:
    from fedrlvr.tasks.deal import CENTRAL

    run = run_directory(tmp_path / "run", federation={"clients": ["a", "b"], "arm": "central"})
    assert find_ledger(run, None, None, read_only=False)[1] == CENTRAL


@pytest.mark.parametrize(
    ("changes", "client", "read_only", "words"),
    [
        ({"federation": {"clients": ["a", "b"]}}, None, False, "--client a, b"),
        ({}, "other", False, "no such client"),
        ({"supervision": {"type": "labels"}}, None, False, "'labels'"),
        ({"supervision": {"type": "care"}}, None, False, "labels_from"),
        ({"supervision": {"type": "care"}}, None, True, "has asked for no label yet"),
    ],
)
def test_a_ledger_that_cannot_be_meant_is_an_error(
    tmp_path: Path, changes: dict[str, object], client: str | None, read_only: bool, words: str
) -> None:
    run = run_directory(tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=re.escape(words)):
        find_ledger(run, client, None, read_only=read_only)
    assert list(run.iterdir()) == [run / "config.json"]


def test_a_ledger_may_be_named_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_ledger(None, None, tmp_path / "clinic.sqlite", read_only=False)
    LabelLedger(tmp_path / "clinic.sqlite").close()
    assert find_ledger(None, None, tmp_path / "clinic.sqlite", read_only=False)[1] == "clinic"
    with pytest.raises(ConfigError, match="RUN_DIRECTORY"):
        find_ledger(None, None, None, read_only=False)


def command(*arguments: object) -> tuple[int, str, str]:
    """Exit code and streams of `fedrlvr desk ARGUMENTS` in this process."""
    import io

    from fedrlvr.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(["desk", *map(str, arguments)])
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def test_the_command_writes_and_reads_tables(tmp_path: Path) -> None:
    run, table = run_directory(tmp_path / "run"), tmp_path / "labels.csv"
    for rank in (1, 2):
        ask(ledger_of(run), f"p{rank}", rank=rank)
    assert command(run, "--export", table)[:2] == (0, f"wrote 2 problems to {table}\n")
    assert "exists already" in command(run, "--export", table)[2]
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    table.write_bytes(table.read_bytes().replace(b",,,\r\n", b",42,,\r\n", 1))
    assert command(run, "--import", table, "--expert", "Dr. Ruiz")[:2] == (0, "stored 1 new answers of Dr. Ruiz\n")
    assert [entry.state for entry in ledger_of(run).entries()] == ["labelled", "open"]
    table.write_text("problem,answer\np1,1\n")
    code, _, error = command(run, "--import", table, "--expert", "Dr. Ruiz")
    assert code == 1
    assert "line 2" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--import", "x.csv"], "--expert"),
        (["--expert", "ann"], "--import"),
        (["--import", "x.csv", "--expert", "ann"], "x.csv cannot be read"),
        (["--export", "x.csv", "--import", "x.csv", "--expert", "ann"], "one of them"),
        (["--token", "short"], "16"),
        (["--token", "sixteen and a blank"], "16"),
        (["--certificate", "c.pem"], "--key"),
        (["--certificate", "c.pem", "--key", "k.pem"], "c.pem"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_options_that_cannot_be_are_one_paragraph(tmp_path: Path, options: list[str], words: str) -> None:
    run = run_directory(tmp_path / "run")
    ask(ledger_of(run), "p1")
    code, _, error = command(run, *options)
    assert code == 1
    assert words in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_help_and_mistakes_are_answered_without_loading_the_server(tmp_path: Path) -> None:
    run_directory(tmp_path / "run", federation={"clients": 2})
    program = (
        f"import sys\nfrom fedrlvr.cli.main import main\nsys.argv = ['fedrlvr', 'desk', {str(tmp_path / 'run')!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'fastapi', 'uvicorn', 'torch', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "--client client-1, client-2" in done.stderr


@pytest.mark.parametrize(
    ("hosts", "alone"),
    [(("127.0.0.1", "127.3.2.1", "::1", "localhost"), True), (("0.0.0.0", "::", "10.1.2.3", "desk.example"), False)],
)
def test_which_addresses_only_this_machine_reaches(hosts: tuple[str, ...], alone: bool) -> None:
    assert {is_loopback(host) for host in hosts} == {alone}


@pytest.mark.slow
def test_the_served_desk_is_quiet_about_what_passes_it_and_warns_where_others_can_listen(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    ask(ledger_of(run), "p1", "a private problem")
    with desk(run, "--host", "0.0.0.0", "--name", "desk.example") as served:
        assert served.url == f"http://desk.example:{served.port}/#token={TOKEN}"
        base = f"http://127.0.0.1:{served.port}"
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (
            httpx.get(f"{base}/api/next?expert=Ruiz", headers=bearer).json()["problem"]["prompt"] == "a private problem"
        )
        word = {"problem": "p1", "expert": "Ruiz", "verdict": "correct", "answer": "4711"}
        assert httpx.post(f"{base}/api/answer", headers=bearer, json=word).json() == {"done": 1}
        assert httpx.get(f"{base}/api/progress").status_code == 401
        assert httpx.get(f"{base}/", headers={"Host": "evil.example"}).status_code == 421
        assert httpx.get(f"{base}/api/progress", headers={**bearer, "Host": "desk.example"}).status_code == 200
        with contextlib.suppress(httpx.TransportError):  # it may hang up before all of it is sent
            assert httpx.post(f"{base}/api/answer", headers=bearer, content=b" " * 2**20).status_code == 413
        code, _, error = command(run, "--port", served.port)
        assert (code, str(served.port) in error) == (1, True)
        said = served.interrupt()
    assert served.process.returncode == 0
    assert "every answer is stored" in said
    log = served.log.read_text("utf-8")
    assert "unencrypted" in log
    assert not re.search(f"private|4711|Ruiz|{TOKEN}|Traceback", log + said)
    assert json.dumps([entry.label for entry in ledger_of(run).entries()]) == '["4711"]'
