"""Run metadata attached to every message, so that a client that missed rounds, or has a new worker, can continue.

A message's own request (wire/messages.py) says what to do now; the terms say for which run, task and model.
"""

from __future__ import annotations

import json

from flwr.app import ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrlvr.config.prompt import PromptConfig
from fedrlvr.config.sections import LARGEST, MAX_RANK, SMALLEST, Name, Targets
from fedrlvr.errors import MessageError, validation_text
from fedrlvr.version import __version__

TERMS = "terms"
"""The name of the record in a message."""
PROTOCOL = 7
"""Version of the messages' protocol. It rises whenever another release would misread a message."""
LONGEST = 1 << 18
"""Largest number of characters in the terms."""


class Terms(BaseModel):
    """The run that a message belongs to.

    run: its id, also the name of a directory at the client; the same after a resume. client: what the server calls the
    receiver. clients: how many train. rounds: the last round's number.
    task: which of the organisation's tasks, by the name it has there.
    model: as the server names it. model_id, weights_id, tokenizer_id: digests (policy/base.py) that must be the
    receiver's too. prompt: how problems are asked, where the organisation does not say so itself. rank: of the
    receiver's adapter; largest: of anybody's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    protocol: int = PROTOCOL
    version: str = Field(__version__, max_length=40)
    run: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")
    client: Name
    clients: int = Field(ge=1, le=4096)
    rounds: int = Field(ge=1)
    task: Name
    model: str = Field(max_length=400)
    model_id: str = Field(max_length=200)
    weights_id: str = Field(max_length=200)
    tokenizer_id: str = Field(max_length=200)
    prompt: PromptConfig = PromptConfig()
    rank: int = Field(ge=1, le=MAX_RANK)
    largest: int = Field(ge=1, le=MAX_RANK)
    alpha: float = Field(ge=SMALLEST, le=LARGEST)
    targets: Targets = "all-linear"
    max_prompt_tokens: int | None = Field(None, ge=1)

    @property
    def scale(self) -> float:
        """Factor of the product B A of the receiver's adapter in a layer's weight."""
        return self.alpha / self.rank


def terms_record(terms: Terms) -> ConfigRecord:
    """The terms as a record of a message."""
    return ConfigRecord({"json": terms.model_dump_json()})


def read_terms(content: RecordDict) -> Terms:
    """Read and check the terms in a message.

    Raises:
        MessageError: there are none, they are of another protocol, or a field does not fit.
    """
    record = content.get(TERMS)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > LONGEST:
        raise MessageError("a message without usable terms: its sender is no fedrlvr server")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageError("a message whose terms are not JSON") from None
    protocol = plain.get("protocol") if isinstance(plain, dict) else None
    if protocol != PROTOCOL:  # before the rest: what the fields mean is the protocol's
        release = str(plain.get("version"))[:40] if isinstance(plain, dict) else "of unknown version"
        raise MessageError(
            f"the server (fedrlvr {release}) speaks protocol {str(protocol)[:20]} and this organisation (fedrlvr "
            f"{__version__}) {PROTOCOL}: install the same release at both"
        )
    try:
        return Terms.model_validate(plain)
    except ValidationError as error:
        raise MessageError(f"terms that cannot be used: {validation_text(error, 5)}") from None
