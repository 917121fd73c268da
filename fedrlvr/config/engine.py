"""The section [engine]: computation on one machine, and the program that draws the responses there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from fedrlvr.config.sections import ComputeConfig, OnlyWith, UserPath
from fedrlvr.hosts import is_loopback

VLLM = OnlyWith("sampler", ("vllm",))
"""Marks a setting of the vLLM server."""

_PATHS = ("vllm_python", "vllm_adapters")


class EngineConfig(ComputeConfig):
    """Computation on one machine. These settings never leave the machine. They change cost and memory, and the result
    only with `sampler`: another sampler draws other responses.

    Each saving is a switch of its own, so that it can be measured and tested alone (docs/measurements/performance.md).
    """

    sampler: Literal["loop", "vllm"] = "loop"
    """Program that draws the responses. `loop` is the decode loop of this process; `vllm` is a vLLM server, which needs
    `vllm_python` or `vllm_address` (docs/vllm.md)."""
    vllm_python: Annotated[UserPath | None, VLLM] = None
    """Python of an environment that has vLLM, such as `vllm/bin/python`. A server is started with it when the first
    responses are drawn, and ended with the run. Unset: the server at `vllm_address` is used."""
    vllm_address: Annotated[str | None, VLLM] = None
    """Address of a vLLM server that is running, such as `http://127.0.0.1:8000`. It receives prompts and adapters.
    Unset: a server is started with `vllm_python`."""
    vllm_adapters: Annotated[UserPath | None, VLLM] = None
    """Directory through which adapters reach the server, in a private subdirectory that is removed afterwards. A server
    on another machine is accepted only with this setting, and must see the directory under the same path. Unset: shared
    memory (/dev/shm), or the system's directory of temporary files."""
    vllm_max_loras: Annotated[int, VLLM] = Field(8, ge=1, le=256)
    """Number of adapters that a started server serves in one batch; more clients than these take turns. Each takes the
    memory of an adapter of the largest rank."""
    vllm_arguments: Annotated[list[str], VLLM] = Field(default_factory=list)
    """Further arguments of a started server, which take precedence, such as `["--gpu-memory-utilization", "0.5"]`."""

    def in_directory(self, directory: Path) -> Self:
        """These settings with relative paths taken from a directory. Links stay: vllm_python is one, as a rule."""
        paths = {name: directory / path for name in _PATHS if (path := getattr(self, name)) is not None}
        return self.model_copy(update=paths)

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if self.sampler != "vllm":
            return self
        if (self.vllm_python is None) == (self.vllm_address is None):
            raise ValueError(
                "sampler = 'vllm' needs one of vllm_python (a server is started) and vllm_address (one that is running)"
            )
        if self.vllm_address is None:
            return self
        for name in ("vllm_arguments", "vllm_max_loras"):
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} has no effect with vllm_address, whose server has been started already")
        if not is_loopback(_host(self.vllm_address)) and self.vllm_adapters is None:
            raise ValueError(
                f"vllm_address = {self.vllm_address!r} is another machine, which would see all prompts and adapters; "
                "if that is wanted, set vllm_adapters to a directory that both machines see"
            )
        return self


def _host(address: str) -> str:
    """Host of an address like `http://host:port`.

    Raises:
        ValueError: it has another form.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"vllm_address = {address!r}: write http://host:port")
    return parts.hostname
