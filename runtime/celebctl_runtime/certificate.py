"""The certificate that signs content credentials: the user's own, or one that celebctl generates for this machine.

A generated certificate says of itself that it is self-signed and that its holder's identity is not verified: it shows
that a picture was not changed since it was signed here, not who drew it. Profile of both certificates: C2PA technical
specification 2.2, section 14.5.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import atomic_write, read_regular

SELF_SIGNED = "celebctl (self-signed, identity not verified)"  # organisation in the certificate
MAX_BYTES = 1 << 20
_YEARS = 10


@dataclass(frozen=True)
class SigningKey:
    """A private key and the chain that certifies it.

    Attributes:
        chain: PEM certificates, the signer's first.
        private_key: PEM, PKCS 8, not encrypted.
        algorithm: C2PA's name: "es256", "es384", "es512", "ps256" or "ed25519".
    """

    chain: bytes
    private_key: bytes
    algorithm: str

    def __repr__(self) -> str:
        return f"SigningKey(algorithm={self.algorithm!r})"  # never the private key


def load_key(certificate: Path, private_key: Path) -> SigningKey:
    """The user's own certificate chain and private key.

    Raises:
        UsageError: A file is missing, not PEM, encrypted, or the two do not belong together.
    """
    chain, key = (_read(path) for path in (certificate, private_key))
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        certificates = x509.load_pem_x509_certificates(chain)
        private: Any = serialization.load_pem_private_key(key, password=None)
        form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        matching = certificates[0].public_key().public_bytes(*form) == private.public_key().public_bytes(*form)
        algorithm = _algorithm(private)
    except (ValueError, TypeError, IndexError) as error:
        raise _unusable(certificate, private_key, str(error) or type(error).__name__) from error
    if not matching:
        raise _unusable(certificate, private_key, "the key is not the certificate's")
    if algorithm is None:
        raise _unusable(certificate, private_key, "C2PA takes EC keys on P-256, P-384 and P-521, RSA and Ed25519")
    pem = serialization.Encoding.PEM
    plain = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return SigningKey(b"".join(one.public_bytes(pem) for one in certificates), plain, algorithm)


def local_key(path: Path) -> SigningKey:
    """The key of this machine, generated the first time: P-256, valid ten years, readable by its owner only.

    Args:
        path: The PEM file with the private key and, after it, the chain.

    Raises:
        SetupError: The file cannot be written.
        UsageError: It is damaged.
    """
    if not path.is_file():
        content = _generate()
        try:
            atomic_write(path, lambda temporary: _write_private(temporary, content), overwrite=False)
        except UsageError as error:
            if error.reason != "file_exists":
                raise  # else another process has generated one meanwhile
    return load_key(path, path)


def load_anchor(path: Path) -> bytes:
    """The PEM certificates in a file, without anything else in it.

    Raises UsageError: it is missing (reason "certificate_missing"), or has no certificate ("certificate_unusable").
    """
    import re

    found = re.findall(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", _read(path))
    if not found:
        raise UsageError(f"{path} has no certificate", "use a PEM file", reason="certificate_unusable", path=path)
    return b"\n".join(found)


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _generate() -> bytes:
    """The signer's key, and a chain of two, because C2PA forbids a signer who certifies themselves."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)  # for clocks that are behind

    def builder(common_name: str, public_key: Any) -> Any:
        def name(text: str) -> Any:
            organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, SELF_SIGNED)
            return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, text)])

        made = x509.CertificateBuilder(name("this machine"), name(common_name), public_key)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(start)
        made = made.not_valid_after(start + datetime.timedelta(days=365 * _YEARS))
        return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)

    def usage(**allowed: bool) -> Any:
        names = (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        )  # fmt: skip
        return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})

    root = builder("this machine", authority.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = root.add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
    leaf = builder("a user of this machine", signer.public_key())
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(usage(digital_signature=True), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    leaf = leaf.add_extension(issuer, critical=False)
    chain = [one.sign(authority, hashes.SHA256()) for one in (leaf, root)]
    pem = serialization.Encoding.PEM
    key = signer.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key + b"".join(one.public_bytes(pem) for one in chain)


def _algorithm(key: Any) -> str | None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: "es256", 384: "es384", 521: "es512"}.get(key.key_size)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    return "ps256" if isinstance(key, rsa.RSAPrivateKey) else None


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}", "check the path", reason="certificate_missing", path=path
        ) from error


def _unusable(certificate: Path, private_key: Path, why: str) -> UsageError:
    return UsageError(
        f"{certificate} and {private_key} cannot sign: {why}",
        "use PEM files: the chain, the signer's certificate first, and its private key without a password",
        reason="certificate_unusable",
        certificate=certificate,
        private_key=private_key,
    )
