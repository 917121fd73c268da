"""The federation over Flower: strategy, client code, local grid, checkpoints. Only this package and
`fedrlvr.deployment` know Flower.

Flower's telemetry and update check are switched off before it is imported: nothing phones home.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
