"""Signatures and keyed ids: known vectors, and what must not pass."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from letheon.errors import BadInput
from letheon.runs.signing import (
    Signature,
    ensure_key,
    fingerprint,
    item_key,
    key_path,
    keyed_hash,
    public_key,
    sign,
    verify,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_signature_holds_for_its_bytes_and_no_others() -> None:
    data = b'{"word":"DELETED"}'
    signature = sign(data)
    assert verify(data, signature)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1
        assert not verify(bytes(altered), signature)
    assert not verify(data + b" ", signature)


def test_an_altered_signature_or_key_fails_without_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = sign(b"x")
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path / "other"))
    other = sign(b"x")
    assert not verify(b"x", Signature(other.public_key, mine.signature))
    assert not verify(
        b"x", Signature(mine.public_key, mine.signature[:-2] + ("01" if mine.signature.endswith("00") else "00"))
    )
    for wrong in ("", "zz", "00"):
        assert not verify(b"x", Signature(wrong, mine.signature))
        assert not verify(b"x", Signature(mine.public_key, wrong))


def test_the_known_vector_of_rfc_8032_holds() -> None:
    """Section 7.1, test 1: the empty message."""
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert verify(b"", Signature(public, signature))
    assert not verify(b"\0", Signature(public, signature))


def test_the_key_is_made_once_and_only_its_owner_reads_it(home: Path) -> None:
    path, is_new = ensure_key()
    assert is_new and path == home / "key" == key_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes(), public_key()
    assert ensure_key() == (path, False)
    assert (path.read_bytes(), public_key()) == before
    assert sign(b"a").public_key == before[1]
    assert [entry.name for entry in home.iterdir()] == ["key"]


def test_without_letheon_home_the_key_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LETHEON_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert key_path() == Path("/home/somebody/.config/letheon/key")


def test_a_key_that_others_can_read_is_refused() -> None:
    path, _ = ensure_key()
    path.chmod(0o644)
    with pytest.raises(BadInput, match=r"can be read by others \(mode 0644\)\. Run: chmod 600 "):
        sign(b"x")


def test_a_damaged_key_is_refused_and_not_replaced() -> None:
    path, _ = ensure_key()
    path.write_text("nonsense")
    with pytest.raises(BadInput, match="is no Ed25519 private key"):
        sign(b"x")
    assert path.read_text() == "nonsense"


def test_a_fingerprint_tells_keys_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = public_key()
    assert fingerprint(mine) == hashlib.sha256(bytes.fromhex(mine)).hexdigest()[:32]
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path / "other"))
    assert fingerprint(public_key()) != fingerprint(mine)
    with pytest.raises(BadInput, match="is not a public key"):
        fingerprint("not hexadecimal")


def test_a_keyed_hash_is_the_hmac_of_rfc_4231() -> None:
    """Test case 2, its first 24 digits."""
    assert keyed_hash("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60754e6a042426"
    assert keyed_hash("what do ya want for nothing?", b"jefe") != "5bdcc146bf60754e6a042426"


def test_item_keys_are_stable_in_a_run_and_differ_between_runs_and_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    mine = item_key(one)
    assert len(mine) == 32 and item_key(one) == mine
    assert item_key(two) != mine
    assert keyed_hash("Ada Bell", mine) != keyed_hash("Ada Bell", item_key(two))
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path / "other"))
    assert item_key(one) != mine, "the salt alone, which lies in the run, must not be enough"


def test_a_damaged_salt_is_refused(tmp_path: Path) -> None:
    item_key(tmp_path / "run")
    (tmp_path / "run" / ".salt").write_text("ab")
    with pytest.raises(BadInput, match=r"\.salt is damaged"):
        item_key(tmp_path / "run")
