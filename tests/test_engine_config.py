"""The settings of a vLLM server in [engine]: which go together, and where a server may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedrlvr.config import EngineConfig, parse_config
from fedrlvr.errors import ConfigError


def parsed(**engine: Any) -> EngineConfig:
    return parse_config({"engine": engine}).engine


@pytest.mark.parametrize(
    "engine",
    [
        {"vllm_python": "vllm/bin/python"},
        {"vllm_python": "vllm/bin/python", "vllm_arguments": ["--swap-space", "1"], "vllm_max_loras": 2},
        {"vllm_address": "http://127.0.0.1:8000"},
        {"vllm_address": "http://[::1]:8000/"},
        {"vllm_address": "https://gpu.example.org:8000", "vllm_adapters": "/shared"},
    ],
)
def test_servers_that_can_be_had(engine: dict[str, Any]) -> None:
    assert parsed(sampler="vllm", **engine).sampler == "vllm"


@pytest.mark.parametrize(
    ("engine", "setting"),
    [
        ({"sampler": "vllm"}, "vllm_address"),
        ({"sampler": "vllm", "vllm_python": "x", "vllm_address": "http://127.0.0.1:8000"}, "vllm_address"),
        ({"sampler": "vllm", "vllm_address": "http://gpu.example.org:8000"}, "vllm_adapters"),
        ({"sampler": "vllm", "vllm_address": "127.0.0.1:8000"}, "vllm_address"),
        ({"sampler": "vllm", "vllm_address": "file:///etc/passwd"}, "vllm_address"),
        ({"sampler": "vllm", "vllm_address": "http://127.0.0.1:8000/v1"}, "vllm_address"),
        ({"sampler": "vllm", "vllm_address": "http://127.0.0.1:8000", "vllm_max_loras": 2}, "vllm_max_loras"),
        ({"sampler": "vllm", "vllm_address": "http://127.0.0.1:8000", "vllm_arguments": ["-x"]}, "vllm_arguments"),
        ({"sampler": "vllm", "vllm_python": "x", "vllm_max_loras": 0}, "vllm_max_loras"),
        ({"vllm_python": "x"}, "vllm_python"),
        ({"sampler": "sglang"}, "sampler"),
    ],
)
def test_what_is_refused_names_the_setting(engine: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        parsed(**engine)


def test_paths_are_taken_from_the_directory_of_the_file(tmp_path: Path) -> None:
    engine = parsed(sampler="vllm", vllm_python="vllm/bin/python", vllm_adapters="/shared")
    there = engine.in_directory(tmp_path)
    assert (there.vllm_python, there.vllm_adapters) == (tmp_path / "vllm" / "bin" / "python", Path("/shared"))
    assert parsed().in_directory(tmp_path) == parsed()
