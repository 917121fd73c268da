"""Keys and certificates: who trusts whom, whose files they are, and that nothing is overwritten."""

from __future__ import annotations

import datetime
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.cli.supernode.register import try_load_public_key

from fedrlvr.deployment import certificates
from fedrlvr.errors import ConfigError

HOSTS = ["superlink.example", "localhost", "127.0.0.1", "::1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and a certificate for `HOSTS`. Not to be changed."""
    directory = tmp_path_factory.mktemp("server")
    certificates.make_authority(directory, "a test")
    certificates.make_server_certificate(directory, HOSTS)
    return directory


@pytest.fixture
def copied(server: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(server, tmp_path / "copied"))


def connect(server: Path, authority: Path, host: str) -> None:
    """A TLS handshake in memory, by the strictest rules Python has."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server / "server.crt", server / "server.key")
    client_context = ssl.create_default_context(cafile=authority)
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client_context.wrap_bio(down, up, server_hostname=host),
        server_context.wrap_bio(up, down, server_side=True),
    ]
    for end in [*ends, *ends]:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("host", HOSTS)
def test_a_strict_client_accepts_every_name_of_the_certificate(server: Path, host: str) -> None:
    connect(server, server / "ca.crt", host)


@pytest.mark.parametrize("host", ["other.example", "127.0.0.2"])
def test_another_name_is_refused(server: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        connect(server, server / "ca.crt", host)


def test_another_authority_of_the_same_name_is_refused(server: Path, tmp_path: Path) -> None:
    certificates.make_authority(tmp_path, "a test")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server, tmp_path / "ca.crt", "localhost")


def test_the_authority_signs_no_further_authority_and_the_certificate_signs_nothing(server: Path) -> None:
    from cryptography.x509 import BasicConstraints, ExtendedKeyUsage, KeyUsage

    authority, certificate = (
        certificates.read_certificate(server / name).extensions for name in ("ca.crt", "server.crt")
    )
    assert authority.get_extension_for_class(BasicConstraints).value == BasicConstraints(ca=True, path_length=0)
    assert certificate.get_extension_for_class(BasicConstraints).value == BasicConstraints(ca=False, path_length=None)
    assert not certificate.get_extension_for_class(KeyUsage).value.key_cert_sign
    assert [usage.dotted_string for usage in certificate.get_extension_for_class(ExtendedKeyUsage).value] == [
        "1.3.6.1.5.5.7.3.1"  # serverAuth
    ]


def test_the_authority_lasts_ten_years_and_the_certificate_two(server: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for name, days in (("ca.crt", 3650), ("server.crt", 730)):
        certificate = certificates.read_certificate(server / name)
        assert abs(certificate.not_valid_after_utc - now - datetime.timedelta(days=days)) < datetime.timedelta(hours=1)
        # Clocks differ a little.
        assert datetime.timedelta(minutes=2) < now - certificate.not_valid_before_utc < datetime.timedelta(hours=1)


def test_a_private_key_is_its_owners_alone_from_the_moment_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, tuple[int, int]] = {}
    real = os.open

    def seen(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        made[Path(path).name] = (flags, mode)
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", seen)
    before = os.umask(0)
    try:
        certificates.make_authority(tmp_path, "a test")
        certificates.make_server_certificate(tmp_path, ["localhost"])
        certificates.make_node_key(tmp_path / "ann.key")
    finally:
        os.umask(before)
    for name in ("ca.key", "server.key", "ann.key"):
        flags, mode = next(how for made_name, how in made.items() if name in made_name)
        assert (mode, flags & os.O_EXCL) == (0o600, os.O_EXCL)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca.crt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("there", ["ca.key", "ca.crt", "server.key", "server.crt", "ann.key", "ann.key.pub"])
def test_nothing_is_overwritten_and_no_half_of_a_pair_is_made(tmp_path: Path, server: Path, there: str) -> None:
    if there.startswith("server"):
        for name in ("ca.key", "ca.crt"):
            shutil.copy(server / name, tmp_path)
    (tmp_path / there).write_text("mine")
    before = sorted(file.name for file in tmp_path.iterdir())
    make = {
        "ca": lambda: certificates.make_authority(tmp_path, "a test"),
        "server": lambda: certificates.make_server_certificate(tmp_path, ["localhost"]),
        "ann": lambda: certificates.make_node_key(tmp_path / "ann.key"),
    }[there.split(".")[0]]
    with pytest.raises(ConfigError, match=f"{there} exists already"):
        make()
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert (tmp_path / there).read_text() == "mine"


def test_an_authority_that_is_missing_or_has_another_key_signs_nothing(copied: Path, tmp_path: Path) -> None:
    for name in ("server.key", "server.crt"):
        (copied / name).unlink()
    certificates.make_authority(tmp_path, "another")
    shutil.copy(tmp_path / "ca.key", copied / "ca.key")
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of ca\.crt"):
        certificates.make_server_certificate(copied, ["localhost"])
    (copied / "ca.key").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        certificates.make_server_certificate(copied, ["localhost"])
    assert not (copied / "server.key").exists()


def test_a_name_that_is_none_is_an_error_that_names_it(copied: Path) -> None:
    for name in ("server.key", "server.crt"):
        (copied / name).unlink()
    with pytest.raises(ConfigError, match="Ünder"):
        certificates.make_server_certificate(copied, ["Ünder.example"])


def test_a_renewed_certificate_has_a_new_key_the_old_names_and_further_ones(copied: Path) -> None:
    before = (copied / "server.key").read_bytes()
    certificates.renew_server_certificate(copied, ["new.example"])
    assert certificates.hosts_of(certificates.read_certificate(copied / "server.crt")) == [*HOSTS, "new.example"]
    assert (copied / "server.key.old").read_bytes() == before != (copied / "server.key").read_bytes()
    connect(copied, copied / "ca.crt", "new.example")


def test_a_certificate_that_cannot_be_renewed_stays(copied: Path) -> None:
    before = (copied / "server.crt").read_bytes()
    (copied / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key"):
        certificates.renew_server_certificate(copied)
    assert (copied / "server.crt").read_bytes() == before
    connect(copied, copied / "ca.crt", "localhost")


def test_flower_takes_an_organisations_key(tmp_path: Path) -> None:
    certificates.make_node_key(tmp_path / "ann.key")
    key = serialization.load_ssh_private_key((tmp_path / "ann.key").read_bytes(), None)  # as flower-supernode does
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert serialization.load_pem_public_key(try_load_public_key(tmp_path / "ann.key.pub")) == key.public_key()
    assert certificates.read_node_key(tmp_path / "ann.key").public_key() == key.public_key()
    assert certificates.read_public_key(tmp_path / "ann.key.pub") == key.public_key()


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen")
def test_a_fingerprint_is_what_ssh_keygen_shows(tmp_path: Path) -> None:
    certificates.make_node_key(tmp_path / "ann.key")
    shown = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "ann.key.pub")], capture_output=True, text=True).stdout
    mark = certificates.key_fingerprint(certificates.read_public_key(tmp_path / "ann.key.pub"))
    assert shown.split() == ["384", mark, "ann", "(ECDSA)"]


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen")
def test_a_key_with_a_passphrase_is_refused_and_one_of_ssh_keygens_is_taken(tmp_path: Path) -> None:
    for name, word in (("open.key", ""), ("shut.key", "a long word")):
        make = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", word, "-f", str(tmp_path / name)]
        subprocess.run(make, check=True)
    assert certificates.read_node_key(tmp_path / "open.key").curve.name == "secp384r1"
    with pytest.raises(ConfigError, match="without passphrase"):
        certificates.read_node_key(tmp_path / "shut.key")


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_a_certificates_fingerprint_is_what_openssl_shows(server: Path) -> None:
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(server / "ca.crt")]
    shown = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    mark = certificates.certificate_fingerprint(certificates.read_certificate(server / "ca.crt"))
    assert shown.partition("=")[2] == mark


def test_keys_that_flower_would_refuse_are_named(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    private = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = other.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    for content, match in ((private, "NIST curves"), (b"nonsense", "no private key")):
        (tmp_path / "a.key").write_bytes(content)
        with pytest.raises(ConfigError, match=match):
            certificates.read_node_key(tmp_path / "a.key")
    for content, match in ((public, "NIST curves"), (private, "no public key"), (b"", "no public key")):
        (tmp_path / "a.pub").write_bytes(content)
        with pytest.raises(ConfigError, match=match):
            certificates.read_public_key(tmp_path / "a.pub")
    for read in (certificates.read_node_key, certificates.read_public_key, certificates.read_certificate):
        with pytest.raises(ConfigError, match="there is no such file"):
            read(tmp_path / "absent")


def test_validity_warns_thirty_days_before_and_refuses_outside(server: Path) -> None:
    """The server's certificate is good for two years of 365 days, the authority's for ten."""
    certificate = certificates.read_certificate(server / "server.crt")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert certificates.check_validity(server, ends - datetime.timedelta(days=30)) == []
    (warning,) = certificates.check_validity(server, ends - datetime.timedelta(days=29, hours=1))
    assert "29 days" in warning
    assert f"fedrlvr superlink renew {server}" in warning
    with pytest.raises(ConfigError, match="superlink renew"):
        certificates.check_validity(server, ends)
    with pytest.raises(ConfigError, match="clock"):
        certificates.check_validity(server, begins - datetime.timedelta(seconds=1))


def test_an_expired_authority_needs_a_new_superlink(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ca.key", "ca.crt", "server.key", "server.crt"):
        (copied / name).unlink()
    monkeypatch.setattr(certificates, "AUTHORITY_YEARS", 1)
    certificates.make_authority(copied, "short")
    certificates.make_server_certificate(copied, HOSTS)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=400)
    with pytest.raises(ConfigError, match=r"ca\.crt.*superlink init"):
        certificates.check_validity(copied, later)
