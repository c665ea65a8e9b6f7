"""Files and folders that are either the old ones or the new ones, never a mixture, and what they hash to.

A file is written beside its place, flushed to the disk, and renamed over the old one. A folder is filled
beside its place, flushed, and swapped in by two renames; a kill between them is repaired on the next opening.
Everything unfinished is hidden (its name starts with a dot), and hidden files count in no hash.

Source: this project.  Checked against: exceptions and kills in every window, a full device, a second process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from letheon.errors import BadInput, CannotFinish

LOCK_NAME = ".lock"
MODEL_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".vocab"})
"""What makes a model folder the model it is: weights, configuration, tokenizer, chat template."""

_FULL = {
    errno.ENOSPC: "The disk is full. Free some space, or give another --out on a larger disk",
    errno.EDQUOT: "Your disk quota is used up. Free some space, or give another --out",
}
_REMEDIES = {
    **_FULL,
    errno.EROFS: "This file system is read-only. Give another --out on one that can be written",
    errno.EACCES: "You may not write here. Change the permissions of the folder, or give another --out",
    errno.EPERM: "You may not write here. Change the permissions of the folder, or give another --out",
    errno.ENOLCK: "This file system cannot lock files. Give another --out on a local disk",
    errno.EOPNOTSUPP: "This file system cannot lock files. Give another --out on a local disk",
}


# --- errors of the disk


@contextlib.contextmanager
def disk_errors(path: Path, *, remedies: Mapping[int, str] = MappingProxyType(_REMEDIES)) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into CannotFinish that names `path` and the remedy.

    Libraries written in Rust (safetensors) report such an error as text, "... (os error 28)"; that is
    understood too. Any error without a remedy passes unchanged.
    """
    try:
        yield
    except CannotFinish:
        raise
    except Exception as error:
        code = _errno(error)
        if code not in remedies:
            raise
        raise CannotFinish(
            f"{path} could not be written: {os.strerror(code)}. {remedies[code]}, then run the same command "
            "again. What stood there before is untouched."
        ) from error


def _errno(error: Exception) -> int:
    """The error number of the operating system, 0 if there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else 0


# --- files


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes its place when the block ends well, else it is removed.

    Raises CannotFinish when the disk refuses; the old file is then still there.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all. Raises CannotFinish when the disk refuses."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, obj: Any) -> None:
    """Write JSON in the order given, indented by one. NaN and infinity are refused: they are not JSON."""
    try:
        text = json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise CannotFinish(f"{path} was not written: {error}. A number in it is NaN or infinite.") from error
    write_text(path, text + "\n")


def append_line(path: Path, text: str) -> None:
    """Add one line and flush it. A line torn by an earlier kill, or by a full disk now, is taken away."""
    with disk_errors(path), open(path, "a+b", buffering=0) as file:
        whole = _end_of_last_whole_line(file)
        file.truncate(whole)
        line = text.encode("utf-8") + b"\n"
        try:
            written = file.write(line)
            if written < len(line):  # on a full disk a write may stop short; the next one says why
                file.write(line[written:])
        except OSError:
            file.truncate(whole)
            raise


def _end_of_last_whole_line(file: Any) -> int:
    """The position behind the last line end of an open binary file."""
    end = int(file.seek(0, os.SEEK_END))
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        cut = file.read(end - start).rfind(b"\n")
        if cut >= 0:
            return start + int(cut) + 1
        end = start
    return 0


# --- folders


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `target`; it takes its place when the block ends well.

    Until then the old content stands. Leftovers of a killed process are removed, or put back, on entry.
    Raises BadInput when `target` is a file or a link, or another process is writing it; CannotFinish when the
    disk refuses.
    """
    target = Path(os.path.abspath(target))
    if target.is_symlink() or target.is_file():
        raise BadInput(f"{target} is a file or a link, but a folder is to be written. Give another --out.")
    new, _ = _beside(target)
    with contextlib.ExitStack() as stack:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(target.parent / f".{target.name}.lock", what=target))
            _repair(target)
            new.mkdir()
        try:
            with disk_errors(target, remedies=_FULL):  # a forbidden path in the block is not this folder
                yield new
            with disk_errors(target):
                _swap_in(target)
        finally:
            _repair(target)


def _swap_in(target: Path) -> None:
    new, old = _beside(target)
    for path in [*new.rglob("*"), new]:
        _flush(path)
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    _flush(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Repair what a killed process left in `folder`. Call it only under the lock of whoever writes there."""
    for hidden in list(folder.glob(".*")):
        if hidden.name.endswith((".new", ".old")) and hidden.is_dir():
            _repair(folder / hidden.name[1:-4])
        elif hidden.name.endswith(".tmp"):
            hidden.unlink(missing_ok=True)


def _beside(target: Path) -> tuple[Path, Path]:
    return target.parent / f".{target.name}.new", target.parent / f".{target.name}.old"


def _repair(target: Path) -> None:
    """Put the old folder back if the swap stopped half way, and remove what is left of either."""
    new, old = _beside(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _flush(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk and not only in its cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- one writer at a time


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. A second one gets BadInput that names the process holding it.

    The lock goes with the process, however that ends, so no stale lock is ever left.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(folder / LOCK_NAME, what=folder))
        yield


@contextlib.contextmanager
def _held(path: Path, *, what: Path) -> Iterator[None]:
    handle = _take(path, what=what)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go, so that nobody holds a name that others cannot see
        os.close(handle)


def _take(path: Path, *, what: Path) -> int:
    """Open the lock file and take its lock; again, if its last holder removed the name in between."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            who = f"process {holder}" if holder else "another process"
            raise BadInput(f"{what} is in use by {who}. Wait until it ends, or give another --out.") from None
        except OSError:
            os.close(handle)
            raise
        if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
        os.close(handle)


# --- hashes

_KNOWN: dict[tuple[str, int, int, int, int], str] = {}
_SETTLED_S = 2.0
"""A file younger than this may change again and keep its times: clocks of file systems are coarse."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; remembered while path, size and times stay the same."""
    stat = path.stat()
    known_as = (os.path.abspath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if known_as in _KNOWN:
        return _KNOWN[known_as]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S:
        _KNOWN[known_as] = digest
    return digest


def sha256_folder(path: Path) -> str:
    """SHA-256 of a model folder: over sorted names and hashes of weights, configuration and tokenizer.

    Hidden files, model cards and logs do not count. Raises BadInput when nothing is left to hash.
    """
    files = [file for file in visible_files(path) if file.suffix in MODEL_SUFFIXES]
    if not files:
        raise BadInput(f"{path} holds no model file. A model folder has config.json and *.safetensors.")
    lines = [f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """All files below `folder`, sorted by relative name, without hidden ones and those in hidden folders."""
    found = [
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())
