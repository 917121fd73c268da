"""Events and the list of listeners: who hears what, and whose failure ends a run."""

from __future__ import annotations

import logging

import pytest

from fedrlvr.reporting.observer import ClientLeftOut, Event, Forwarder, Listeners, Observer

LEFT_OUT = ClientLeftOut(2, "bob", "no answer")


class Keeping(Observer):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.closed = 0

    def notify(self, event: Event) -> None:
        self.heard.append(event)

    def close(self) -> None:
        self.closed += 1


class Failing(Keeping):
    """Keeps what it hears, and fails."""

    def notify(self, event: Event) -> None:
        super().notify(event)
        raise OSError("no room")


class Essential(Failing):
    essential = True


def test_an_event_reaches_every_listener_and_the_null_observer_ignores_it() -> None:
    first, second = Keeping(), Keeping()
    listeners = Listeners([first, Observer(), second])
    listeners.notify(LEFT_OUT)
    listeners.close()
    assert first.heard == second.heard == [LEFT_OUT]
    assert (first.closed, second.closed) == (1, 1)


def test_a_listener_that_fails_is_logged_closed_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    failing, other = Failing(), Keeping()
    listeners = Listeners([failing, other])
    with caplog.at_level(logging.WARNING, "fedrlvr.reporting"):
        for _ in range(2):
            listeners.notify(LEFT_OUT)
        listeners.close()
    assert len(failing.heard) == 1
    assert len(other.heard) == 2
    assert (failing.closed, other.closed) == (1, 1)
    (record,) = caplog.records
    assert "Failing" in record.getMessage()
    assert record.exc_info is not None
    assert "no room" in str(record.exc_info[1])


def test_an_essential_listener_s_failure_ends_the_run() -> None:
    other = Keeping()
    with pytest.raises(OSError, match="no room"):
        Listeners([Essential(), other]).notify(LEFT_OUT)
    assert other.heard == []


def test_an_interrupt_passes_every_listener() -> None:
    class Interrupted(Observer):
        def notify(self, event: Event) -> None:
            raise KeyboardInterrupt

    listeners = Listeners([Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        listeners.notify(LEFT_OUT)


def test_a_federation_s_events_carry_its_name_and_do_not_close_the_sweep() -> None:
    sweep = Keeping()
    federation = Listeners([Forwarder(sweep, "as-given/seed-1")])
    federation.notify(LEFT_OUT)
    federation.close()
    assert sweep.heard == [ClientLeftOut(2, "bob", "no answer", federation="as-given/seed-1")]
    assert sweep.closed == 0
