"""What a client remembers, by run and round: servers go back, disks lose the newest, and processes are killed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from fedrlvr.deployment.site.round_states import NOTHING, Past, RoundStates, begin_run
from fedrlvr.errors import CheckpointError, ReleaseError


class Client:
    """A client whose memory is the list of what was applied to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.warnings: list[str] = []
        self.states = RoundStates(root, "ann", self.warnings.append)

    def again(self) -> Client:
        return Client(self.root)

    def answer(self, kind: str, round_: int, message: str) -> list[str]:
        """Apply a message and save: `begin`, `go_on` or `look`."""
        result: Past = getattr(self.states, kind)(round_)
        record = result.state.get("past")
        past = [*(record["list"] if record is not None else []), message]  # type: ignore[misc]
        context = Context(1, 1, {}, result.state, {})
        context.state["past"] = ConfigRecord({"list": past})
        context.state["moments"] = ArrayRecord({"b": torch.full((2,), float(len(past))), "a": torch.zeros(1)})
        self.states.save(round_, result, context, message, f"reply to {message}".encode())
        return past

    def written(self) -> list[Path]:
        return sorted((self.root / "clients" / "ann").iterdir())


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "run")


def test_rounds_follow_each_other(client: Client) -> None:
    assert client.answer("look", 0, "e0") == ["e0"]
    assert client.answer("begin", 1, "a1") == ["e0", "a1"]
    assert client.answer("go_on", 1, "b1") == ["e0", "a1", "b1"]
    assert client.again().answer("go_on", 1, "c1") == ["e0", "a1", "b1", "c1"]
    assert client.answer("begin", 2, "a2") == ["e0", "a1", "b1", "c1", "a2"]
    assert client.answer("look", 2, "e2") == ["e0", "a1", "b1", "c1", "a2", "e2"]
    assert len(client.written()) == 2
    assert client.warnings == []


def test_a_memory_comes_back_as_it_was_and_without_what_is_added_for_the_disk(client: Client) -> None:
    client.answer("begin", 1, "a1")
    state = client.again().states.begin(2).state
    assert list(state) == ["past", "moments"]
    moments = state["moments"]
    assert isinstance(moments, ArrayRecord)
    assert list(moments) == ["b", "a"]
    assert moments["b"].numpy().tolist() == [1.0, 1.0]


def test_a_client_that_was_away_goes_on_from_its_last_round(client: Client) -> None:
    client.answer("begin", 1, "a1")
    assert client.answer("begin", 5, "a5") == ["a1", "a5"]
    assert client.answer("look", 9, "e9") == ["a1", "a5", "e9"]


def test_a_round_that_is_begun_again_forgets_what_was_done_of_it(client: Client) -> None:
    for round_ in (1, 2, 3):
        client.answer("begin", round_, f"a{round_}")
    client.answer("go_on", 3, "b3")
    assert client.again().answer("begin", 3, "A3") == ["a1", "a2", "A3"]
    assert client.answer("go_on", 3, "B3") == ["a1", "a2", "A3", "B3"]
    assert client.answer("begin", 4, "a4") == ["a1", "a2", "A3", "B3", "a4"]


def test_the_first_round_begun_again_begins_with_nothing(client: Client) -> None:
    client.answer("begin", 1, "a1")
    client.answer("go_on", 1, "b1")
    assert client.answer("begin", 1, "A1") == ["A1"]
    assert client.again().answer("begin", 1, "AA1") == ["AA1"]
    assert client.warnings == []


def test_a_server_that_went_back_further_than_is_kept_is_warned_of(client: Client) -> None:
    for round_ in (1, 2, 3, 4):
        client.answer("begin", round_, f"a{round_}")
    # 3 and 4 are kept; what round 3 began with is not.
    assert client.answer("begin", 2, "A2") == ["a1", "a2", "a3", "A2"]
    assert client.warnings == [
        "round 2 begins with the memory of round 3: the server went further back than the 2 rounds that are kept here"
    ]
    assert len(client.written()) == 1, "rounds done again are forgotten"
    assert client.answer("begin", 3, "A3") == ["a1", "a2", "a3", "A2", "A3"]


def test_in_mid_round_nothing_but_that_round_is_gone_on_from(client: Client) -> None:
    client.answer("begin", 1, "a1")
    assert client.states.go_on(2) == Past(RecordDict(), NOTHING)
    client.answer("begin", 3, "a3")
    assert client.states.go_on(2) == Past(RecordDict(), NOTHING)


def test_evaluating_an_earlier_round_does_not_read_a_later_one(client: Client) -> None:
    for round_ in (1, 2, 3):
        client.answer("begin", round_, f"a{round_}")
    past = client.states.look(2).state["past"]
    assert past["list"] == ["a1", "a2"]
    assert client.states.look(1) == Past(RecordDict(), NOTHING)


def test_a_message_that_was_answered_has_its_reply(client: Client) -> None:
    assert client.states.reply_to("a1") is None
    client.answer("begin", 1, "a1")
    client.answer("go_on", 1, "b1")
    client.answer("begin", 2, "a2")
    later = client.again()
    assert later.states.reply_to("a2") == b"reply to a2"
    assert later.states.reply_to("b1") == b"reply to b1"
    assert later.states.reply_to("a1") is None, "what came after it is there"
    assert later.states.reply_to("other") is None


def damage(directory: Path) -> None:
    file = directory / "memory.packed"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["data", "json", "missing"])
def test_a_damaged_newest_memory_is_passed_over(how: str, client: Client) -> None:
    for round_ in (1, 2, 3):
        client.answer("begin", round_, f"a{round_}")
    newest = client.written()[-1]
    if how == "data":
        damage(newest)
    elif how == "json":
        (newest / "memory.json").write_text("{", "utf-8")
    else:
        (newest / "memory.packed").unlink()
    later = client.again()
    assert later.states.reply_to("a3") is None
    assert later.answer("begin", 4, "a4") == ["a1", "a2", "a4"]
    (warning,) = later.warnings
    assert warning.startswith("a memory that cannot be read is passed over: ")
    assert "Delete" not in warning
    assert str(newest) in warning


def test_a_memory_of_another_release_is_refused(client: Client) -> None:
    client.answer("begin", 1, "a1")
    note = client.written()[-1] / "memory.json"
    note.write_text(note.read_text("utf-8").replace("format", "other"), "utf-8")
    with pytest.raises(ReleaseError, match=r"0\.6\.0"):
        client.again().states.begin(2)


def test_what_is_damaged_while_the_worker_lives_is_passed_over_too(client: Client) -> None:
    for round_ in (1, 2):
        client.answer("begin", round_, f"a{round_}")
    damage(client.written()[-1])
    assert client.answer("begin", 3, "a3") == ["a1", "a3"]


@pytest.mark.parametrize("moment", ["save", "rename", "drop"])
def test_killed_while_it_writes_it_has_the_memory_before_or_the_one_after(
    moment: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for round_ in (1, 2):
        client.answer("begin", round_, f"a{round_}")
    client.answer("go_on", 2, "b2")

    class Kill(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Kill

    def killed_if_there(path: Path, **_: object) -> None:
        if path.exists():
            raise Kill

    with monkeypatch.context() as patched:
        if moment == "save":
            patched.setattr(Path, "write_bytes", killed)
        elif moment == "rename":
            patched.setattr(Path, "rename", killed)
        else:
            patched.setattr(shutil, "rmtree", killed_if_there)
        with pytest.raises(Kill):
            client.answer("begin", 2, "A2")  # a round done again, the moment at which most could go wrong
    later = client.again()
    if moment == "drop":
        assert later.states.reply_to("A2") == b"reply to A2"
        assert later.answer("go_on", 2, "B2") == ["a1", "A2", "B2"]
    else:
        assert later.states.reply_to("A2") is None
        assert later.states.reply_to("b2") == b"reply to b2"
        assert later.answer("begin", 2, "A2") == ["a1", "A2"]
    assert len(later.written()) == 2
    assert later.answer("begin", 3, "a3")[:2] == ["a1", "A2"]


def test_a_disk_that_is_full_leaves_what_was_there(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.answer("begin", 1, "a1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match="No space left"):
            client.answer("go_on", 1, "b1")
    assert client.answer("go_on", 1, "b1") == ["a1", "b1"]
    assert [path.name[0] for path in client.written()] == ["r"], "nothing temporary is left"


def test_the_oldest_runs_go_when_a_new_one_begins(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    runs = tmp_path / "runs"
    for number, run in enumerate(("a", "b", "c")):
        begin_run(runs, run, 3)
        os.utime(runs / run, (number, number))
    begin_run(runs, "a", 3)  # goes on, and so is the newest
    (runs / "c" / "clients").mkdir()
    os.utime(runs / "c", (2, 2))
    assert begin_run(runs, "d", 3) == runs / "d"
    assert sorted(path.name for path in runs.iterdir()) == ["a", "c", "d"]
    begin_run(runs, "e", 1)
    assert [path.name for path in runs.iterdir()] == ["e"]
    assert (tmp_path / "ledger.sqlite").exists()
    shutil.rmtree(runs)
    runs.touch()
    with pytest.raises(CheckpointError, match="cannot be made"):
        begin_run(runs, "f", 1)
