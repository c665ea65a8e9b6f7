"""Who said it, and that nothing was altered since: Ed25519 signatures, and item ids only the signer can make.

    id of an item = first 24 hex digits of HMAC-SHA256(item key, text)
    item key      = HMAC-SHA256(private key, "letheon item ids" || salt of the run)

A bare hash of a short text can be found by trying; without the private key an id cannot.

Source: RFC 8032 (Ed25519), RFC 2104 (HMAC).  Checked against: their test vectors, altered bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from letheon.errors import BadInput
from letheon.runs.folder import disk_errors, write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SALT_NAME = ".salt"
_ID_DIGITS = 24


@dataclass(frozen=True)
class Signature:
    """A signature and the key that checks it, both hexadecimal (64 and 128 digits)."""

    public_key: str
    signature: str


def key_path() -> Path:
    """Where the private key lies: `$LETHEON_HOME/key`, or `~/.config/letheon/key`."""
    home = os.environ.get("LETHEON_HOME")
    return (Path(home) if home else Path.home() / ".config" / "letheon") / "key"


def ensure_key() -> tuple[Path, bool]:
    """Make the private key if there is none. Returns its path, and whether it was made just now."""
    path = key_path()
    if path.exists():
        return path, False
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".key.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was faster: its key is the key
                os.link(temporary, path)
                return path, True
        finally:
            temporary.unlink(missing_ok=True)
    return path, False


def public_key() -> str:
    """The public key, 64 hexadecimal digits."""
    return _private_key().public_key().public_bytes_raw().hex()


def sign(data: bytes) -> Signature:
    """Sign `data` with this user's key, which is made on first use."""
    key = _private_key()
    return Signature(key.public_key().public_bytes_raw().hex(), key.sign(data).hex())


def verify(data: bytes, signature: Signature) -> bool:
    """Whether the signature is over exactly `data`, by the key it names. Whose key: see `fingerprint`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public_key: str) -> str:
    """What people compare: the first 32 hexadecimal digits of SHA-256 over the public key's 32 bytes."""
    try:
        return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]
    except ValueError:
        raise BadInput(f"{public_key!r} is not a public key. It has 64 hexadecimal digits.") from None


def keyed_hash(text: str, key: bytes) -> str:
    """An id of `text`, 24 hexadecimal digits, that cannot be guessed or tested without `key`."""
    return hmac.new(key, text.encode("utf-8"), hashlib.sha256).hexdigest()[:_ID_DIGITS]


def item_key(run: Path) -> bytes:
    """The 32-byte key of a run's item ids: the same on every re-run, another for every run and every user."""
    salt_path = run / SALT_NAME
    if not salt_path.exists():
        write_text(salt_path, secrets.token_hex(32) + "\n")
    try:
        salt = bytes.fromhex(salt_path.read_text(encoding="ascii"))
    except ValueError:
        salt = b""
    if len(salt) != 32:
        raise BadInput(f"{salt_path} is damaged (not 64 hexadecimal digits). Restore it, or give another --out.")
    return hmac.new(_private_key().private_bytes_raw(), b"letheon item ids" + salt, hashlib.sha256).digest()


def _private_key() -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path, _ = ensure_key()
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise BadInput(f"{path} can be read by others (mode {mode:04o}). Run: chmod 600 {path}")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path} is no Ed25519 private key in PEM form. Restore it, or move it away for a new one.")
    return key
