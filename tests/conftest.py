"""Settings of the whole test run, and what most tests of whole runs share: a tiny model, problems, finished runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

# The settings stand in the environment before torch or transformers are imported.
os.environ["OMP_NUM_THREADS"] = "1"  # results do not depend on the machine's cores
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reached for the network would fail, not wait
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

DRAWS = pytest.StashKey[bool]()
"""Whether the test that runs has reports drawn."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests of a file go to one process, which so makes the file's fixtures once. All tests of faults look at two
    runs that take minutes, and go to one process too. (xdist's own groups, --dist loadgroup, are without effect in
    pytest 9.2.)
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "faults" if "/test_faults" in nodeid else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _undrawn_reports(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs write an empty report in place of figures that take longer than the run; not in tests marked `report`."""
    from fedrlvr.files import atomic_text
    from fedrlvr.reporting import report

    draw = report.write_report

    def write_report(directory: Path, config: Any, records: Any) -> Path:
        if request.config.stash[DRAWS]:
            return draw(directory, config, records)
        atomic_text(directory / "report.html", "<html></html>\n")
        return directory / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", write_report)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Says whether reports are drawn, before any fixture runs."""
    item.config.stash[DRAWS] = item.get_closest_marker("report") is not None


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Llama."""
    from models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four held-out problems of each of three clients."""
    from small_runs import write_problems

    return write_problems(tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="session")
def configured(model: Path, problems: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a small run in a directory, with changes by section."""
    from small_runs import settings

    def make(directory: Path | None, **changes: Mapping[str, Any]) -> dict[str, Any]:
        return settings(model, problems, directory, **changes)

    return make


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, configured: Callable[..., dict[str, Any]]
) -> Callable[[str], Path]:
    """The directory of the uninterrupted run of a variant of `small_runs.VARIANTS`, made when it is first asked for."""
    from small_runs import VARIANTS

    import fedrlvr

    runs: dict[str, Path] = {}

    def of(variant: str) -> Path:
        if variant not in runs:
            runs[variant] = tmp_path_factory.mktemp(variant) / "run"
            fedrlvr.run(configured(runs[variant], **VARIANTS[variant]))
        return runs[variant]

    return of
