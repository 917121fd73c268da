"""Keys and certificates: the SuperLink's own authority and certificate, an organisation's key pair.

The authority signs one certificate, the SuperLink's, and nothing else; organisations are known by their public keys.
Nothing is ever overwritten, and a private key's file is its owner's alone from the moment it exists.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import inspect
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrlvr.errors import ConfigError
from fedrlvr.files import new_file

AUTHORITY_YEARS, SERVER_YEARS = 10, 2
WARNING_DAYS = 30
"""Days before a certificate's end from which on the SuperLink warns."""
_NAMED_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""What OpenSSH has; Flower takes them too."""
_CURVES_ONLY = "Flower takes keys on NIST curves only. Make one with ssh-keygen -t ecdsa -b 384."
_SLACK = datetime.timedelta(minutes=5)  # clocks differ


def make_authority(directory: Path, name: str) -> None:
    """Make ca.key and ca.crt of an authority named `name`.

    Raises:
        ConfigError: one of them exists.
    """
    key_file, file = _absent(directory / "ca.key", directory / "ca.crt")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage("key_cert_sign", "crl_sign")
    certificate = (
        _begun(subject, subject, key.public_key(), AUTHORITY_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(key_file, key, file, certificate)


def make_server_certificate(directory: Path, hosts: Sequence[str]) -> None:
    """Make server.key and server.crt, signed by the directory's authority, for these DNS names and IP addresses.

    Raises:
        ConfigError: one of them exists, or there is no authority.
    """
    key_file, file = _absent(directory / "server.key", directory / "server.crt")
    try:
        signer = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        authority = read_certificate(directory / "ca.crt")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{directory}: ca.key and ca.crt, which sign the certificate, cannot be read: {error}"
        ) from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise ConfigError(f"{directory}: ca.key is not the key of ca.crt. Restore the pair from a backup.")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SuperLink")])
    certificate = (
        _begun(subject, authority.subject, key.public_key(), SERVER_YEARS, signer.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)]), False)
        .sign(signer, hashes.SHA256())
    )
    _write_pair(key_file, key, file, certificate)


def renew_server_certificate(directory: Path, further: Sequence[str] = ()) -> None:
    """Make a new server.key and server.crt, for the old names and further ones; the old files become server.*.old.

    Raises:
        ConfigError: there is no certificate or no authority.
    """
    hosts = [*hosts_of(read_certificate(directory / "server.crt")), *further]
    moved = [(directory / name, directory / f"{name}.old") for name in ("server.key", "server.crt")]
    try:
        for file, old in moved:
            file.replace(old)
        make_server_certificate(directory, hosts)
    except (ConfigError, OSError) as error:
        for file, old in moved:
            if old.exists() and not file.exists():
                old.replace(file)
        raise error if isinstance(error, ConfigError) else ConfigError(f"{directory}: {error}") from error


def make_node_key(path: Path) -> None:
    """Make an organisation's private key in OpenSSH's format, with its public key beside it in <path>.pub.

    Raises:
        ConfigError: one of them exists.
    """
    key_file, public_file = _absent(path, path.with_name(path.name + ".pub"))
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _write(key_file, private, 0o600)
    _write(public_file, public_line(key.public_key(), path.stem), 0o644)


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an organisation's private key from its file.

    Raises:
        ConfigError: there is none, or it is none that Flower takes; the text names the file.
    """
    data = _read(path, "`fedrlvr site init` makes a key pair.")
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no private key of OpenSSH without passphrase: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _NAMED_CURVES):
        raise ConfigError(f"{path}: {_CURVES_ONLY}")
    return key


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key from a file such as <name>.key.pub.

    Raises:
        ConfigError: there is none, or it is none that Flower takes; the text names the file.
    """
    data = _read(path, "Ask the organisation for its <name>.key.pub.")
    try:
        key = serialization.load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no public key of OpenSSH. Ask the organisation for its <name>.key.pub.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _NAMED_CURVES):
        raise ConfigError(f"{path}: {_CURVES_ONLY}")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """Read the first certificate in a file.

    Raises:
        ConfigError: there is none; the text names the file.
    """
    remedy = "It is the ca.crt that the SuperLink's operator has."
    try:
        return x509.load_pem_x509_certificate(_read(path, remedy))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no certificate (PEM). {remedy}") from None


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}). {remedy}") from None


def check_validity(directory: Path, now: datetime.datetime) -> list[str]:
    """Warnings about the certificates of a SuperLink that expire within `WARNING_DAYS` days.

    now: with a time zone.

    Raises:
        ConfigError: one is expired or not valid yet, or cannot be read; organisations would refuse to connect. The text
            names the command that renews it.
    """
    warnings = []
    for file, remedy in (
        ("server.crt", f"Renew it by `fedrlvr superlink renew {directory}`, then start the SuperLink again."),
        ("ca.crt", "Make a new SuperLink by `fedrlvr superlink init`, and give its ca.crt to every organisation."),
    ):
        certificate = read_certificate(directory / file)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now < begins:
            raise ConfigError(
                f"{directory / file} is valid from {begins:%Y-%m-%d} on only. Check this machine's clock."
            )
        if now >= ends:
            raise ConfigError(f"{directory / file} has been expired since {ends:%Y-%m-%d}. {remedy}")
        if (days := (ends - now).days) < WARNING_DAYS:
            warnings.append(f"{directory / file} expires in {days} days, on {ends:%Y-%m-%d}. {remedy}")
    return warnings


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """DNS names and IP addresses a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Fingerprint of a public key, as `ssh-keygen -l` shows it."""
    blob = base64.b64decode(public_line(key, "").split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """Fingerprint of a certificate, as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def public_line(key: ec.EllipticCurvePublicKey, comment: str) -> bytes:
    """Public key as one line of OpenSSH's format."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line + (b" " + comment.encode() if comment else b"") + b"\n"


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    years: int,
    signer: ec.EllipticCurvePublicKey | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + datetime.timedelta(days=365 * years))
        # Both identifiers: a strict verifier (Python's own from 3.13 on) asks for them.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer or key), critical=False)
    )


def _usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in inspect.signature(x509.KeyUsage).parameters})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"{host!r} is neither an IP address nor a host name in ASCII.") from None


def _absent(*files: Path) -> tuple[Path, ...]:
    for file in files:
        if file.exists():
            raise ConfigError(
                f"{file} exists already and is never overwritten: others may rely on it. Give another directory, or "
                "move the file away yourself."
            )
    return files


def _write_pair(key_file: Path, key: ec.EllipticCurvePrivateKey, file: Path, certificate: x509.Certificate) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key_file, private, 0o600)
    _write(file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        new_file(path, data, mode)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
