"""Flower's private paths, those that a deployment needs: all of them are here (and, in one process, in grid.py).

What is replaced is looked for first, so a release of Flower that moved it is an error before anything starts, never a
guard that silently is not there. flwr is imported inside the functions: its settings must be in the environment before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

from fedrlvr.errors import ConfigError, FedrlvrError
from fedrlvr.output import logger

_log = logger("superlink")

CLIENT_APP, SUPEREXEC = "flwr-clientapp", "flower-superexec"
LINK_ENDED = 3
"""Exit code of a SuperNode whose link has ended though nobody told it to end."""
IN_USE = "in use"
"""Reason of an end: the SuperLink knows the key, and takes another SuperNode with it for connected."""
SOON_S, LATE_S = 0.2, 3.0
"""Shortest and longest pause before a SuperNode asks for messages again; Flower's is always 3 s."""
TOO_OFTEN = 0.0
"""A heartbeat interval that no SuperLink takes."""


def environment(home: Path, *, programs: Path | None = None) -> dict[str, str]:
    """Environment variables of Flower's processes: no telemetry, files in `home`, our programs first on PATH.

    programs: a directory that goes before everything on PATH.
    """
    variables = dict(os.environ)
    variables |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
    # Seconds a message waits at each end; Flower's is 1.
    variables.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
    first = [str(programs)] if programs else []
    variables["PATH"] = os.pathsep.join([*first, str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    return variables


def superexec() -> None:
    """Run `flower-superexec`, with client apps forked from a process that has imported everything."""
    command = importlib.import_module("flwr.supercore.cli.flower_superexec")
    runs = importlib.import_module("flwr.supercore.superexec.run_superexec")
    try:
        executor = _forking_executor(_present(runs, "get_executor"))
        _replace(runs, "get_executor", lambda *args, **options: executor)
    except ConfigError as error:
        _log.warning("%s Client apps are started as Flower starts them, which takes longer.", error)
    command.flower_superexec()


def _forking_executor(get_executor: Callable[..., Any]) -> Any:
    """An executor of Flower's kind (flwr.supercore.superexec.executor.Executor) that forks client apps, and leaves what
    else a server may call for to Flower's own, whose programs here refuse.

    Raises:
        ConfigError: this Flower has other parts.
    """
    constant = importlib.import_module("flwr.supercore.constant")
    types = importlib.import_module("flwr.supercore.superexec.executor.types")
    client_app = _present(constant, "TaskType").CLIENT_APP
    fields = _present(types, "ExecutionSpec").__dataclass_fields__
    for name in ("task_type", "runtime_api_address", "token", "insecure", "root_certificates_path", "parent_pid"):
        if name not in fields:
            raise _moved(f"flwr.supercore.superexec.executor.types.ExecutionSpec.{name}")
    plain = get_executor(_present(constant, "ExecutorType").SUBPROCESS)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["fedrlvr.deployment.site.client_app", "flwr.supernode.cli.flwr_clientapp"])

    class ForkingExecutor:
        def __init__(self) -> None:
            self._began = time.monotonic()
            forkserver.ensure_running()  # and so imports while nothing is asked yet

        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

        def launch(self, spec: Any) -> Any:
            self._began = time.monotonic()
            if spec.task_type != client_app or spec.runtime_dependency_install:
                return plain.launch(spec)
            arguments = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
            arguments += ["--parent-pid", str(spec.parent_pid)] if spec.parent_pid is not None else []
            if spec.insecure:
                arguments.append("--insecure")
            elif spec.root_certificates_path is not None:
                arguments += ["--root-certificates", spec.root_certificates_path]
            try:
                forks.Process(target=_forked_clientapp, args=(arguments,), daemon=True).start()
            except (OSError, EOFError) as error:
                _log.warning("no client app can be forked (%s); it is started as Flower starts it", error)
                return plain.launch(spec)
            return types.LaunchResult.accepted()

        def reconcile(self) -> None:
            """Called before each look for messages: look less often the longer nothing was asked."""
            plain.reconcile()
            time.sleep(min((time.monotonic() - self._began) / 20, LATE_S / 3))

    return ForkingExecutor()


def _forked_clientapp(arguments: list[str]) -> None:
    sys.argv = [CLIENT_APP, *arguments]
    clientapp()


def clientapp() -> None:
    """Run `flwr-clientapp` with our ClientApp. Code that the server sent is neither unpacked nor imported."""
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")

    def load(fab_id: str, fab_version: str, fab_hash: str) -> Any:
        from fedrlvr.deployment.site.client_app import app

        return app

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError("A server's app asked for packages to be installed; that is not done here.")

    _replace(runtime, "install_from_fab", lambda *args, **kwargs: None)
    _replace(runtime, "install_app_dependencies", refuse)
    _replace(runtime, "get_load_client_app_fn", lambda *args, **kwargs: load)
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    flwr_clientapp()


def run_supernode(arguments: list[str], report: Callable[..., None]) -> None:
    """`flower-supernode ARGUMENTS` in this process, which reports on its link, asks often while work is under way, and
    ends with LINK_ENDED when the link ends. (Flower's process lives on then, without a link.)

    report: takes "connected" (with `node`), "answer" (the SuperLink answers), "trouble" (with `reason`: it does not, or
    not as it should) and "ended" (with `reason`). With a Flower of other parts the SuperNode runs as that one does.
    """
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    try:
        _watch_link(command, report)
    except ConfigError as error:
        _log.warning("%s The SuperNode runs without what fedrlvr adds.", error)
    sys.argv = ["flower-supernode", *arguments]
    command.flower_supernode()


def _watch_link(command: Any, report: Callable[..., None]) -> None:
    """
    Raises:
        ConfigError: this Flower has other parts; nothing is replaced then.
    """
    import httpx

    loop = importlib.import_module("flwr.supernode.start_client_internal")
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    start, connect = _present(command, "start_client_internal"), _present(loop, "_init_connection")
    sender = _present(connection, "HeartbeatSender")
    if _present(loop, "time") is not time:
        raise _moved("flwr.supernode.start_client_internal.time")
    reasons: list[str] = []
    troubled: set[str] = set()

    def answered(call: str) -> None:
        troubled.discard(call)
        if not troubled:  # a SuperLink whose disk is full has no messages, and takes no heartbeats
            report("answer")

    def trouble(call: str, reason: str) -> None:
        troubled.add(call)
        report("trouble", reason=reason)

    def beat(send: Callable[[], bool]) -> bool:
        try:
            success = send()
        except httpx.HTTPStatusError as error:  # Flower's thread would end here, and never beat again
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            trouble("heartbeat", _answer_in_words(error))
            return False
        if success:
            answered("heartbeat")
        else:
            trouble("heartbeat", "the SuperLink does not answer")
        return success

    def often(receive: Callable[[], Any]) -> Callable[[], Any]:
        def ask() -> Any:
            began = time.monotonic()
            while True:
                try:
                    message = receive()
                    answered("messages")
                    if message is not None:
                        return message
                except httpx.HTTPStatusError as error:
                    if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                        raise
                    trouble("messages", _answer_in_words(error))
                time.sleep(min(max(SOON_S, (time.monotonic() - began) / 20), LATE_S))

        return ask

    @contextlib.contextmanager
    def connected(**options: Any) -> Iterator[Any]:
        with connect(**options) as (node, receive, *others):
            report("connected", node=node)
            try:
                yield (node, often(receive), *others)
            except Exception as error:  # Flower logs it and goes on without a link
                reasons.append(_answer_in_words(error))
                raise

    def run(**options: Any) -> None:
        code: Any = LINK_ENDED
        try:
            start(**options)
        except SystemExit as end:
            code = end.code
            reasons.append(_answer_in_words(end.__context__) if isinstance(end.__context__, Exception) else "")
        report("ended", reason=next(filter(None, reasons), ""))
        if code:
            logging.shutdown()
            os._exit(LINK_ENDED)  # the thread of Flower's interface would keep the process
        raise SystemExit(code)

    command.start_client_internal = run
    _replace(loop, "_init_connection", connected)
    _replace(connection, "HeartbeatSender", lambda send: sender(functools.partial(beat, send)))
    _replace(loop, "time", _Pauses)


class _Pauses:
    """In place of `time` in Flower's loop, which sleeps 3 s between messages and 0.5 s before it looks for a reply."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep for at most 0.1 s."""
        time.sleep(min(seconds, 0.1))


def _answer_in_words(error: BaseException) -> str:
    """What went wrong in talking to the SuperLink."""
    import httpx
    from flwr.supercore.error import ApiErrorCode, FlowerError

    if not isinstance(error, httpx.HTTPStatusError):
        return f"{error}" or type(error).__name__
    refusal = FlowerError.from_json(error.response.text)
    if refusal and refusal.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return IN_USE
    status = error.response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return "the SuperLink does not accept this SuperNode's signature any more"
    disk = "; its disk may be full" if status == httpx.codes.INTERNAL_SERVER_ERROR else ""
    return f"the SuperLink answers with the error {status}{disk} (its log says why)"


def say_in_a_sentence() -> None:
    """Have Flower's log show an error of ours in one sentence; every other exception keeps its traceback."""
    logging.getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, FedrlvrError):
        record.msg, record.args = "error: %s", (str(error),)
        record.exc_info = record.exc_text = None
    return True


def write_programs(directory: Path) -> None:
    """Write the programs that Flower's SuperExec starts by name, as this organisation wants them.

    flower-superexec and flwr-clientapp are ours. A server may also call for the others (an "agent app", say), which
    would run what it sent; so each name Flower has gets a program that says no.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    python = shlex.quote(sys.executable)
    # -P: a module that lies in the working directory is none of ours.
    ours = {
        name: f"exec {python} -P -c 'from fedrlvr.deployment.flower_private import {entry}; {entry}()' \"$@\"\n"
        for name, entry in ((CLIENT_APP, "clientapp"), (SUPEREXEC, "superexec"))
    }
    for name in [*task_programs(), SUPEREXEC]:
        refusal = (
            f"echo 'fedrlvr: refused: the server called for {name}, which would run code that it sent' >&2\nexit 1\n"
        )
        fresh = directory / f".{name}.{os.getpid()}"
        fresh.write_text("#!/bin/sh\n" + ours.get(name, refusal), "utf-8")
        fresh.chmod(0o700)
        fresh.replace(directory / name)


def task_programs() -> list[str]:
    """Every program that a SuperExec may start for a task."""
    constant = importlib.import_module("flwr.supercore.constant")
    names = set(_present(constant, "TASK_TYPE_TO_COMMAND").values())
    scripts = importlib.metadata.distribution("flwr").entry_points.select(group="console_scripts")
    names |= {script.name for script in scripts if script.name.startswith("flwr-")}
    if CLIENT_APP not in names:
        raise _moved(f"the program {CLIENT_APP}")
    return sorted(names)


def run_superlink(arguments: list[str]) -> None:
    """`flower-superlink ARGUMENTS` in this process, with the guard before it and failed TLS connections in its log."""
    from flwr.superlink.cli.flower_superlink import flower_superlink

    from fedrlvr.deployment.superlink.handshakes import show_failed_handshakes

    install_guard()
    show_failed_handshakes()
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def install_guard() -> None:
    """Put `MachineGuard` before every request to the SuperLink.

    Raises:
        ConfigError: this Flower has no place for it.
    """
    import uvicorn
    from starlette.middleware import Middleware

    from fedrlvr.deployment.superlink.access_guard import MachineGuard

    extensions = importlib.import_module("flwr.superlink.extensions")
    middleware = _present(extensions, "get_middleware")
    server = importlib.import_module("flwr.superlink.main")
    _present(server, "_get_middleware")
    if _present(server, "extensions") is not extensions:
        raise _moved("flwr.superlink.main.extensions")
    extensions.get_middleware = lambda: (Middleware(MachineGuard), *middleware())
    if not any(entry.cls is MachineGuard for entry in server._get_middleware()):
        raise _moved("flwr.superlink.extensions.get_middleware")
    # The guard must see who really connected, not what a header says of it. asyncio's loop: its TLS can be listened to.
    command = importlib.import_module("flwr.superlink.cli.flower_superlink")
    if _present(command, "uvicorn") is not uvicorn:
        raise _moved("flwr.superlink.cli.flower_superlink.uvicorn")
    uvicorn.run = functools.partial(uvicorn.run, proxy_headers=False, loop="asyncio")


@dataclass(frozen=True)
class Member:
    """An organisation as it is registered: its SuperNode's id, and PEM of its public key."""

    node_id: int
    name: str
    status: str
    public_key: bytes


def members(address: str, root_certificates: bytes | None) -> list[Member]:
    """Organisations registered with the SuperLink of this machine. (Flower's own list has no names.)

    Raises:
        ConfigError: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import ListNodesRequest
    from flwr.supercore.control import ControlHttpClient

    client = _client(ControlHttpClient, address, root_certificates)
    with client:
        nodes = _asked(address, lambda: client.ListNodes(ListNodesRequest())).nodes_info
    return [Member(node.node_id, node.name, node.status, node.public_key) for node in nodes]


def is_registered(address: str, root_certificates: bytes | None, key: Any) -> bool:
    """Whether the public key of this private key is registered with the SuperLink. The call changes nothing there.

    It asks to be activated with a heartbeat that the SuperLink cannot take: Flower looks the key up first, then refuses
    the heartbeat, and only then would activate.

    Raises:
        ConfigError: the SuperLink does not answer, or answers something else.
    """
    import httpx
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    public = key.public_key()
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=TOO_OFTEN)
    client = _client(FleetHttpClient, address, root_certificates, NodeAuthHttpInterceptor(key, public))
    with client:
        try:
            client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            refusal = FlowerError.from_json(error.response.text)
            code = refusal.code if refusal else None
            if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
                return True
            if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                return False
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise ConfigError(
                    f"{address} refuses the signature of this organisation's key. It carries the time: set the clocks "
                    "of both machines (5 minutes may lie between them)."
                ) from None
            raise ConfigError(f"{address} answers {error.response.status_code}: is it a SuperLink of Flower?") from None
        except httpx.HTTPError as error:
            raise ConfigError(f"{address} does not answer: {error}.") from None
    return True


def let_go(address: str, root_certificates: bytes | None, key: Any, node: int) -> bool:
    """Deactivate a SuperNode that crashed. Returns True if one was registered.

    Else it takes it for connected for up to a minute after its last sign of life, and no other in its place.
    """
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    client = _client(FleetHttpClient, address, root_certificates, NodeAuthHttpInterceptor(key, key.public_key()))
    with client:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node))
        except httpx.HTTPError:  # it was not connected, or this is another SuperLink, where the number is none of ours
            return False
    return True


def _client(kind: Any, address: str, root_certificates: bytes | None, *interceptors: Any) -> Any:
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    version = RuntimeVersionHttpInterceptor(component_name="fedrlvr")
    return kind.from_server_address(address, root_certificates is None, root_certificates, [version, *interceptors])


def _asked(address: str, ask: Any) -> Any:
    import httpx

    try:
        return ask()
    except httpx.HTTPStatusError as error:
        raise ConfigError(f"{address} answers {error.response.status_code} {error.response.text[:200]}") from None
    except httpx.HTTPError as error:
        raise ConfigError(f"{address} does not answer ({error}). Is `fedrlvr superlink run` running?") from None


def _replace(module: Any, name: str, value: Any) -> None:
    _present(module, name)
    setattr(module, name, value)


def _present(module: Any, name: str) -> Any:
    if not hasattr(module, name):
        raise _moved(f"{module.__name__}.{name}")
    return getattr(module, name)


def _moved(what: str) -> ConfigError:
    return ConfigError(
        f"flwr {importlib.metadata.version('flwr')} is not Flower as fedrlvr knows it: {what} is gone, which it relies "
        "on. Install the release that fedrlvr asks for (fedrlvr doctor names it)."
    )
