"""Organisations on their own machines, over Flower: the organisation's side (site, worker) and the server's.

What is computed is `fedrlvr.federation`'s, as on one machine. Here is only what lies between: who may ask for what, how
a message reaches the worker that holds the model, how SuperLink and SuperNode are started.
"""

import os

# Before Flower is imported: nothing phones home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
