"""The embedded reasoner: eight families of problems and a model of about one million parameters that half knows them.

Importing this does not import torch. `weights/CARD.md` says what the weights are and how well they do; in the
repository, `python -m scripts.reasoner.train` rebuilds them.
"""

from __future__ import annotations

from pathlib import Path

from fedrlvr.zoo.family import LEVELS
from fedrlvr.zoo.generators import FAMILIES, problems

__all__ = ["FAMILIES", "LEVELS", "embedded_config", "problems", "weights_dir"]


def embedded_config() -> Path:
    """The TOML file of the default federation: the embedded reasoner and its eight families among four clients."""
    return Path(__file__).parent / "embedded.toml"


def weights_dir() -> Path:
    """The directory of the embedded weights, in ordinary Hugging Face format."""
    return Path(__file__).parent / "weights"
