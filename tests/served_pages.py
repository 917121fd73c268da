"""Commands that serve a page, as processes of their own, for the tests of the desk and of the page of `watch`."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass


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
