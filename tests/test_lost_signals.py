"""What a signal raises may get lost in a library; the command ends all the same, and saves nothing that came after."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest
from flwr.app import Message
from small_runs import Configs, adapter_bytes

from fedrlvr import interrupts
from fedrlvr.config import parse_config
from fedrlvr.interrupts import Interrupted, interruptible, raise_again
from fedrlvr.server import participation
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.simulation.run import resume, run


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals of this process, without a real one."""
    signals: list[int] = []
    monkeypatch.setattr(interrupts, "_received", signals)
    return signals


def test_any_exception_after_a_signal_is_the_interrupt(received: list[int]) -> None:
    with pytest.raises(ValueError, match="ours"), interruptible("nothing was written"):
        raise ValueError("ours")
    received.append(signal.SIGTERM)
    with pytest.raises(Interrupted, match="nothing was written"), interruptible("nothing was written"):
        raise ValueError("what a library makes of KeyboardInterrupt")


def test_the_innermost_command_says_what_is_kept(received: list[int]) -> None:
    received.append(signal.SIGINT)
    with pytest.raises(Interrupted, match="inner"), interruptible("outer"), interruptible("inner"):
        raise KeyboardInterrupt


def test_a_lost_signal_is_raised_again_where_it_is_asked_for(received: list[int]) -> None:
    raise_again()
    received.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        raise_again()


def test_a_round_in_which_a_signal_got_lost_is_not_saved(
    received: list[int], configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs one client its reply, which a run with a quorum would outlive; the run that goes on has that reply."""
    changes = {"federation": {"quorum": 0.5}, "train": {"rounds": 3}}
    count, replies = participation.nbytes, itertools.count()

    def loses_a_signal(message: Message) -> int:
        if message.metadata.reply_to_message_id and next(replies) == 7:
            received.append(signal.SIGTERM)
            raise RuntimeError("error while serializing: KeyboardInterrupt")
        return count(message)

    with monkeypatch.context() as patched:
        patched.setattr(participation, "nbytes", loses_a_signal)
        with pytest.raises(KeyboardInterrupt):
            run(parse_config(configured(tmp_path / "run", **changes)))
    assert Checkpoints(tmp_path / "run", 9).rounds() == [0, 1]
    received.clear()
    resume(tmp_path / "run")
    run(parse_config(configured(tmp_path / "whole", **changes)))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")
