"""Served pages for the tests of the desk and of the page of `watch`: an application in this process, and commands."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp


@dataclass
class PageProcess:
    """A command that serves a page, as it runs. `url` is the address it printed, token and all."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        result = re.search(r":(\d+)/", self.url)
        assert result is not None
        return int(result[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def interrupt(self) -> str:
        """Sends Ctrl-C, and returns the last output."""
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=30)
        return said


@contextmanager
def served(app: ASGIApp, token: str, *, force: bool = True) -> Iterator[str]:
    """An application in this process, which is quicker than a command; its address with the token. force: requests in
    progress are not waited for at the end."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/#token={token}"
    finally:
        server.should_exit, server.force_exit = True, force
        thread.join(30)
        listening.close()
