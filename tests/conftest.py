"""Settings of the whole test run. They stand in the environment before torch or transformers are imported."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # results do not depend on the machine's cores
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reached for the network would fail, not wait
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests to one process, which so makes its fixtures once; all fault tests too, who look at two runs that
    take minutes. (xdist's own groups, --dist loadgroup, are without effect in pytest 9.2.)
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "faults" if "/test_faults" in nodeid else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # the fault tests would come late, and the other process would wait for them
    return ByFile(config, log)
