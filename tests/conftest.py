"""Settings of the whole test run. They stand in the environment before torch or transformers are imported."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # results do not depend on the machine's cores
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reached for the network would fail, not wait
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
