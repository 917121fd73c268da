"""The policy: a frozen base model with every client's adapter on it, which samples responses and learns from them."""

import os

os.environ.setdefault(
    "HF_HUB_DISABLE_TELEMETRY", "1"
)  # nothing phones home; must be set before transformers is imported
