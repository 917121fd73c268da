"""The decision log: any line that is changed, removed, moved or cut off shows, and a kill loses and hides nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedrlvr.errors import CheckpointError
from fedrlvr.privacy.decision_log import START, DecisionLog, Head


def log_of(directory: Path, lines: int = 0) -> DecisionLog:
    """A log with so many lines."""
    log = DecisionLog(directory, clock=lambda: 1.0)
    for number in range(lines):
        log.append("allow", kind="adapter", digest=f"{number:064d}", bytes=number)
    return log


def lines_of(log: DecisionLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def state_of(log: DecisionLog) -> tuple[bytes, bytes]:
    return log.path.read_bytes(), log.head_path.read_bytes()


def test_each_line_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    log = log_of(tmp_path, 2)
    first, second = lines_of(log)
    expected = {"n": 1, "at": "1970-01-01T00:00:01Z", "decision": "allow", "kind": "adapter"}
    assert json.loads(first) == expected | {"digest": "0" * 64, "bytes": 0, "previous": START}
    assert json.loads(second)["previous"] == hashlib.sha256(first[:-1]).hexdigest()
    result = log.verify()
    assert (result.fault, result.cut) == ("", 0)
    assert result.head == Head(2, hashlib.sha256(second[:-1]).hexdigest())
    assert json.loads(log.head_path.read_text()) == {"lines": 2, "sha256": result.head.digest}
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_an_empty_log_is_in_order(tmp_path: Path) -> None:
    assert log_of(tmp_path).verify().fault == ""
    assert list(log_of(tmp_path).entries()) == []
    assert log_of(tmp_path).last("allow") is None


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("how", ["changed", "removed", "moved", "garbage"])
def test_a_line_that_is_tampered_with_shows_and_nothing_is_appended_behind_the_last(
    how: str, place: int, tmp_path: Path
) -> None:
    log = log_of(tmp_path, 5)
    lines = lines_of(log)
    if how == "changed":
        lines[place] = lines[place].replace(b'"allow"', b'"deny"')
    elif how == "removed":
        del lines[place]
    elif how == "garbage":
        lines[place] = b"garbage\n"
    else:
        lines.insert((place + 2) % 5, lines.pop(place))
    log.path.write_bytes(b"".join(lines))
    fault = log.verify().fault
    assert str(log.path) in fault or log.head_path.name in fault
    if place == 4:
        with pytest.raises(CheckpointError, match="does not end as"):
            log.append("allow")


def test_a_line_that_is_inserted_shows(tmp_path: Path) -> None:
    log = log_of(tmp_path, 3)
    lines = lines_of(log)
    log.path.write_bytes(b"".join([*lines[:2], lines[1], *lines[2:]]))
    assert "behind line 2" in log.verify().fault


@pytest.mark.parametrize("left", range(5))
def test_a_log_that_is_cut_off_at_the_end_shows(left: int, tmp_path: Path) -> None:
    log = log_of(tmp_path, 5)
    log.path.write_bytes(b"".join(lines_of(log)[:left]))
    assert "another end" in log.verify().fault
    with pytest.raises(CheckpointError):
        log.append("allow")
    log.path.unlink()
    assert "another end" in log.verify().fault


def test_a_head_that_is_gone_or_no_head_shows(tmp_path: Path) -> None:
    log = log_of(tmp_path, 3)
    log.head_path.write_text("{}")
    assert "damaged" in log.verify().fault
    with pytest.raises(CheckpointError):
        log.append("allow")
    log.head_path.unlink()
    assert "another end" in log.verify().fault


def test_whoever_writes_both_files_anew_is_seen_by_a_head_that_was_noted(tmp_path: Path) -> None:
    log = log_of(tmp_path, 3)
    noted = log.verify().head.digest
    log.append("left")
    assert log.verify(noted).fault == "", "a head that was there before"
    forged = log_of(tmp_path / "other", 0)
    forged.path.parent.mkdir()
    for _ in range(4):
        forged.append("left")
    assert forged.verify().fault == "", "it is a log of its own"
    assert noted in forged.verify(noted).fault


def test_a_part_of_a_line_is_named_and_repaired_by_the_next_one(tmp_path: Path) -> None:
    log = log_of(tmp_path, 2)
    head = log.verify().head
    with log.path.open("ab") as file:
        file.write(b'{"n": 3, "at"')
    result = log.verify()
    assert (result.head, result.fault, result.cut) == (head, "", 13)
    log.append("deny", kind="adapter")
    *_, part, repaired, decision = lines_of(log)
    assert part == b'{"n": 3, "at"\n'
    assert json.loads(repaired)["decision"] == "repaired"
    assert json.loads(repaired)["digest"] == hashlib.sha256(part[:-1]).hexdigest()
    assert json.loads(decision)["n"] == 4
    assert log.verify().fault == ""
    # The part may be changed no more than a line may.
    whole = log.path.read_bytes()
    log.path.write_bytes(whole.replace(b'{"n": 3, "at"\n', b'{"n": 3, "to"\n'))
    assert "no line names" in log.verify().fault
    log.path.write_bytes(whole.replace(part, b""))
    assert "repairs nothing" in log.verify().fault


def test_a_kill_at_any_byte_of_a_line_or_before_its_head_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    log = log_of(tmp_path, 1)
    before, head = state_of(log)
    with log.path.open("ab") as file:
        file.write(b"cut")
    log.append("deny")  # a repair and a line
    after = log.path.read_bytes()
    ends = [place for place, byte in enumerate(after) if byte == ord("\n") and place >= len(before)]
    for end in {
        len(before),
        len(after),
        *range(len(before), len(after), 97),
        *(e + d for e in ends for d in (-1, 0, 1)),
    }:
        log.path.write_bytes(after[:end])
        log.head_path.write_bytes(head)
        assert log.verify().fault == "", end
        log.append("left")
        assert (log.verify().fault, log.verify().cut) == ("", 0), end


def test_lines_of_several_processes_are_one_chain(tmp_path: Path) -> None:
    command = "import sys; from pathlib import Path; from fedrlvr.privacy.decision_log import DecisionLog\n"
    command += "for _ in range(5): DecisionLog(Path(sys.argv[1])).append('left')"
    processes = [subprocess.Popen([sys.executable, "-c", command, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    result = log_of(tmp_path).verify()
    assert (result.fault, result.head.lines) == ("", 10)


def test_the_newest_line_with_these_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path, 3)
    log.append("left", digest=f"{1:064d}")
    monkeypatch.setattr("fedrlvr.privacy.decision_log._RECENT", 10)  # all lines but the end are further back
    entry = log.last("allow", digest=f"{1:064d}")
    assert entry is not None
    assert entry["n"] == 2
    assert log.last("allow", digest="other") is None


def test_a_disk_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot be locked"):
        log.append("left")
