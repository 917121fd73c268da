"""What is replaced in Flower: that it is still there, and that nothing a server sends is unpacked, imported or run."""

from __future__ import annotations

import asyncio.sslproto
import importlib
import logging
import os
import re
import ssl
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest

from fedrlvr.deployment import flower_private as flowerparts
from fedrlvr.deployment.superlink.access_guard import MachineGuard
from fedrlvr.deployment.superlink.handshakes import handshake_reason, show_failed_handshakes
from fedrlvr.errors import ConfigError, RoundError

RUNTIME = "flwr.supernode.runtime.run_clientapp"

RUN_TASK = """
import hashlib, importlib, sys
from pathlib import Path
from types import SimpleNamespace
import fedrlvr
from flwr.app import ConfigRecord, Context, RecordDict
from fedrlvr.simulation.grid import LocalGrid
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run

runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
content = Path(sys.argv.pop(1)).read_bytes()
site, ours = sys.argv.pop(1), sys.argv.pop(1) == "ours"
fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
run = Run.create_empty(1)
run.fab_id, run.fab_version, run.fab_hash = "evil/app", "1.0.0", fab.hash_str
grid = LocalGrid(lambda messages, contexts: [], {})
message = grid.create_message(RecordDict(), "query.hello", 7, "1")
message.metadata.__dict__["_message_id"] = "m"
context = Context(1, 7, {"site": site}, RecordDict(), {})

runtime.pull_task_input = lambda client: (message, context, run, fab)
runtime.push_task_output = lambda **kwargs: None
runtime.make_task_heartbeat_fn_http = lambda client: lambda: True

def push(client, reply, context):
    print("ERROR " + reply.error.reason if reply.has_error() else "REPLY " + str(reply.content["hello"]["name"]))

runtime.push_message = push
sys.argv[0] = "flwr-clientapp"
if ours:
    from fedrlvr.deployment.flower_private import clientapp
else:
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp as clientapp
clientapp()
"""
"""One message of a ClientApp process, with the SuperNode's part played here."""


def evil_fab(trace: Path) -> bytes:
    """An app bundle as Flower builds them, whose code leaves a trace when it is imported."""
    import hashlib

    project = (
        '[project]\nname = "app"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "evil"\n[tool.flwr.app.components]\n'
        'serverapp = "evil.server:app"\nclientapp = "evil.client:app"\n[tool.flwr.app.config]\n'
    )
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    code += "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
    files = {"pyproject.toml": project, "evil/__init__.py": "", "evil/client.py": code, "evil/server.py": code}
    listed = "\n".join(
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{len(text.encode()) * 8}" for name, text in files.items()
    )
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in {**files, ".info/CONTENT": listed}.items():
            archive.writestr(name, text)
    return packed.getvalue()


def run_task(tmp_path: Path, who: str, *more: str) -> tuple[str, Path]:
    """The reply of a ClientApp process to a message that came with the bundle, and Flower's directory afterwards."""
    (tmp_path / "evil.fab").write_bytes(evil_fab(tmp_path / "trace"))
    (tmp_path / "site.toml").write_text(
        'name = "ann"\nsuperlink = "127.0.0.1:1"\n[tasks.main]\n[models]\nembedded = "embedded"\n'
    )
    home = tmp_path / "home"
    environment = {**flowerparts.environment(home), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [str(tmp_path / "evil.fab"), str(tmp_path / "site.toml"), who, "--insecure", "--token", "t", *more]
    command = [sys.executable, "-P", "-c", RUN_TASK, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr, home


@pytest.mark.slow
def test_nothing_of_a_servers_app_is_unpacked_or_imported(tmp_path: Path) -> None:
    said, home = run_task(tmp_path, "ours")
    assert "REPLY ann" in said, said
    assert not (tmp_path / "trace").exists()
    assert {file.name for file in home.rglob("*")} <= {"source"}  # Flower's own number for a machine; it stays here


@pytest.mark.slow
def test_the_same_app_would_leave_a_trace_with_flowers_own_program(tmp_path: Path) -> None:
    said, home = run_task(tmp_path, "flower's")
    assert (tmp_path / "trace").exists(), said
    assert list(home.rglob("client.py"))


@pytest.mark.slow
def test_packages_that_a_servers_app_asks_for_are_not_installed(tmp_path: Path) -> None:
    said, home = run_task(tmp_path, "ours", "--allow-runtime-dependency-installation")
    assert "ERROR" in said
    assert "asked for packages to be installed" in said
    assert {file.name for file in home.rglob("*")} <= {"source"}  # Flower's own number for a machine; it stays here


def test_every_program_a_server_could_call_for_is_ours_or_refuses(tmp_path: Path) -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    flowerparts.write_programs(tmp_path / "bin")
    flowerparts.write_programs(tmp_path / "bin")  # again, as at the next start
    assert set(TASK_TYPE_TO_COMMAND.values()) <= {file.name for file in (tmp_path / "bin").iterdir()}
    path = flowerparts.environment(tmp_path, programs=tmp_path / "bin")["PATH"]
    for program in (tmp_path / "bin").iterdir():
        assert program.stat().st_mode & 0o777 == 0o700
        result = subprocess.run(["sh", "-c", f"command -v {program.name}"], env={"PATH": path}, capture_output=True)
        assert result.stdout.decode().strip() == str(program)
        if program.name not in (flowerparts.CLIENT_APP, flowerparts.SUPEREXEC):
            done = subprocess.run([program, "--token", "t"], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (1, "")
            assert f"refused: the server called for {program.name}" in done.stderr


@pytest.mark.slow
def test_our_program_takes_no_module_from_the_working_directory(tmp_path: Path) -> None:
    flowerparts.write_programs(tmp_path / "bin")
    for name in ("fedrlvr", "flwr", "httpx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger')")
    program = tmp_path / "bin" / flowerparts.CLIENT_APP
    done = subprocess.run([program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--runtime-api-address" in done.stdout


def test_processes_of_flower_phone_nobody_and_find_our_programs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", raising=False)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("PATH", "/elsewhere")
    environment = flowerparts.environment(Path("/home/flower"), programs=Path("/ours"))
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"] == "/home/flower"
    assert environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] == "0.2"
    assert environment["PATH"].split(os.pathsep) == ["/ours", str(Path(sys.executable).parent), "/elsewhere"]
    monkeypatch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "3")
    assert flowerparts.environment(Path("/x"))["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] == "3"


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules that are changed, to be put back afterwards."""
    names = ("superlink.extensions", "superlink.main", "superlink.cli.flower_superlink")
    modules = {name.rpartition(".")[2]: importlib.import_module(f"flwr.{name}") for name in names}
    modules["run_clientapp"] = importlib.import_module(RUNTIME)
    for module, name in (("extensions", "get_middleware"), ("main", "_get_middleware")):
        monkeypatch.setattr(modules[module], name, getattr(modules[module], name))
    for name in ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn"):
        monkeypatch.setattr(modules["run_clientapp"], name, getattr(modules["run_clientapp"], name))
    monkeypatch.setattr(uvicorn, "run", uvicorn.run)
    handshake = asyncio.sslproto.SSLProtocol._on_handshake_complete  # type: ignore[attr-defined]
    monkeypatch.setattr(asyncio.sslproto.SSLProtocol, "_on_handshake_complete", handshake)
    return modules


def test_the_guard_stands_before_all_of_flowers_own(unpatched: dict[str, ModuleType]) -> None:
    flowerparts.install_guard()
    assert unpatched["main"]._get_middleware()[0].cls is MachineGuard
    app = unpatched["main"].create_app()
    assert app.user_middleware[0].cls is MachineGuard
    # A header must not make a stranger look like this machine.
    assert unpatched["flower_superlink"].uvicorn.run.keywords == {"proxy_headers": False, "loop": "asyncio"}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("extensions", "get_middleware"),
        ("main", "_get_middleware"),
        ("main", "extensions"),
        ("flower_superlink", "uvicorn"),
    ],
)
def test_without_its_place_for_the_guard_a_superlink_does_not_start(
    unpatched: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.delattr(unpatched[module], name)
    with pytest.raises(ConfigError, match=rf"flwr [0-9.]+ .*flwr\S*\.{name} "):
        flowerparts.install_guard()


def test_a_guard_that_would_not_be_asked_is_an_error(
    unpatched: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpatched["main"], "_get_middleware", list)
    with pytest.raises(ConfigError, match="get_middleware is gone"):
        flowerparts.install_guard()


@pytest.mark.parametrize("name", ["install_from_fab", "install_app_dependencies", "get_load_client_app_fn"])
def test_a_client_app_program_of_another_flower_does_not_start(
    unpatched: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(unpatched["run_clientapp"], name)
    with pytest.raises(ConfigError, match=re.escape(f"{RUNTIME}.{name} is gone")):
        flowerparts.clientapp()


def test_a_flower_without_the_client_app_program_is_an_error(
    unpatched: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowerparts, "CLIENT_APP", "flwr-other")
    with pytest.raises(ConfigError, match="flwr-other is gone"):
        flowerparts.task_programs()


def test_a_python_that_hides_failed_tls_connections_is_worth_a_warning(
    unpatched: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(asyncio.sslproto.SSLProtocol, "_on_handshake_complete")
    show_failed_handshakes()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", "another authority than ours"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "expired, or not for the name"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "expired, or not for the name"),
        ("HTTP_REQUEST", "does not speak TLS"),
        ("WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("NO_SHARED_CIPHER", "no shared cipher"),
    ],
)
def test_the_reason_of_a_failed_tls_connection_is_told_in_words(reason: str, words: str) -> None:
    failure = ssl.SSLError(1, f"[SSL: {reason}] x (_ssl.c:1)")
    failure.reason = reason
    assert words in handshake_reason(failure)


@pytest.mark.parametrize(
    ("status", "body", "known"),
    [(400, {"code": 2003, "detail": "x"}, True), (412, {"code": 2004, "detail": "x"}, False), (200, b"", True)],
)
def test_a_key_is_known_by_how_a_superlink_refuses_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, status: int, body: Any, known: bool
) -> None:
    asked = answering(monkeypatch, lambda request: httpx.Response(status, **_body(body)))
    assert flowerparts.is_registered("127.0.0.1:1", None, ec.generate_private_key(ec.SECP384R1())) is known
    [request] = asked
    assert request.url.path == "/v1/fleet/activate-node"
    # Beyond what Flower takes, so that nobody is activated.
    assert ActivateNodeRequest.FromString(request.content).heartbeat_interval < HEARTBEAT_MIN_INTERVAL


def gone(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Connection refused")


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda request: httpx.Response(401, json={"detail": "Invalid SuperNode authentication"}), "set the clocks"),
        (lambda request: httpx.Response(404, text="<html>"), "answers 404: is it a SuperLink"),
        (lambda request: httpx.Response(412, json={"code": 9, "detail": "x"}), "answers 412"),
        (gone, "does not answer: Connection refused"),
    ],
)
def test_an_answer_that_says_nothing_of_the_key_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answer: Any, match: str
) -> None:
    answering(monkeypatch, answer)
    with pytest.raises(ConfigError, match=match):
        flowerparts.is_registered("127.0.0.1:1", None, ec.generate_private_key(ec.SECP384R1()))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[httpx.Request]:
    """Have every request answered so; takes the requests."""
    asked: list[httpx.Request] = []

    def handle(transport: Any, request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    return asked


def _body(body: Any) -> dict[str, Any]:
    return {"content": body} if isinstance(body, bytes) else {"json": body}


def test_the_module_itself_loads_nothing_of_flower() -> None:
    code = "import sys, fedrlvr.deployment.flower_private; print([n for n in sys.modules if n.split('.')[0] == 'flwr'])"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_an_error_of_ours_is_one_sentence_in_flowers_log_and_others_keep_their_traceback() -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    log, handler = logging.getLogger("flwr"), Lines()
    before = list(log.filters)
    log.addHandler(handler)
    try:
        flowerparts.say_in_a_sentence()
        for error in (RoundError("round 2: federation.quorum = 1 asks for 2 of 2 clients"), KeyError("a bug")):
            try:
                raise error
            except Exception as caught:
                log.error("%s raised an exception", "ServerApp", exc_info=caught)
    finally:
        log.removeHandler(handler)
        log.filters[:] = before
    assert lines[0] == "error: round 2: federation.quorum = 1 asks for 2 of 2 clients"
    assert "Traceback" in lines[1]
    assert "a bug" in lines[1]
