"""A wheel of the project, installed into an environment of its own, runs without the project's directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "run.name": "trial",
    "federation.clients": 2,
    "train.rounds": 1,
    "train.local_steps": 1,
    "train.problems_per_step": 1,
    "sampling.group_size": 2,
    "sampling.max_new_tokens": 2,
    "data.train_size": 4,
    "data.test_size": 2,
    "engine.threads": 1,
}


def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The `bin` of an environment that has the wheel, and takes everything else from this one."""
    built = pip("wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("no package index to take hatchling from, which builds the wheel")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("fedrlvr-*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    bin_ = tmp_path / "venv" / "bin"
    done = pip("--python", bin_ / "python", "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site_packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return bin_


def test_an_installed_wheel_runs_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path) in run(installed / "python", "-c", "import fedrlvr; print(fedrlvr.__file__)")
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    run(installed / "fedrlvr", "run", "--quiet", "--allow-nothing", *settings)  # one step is too few to learn from
    (adapter,) = empty.rglob("adapter/adapter_model.safetensors")
    assert (adapter.parents[1] / "report.html").is_file()
