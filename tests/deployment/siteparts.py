"""What tests of an organisation's commands share: the commands themselves, and servers that are not as they should."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from fedrlvr.cli.site import site
from fedrlvr.deployment.site.config import Organisation, load_site


def output_of(*arguments: object) -> str:
    """The output of a command; an error of the command is raised."""
    result = CliRunner().invoke(site, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def init_site(directory: Path, *more: object, superlink: str = "link.example:9092") -> Organisation:
    """An organisation ann, as init makes it."""
    output_of("init", directory, "--name", "ann", "--superlink", superlink, *more)
    return load_site(directory)


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(directory: Path | None) -> Iterator[str]:
    """The address of a server with the certificate of a directory, or without TLS."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed, or a handshake that failed
            while True:
                connection, _ = listening.accept()
                with contextlib.suppress(OSError), connection:
                    if directory is None:
                        connection.recv(1)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        continue
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(directory / "server.crt", directory / "server.key")
                    context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)
