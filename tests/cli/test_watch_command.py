"""The command `fedrlvr watch`: its address and token, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedrlvr.cli.main import main
from fedrlvr.cli.serving import Address
from fedrlvr.cli.watch import kept_token, token_file
from fedrlvr.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_token_is_kept_for_this_user_alone() -> None:
    token = kept_token()
    assert kept_token() == token
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(token_file().parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("spoilt", ["open", "short", "other", "binary"])
def test_a_token_that_others_could_know_is_made_anew(spoilt: str) -> None:
    before = kept_token()
    if spoilt == "open":
        token_file().chmod(0o644)
    else:
        token_file().write_bytes({"short": b"abc", "other": b"a b" * 20, "binary": b"\xff" * 40}[spoilt])
    after = kept_token()
    assert len(after) >= 32
    assert after != before
    assert kept_token() == after
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600


def test_without_a_place_for_the_token_each_start_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert kept_token() != kept_token()


def test_the_link_names_the_page_and_hides_the_token_behind_the_hash() -> None:
    assert Address("127.0.0.1", [], None, None).link(8766, "T") == "http://127.0.0.1:8766/#token=T"
    assert Address("::1", [], Path("c"), Path("k")).link(1, "T") == "https://[::1]:1/#token=T"
    assert Address("0.0.0.0", ["watch.example"], None, None).link(1, "T") == "http://watch.example:1/#token=T"
    with pytest.raises(ConfigError, match="--key"):
        Address("127.0.0.1", [], Path("c"), None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["no-such-directory"], "no-such-directory"),
        ([".", "--token", "short"], "16"),
        ([".", "--key", "k.pem"], "--certificate"),
        ([".", "--certificate", "c.pem", "--key", "k.pem"], "c.pem"),
        ([".", "--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_options_that_cannot_be_are_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(["watch", *options])
    assert end.value.code == 1
    assert words in err.getvalue()
    assert len(err.getvalue().splitlines()) == 1


def test_help_and_mistakes_are_answered_without_loading_the_server() -> None:
    program = (
        "import sys\nfrom fedrlvr.cli.main import main\nsys.argv = ['fedrlvr', 'watch', 'no-such-directory']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'fastapi', 'uvicorn', 'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "no-such-directory" in done.stderr
