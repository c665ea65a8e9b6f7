"""Atomic writing, locks and hashes: after any fault the old state stands, whole."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from letheon.errors import BadInput, CannotFinish
from letheon.runs import folder as folders
from letheon.runs.folder import (
    append_line,
    disk_errors,
    lock,
    remove_leftovers,
    replacing_folder,
    sha256_file,
    sha256_folder,
    write_json,
    write_text,
)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, code: int) -> None:
    """Let a function of the operating system fail as a disk would."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folders.os, function, fail)


def test_text_and_json_are_written_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "é\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\n".encode()
    write_json(tmp_path / "a.json", {"b": 0.1, "a": ["é"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "b": 0.1,\n "a": [\n  "é"\n ]\n}\n'
    assert names(tmp_path) == ["a.json", "new"]


def test_a_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_is_refused_and_the_old_json_stands(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(CannotFinish, match=r"a\.json was not written: .*NaN or infinite"):
        write_json(tmp_path / "a.json", [number])
    assert (tmp_path / "a.json").read_text() == "[\n 1\n]\n"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "No space left on device. The disk is full. Free some space"),
        (errno.EDQUOT, "Your disk quota is used up"),
        (errno.EROFS, "This file system is read-only. Give another --out"),
        (errno.EACCES, "You may not write here. Change the permissions"),
    ],
)
def test_a_disk_that_refuses_names_the_file_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    write_text(tmp_path / "a.txt", "old")
    refuse(monkeypatch, "fsync", code)
    with pytest.raises(CannotFinish, match=re.escape(remedy)) as caught:
        write_text(tmp_path / "a.txt", "new")
    assert str(tmp_path / "a.txt") in str(caught.value)
    assert caught.value.exit_code == 4
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_told_by_safetensors_as_text_is_understood(tmp_path: Path) -> None:
    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(CannotFinish, match="The disk is full"), disk_errors(tmp_path):
        raise RuntimeError(told)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "missing").read_text()
    with pytest.raises(RuntimeError, match="os error 2"), disk_errors(tmp_path):
        raise RuntimeError("(os error 2)")


def test_lines_are_appended_and_a_torn_one_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, '{"step": 1}')
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')  # what a kill leaves
    append_line(path, '{"step": 2}')
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_torn_line_longer_than_one_read_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"a\n" + b"b" * 200_000)
    append_line(path, "c")
    assert path.read_bytes() == b"a\nc\n"
    path.write_bytes(b"b" * 65536)
    append_line(path, "c")
    assert path.read_bytes() == b"c\n"


def test_a_line_on_a_full_disk_leaves_the_lines_before_it(tmp_path: Path) -> None:
    """A limit on the size of files stops the write in the middle of the line, as a full disk does."""
    path = tmp_path / "metrics.jsonl"
    append_line(path, "first")
    done = run_python(
        """
        import resource, signal, sys
        from pathlib import Path
        from letheon.runs.folder import append_line
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        try:
            append_line(Path(sys.argv[1]), "x" * 100)
        except OSError as error:
            print(error.errno)
        """,
        path,
    )
    assert done.stdout == f"{errno.EFBIG}\n", done.stderr
    assert path.read_text() == "first\n"


def test_a_folder_is_swapped_in_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("one", "two"):
        with replacing_folder(target) as new:
            (new / "sub").mkdir()
            (new / "sub" / text).write_text(text)
            assert target.exists() == (text == "two")
    assert names(target / "sub") == ["two"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_inside_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "model"
    with replacing_folder(target) as new:
        (new / "a").write_text("old")

    def attempt() -> None:
        with replacing_folder(target) as new:
            (new / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        attempt()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("moment", ["write", "swap"])
def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    target = tmp_path / "model"
    with replacing_folder(target) as new:
        (new / "a").write_text("old")
    if moment == "swap":
        refuse(monkeypatch, "fsync", errno.ENOSPC)

    def write() -> None:
        with replacing_folder(target) as new:
            (new / "a").write_text("new")
            if moment == "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotFinish, match="model could not be written: No space left"):
        write()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_swap_that_fails_half_way_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "model", os.rename
    with replacing_folder(target) as new:
        (new / "a").write_text("old")

    def second_fails(source: Path, goal: Path) -> None:
        if Path(source).name == ".model.new":
            raise OSError(errno.EIO, "broken")
        rename(source, goal)

    monkeypatch.setattr(folders.os, "rename", second_fails)
    with pytest.raises(OSError, match="broken"), replacing_folder(target) as new:
        (new / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from letheon.runs import folder
    moment, target = sys.argv[1], Path(sys.argv[2])
    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    rename = os.rename
    def renamed(source, goal):
        if moment == "before" and Path(source).name == "model":
            kill()
        rename(source, goal)
        if moment == "between" or (moment == "after" and Path(goal).name == "model"):
            kill()
    folder.os.rename = renamed
    with folder.replacing_folder(target) as new:
        (new / "a").write_text("new")
        if moment == "inside":
            kill()
"""


@pytest.mark.parametrize(
    ("moment", "content"), [("inside", "old"), ("before", "old"), ("between", "old"), ("after", "new")]
)
def test_after_a_kill_the_folder_is_the_old_or_the_new_one(tmp_path: Path, moment: str, content: str) -> None:
    target = tmp_path / "model"
    with replacing_folder(target) as new:
        (new / "a").write_text("old")
    assert run_python(KILLED, moment, target).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) > 1, "the kill came too late to test anything"
    remove_leftovers(tmp_path)
    assert (target / "a").read_text() == content
    assert [name for name in names(tmp_path) if name != ".model.lock"] == ["model"]
    with replacing_folder(target) as new:  # the lock went with the process
        (new / "a").write_text("third")
    assert (target / "a").read_text() == "third"


def test_leftovers_of_files_go_and_other_hidden_files_stay(tmp_path: Path) -> None:
    for name in (".record.json.7-ab.tmp", ".salt", "visible.tmp"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".salt", "visible.tmp"]


def test_a_file_or_a_link_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(BadInput, match=f"{name} is a file or a link"), replacing_folder(tmp_path / name):
            pass
    assert names(tmp_path) == ["file", "link"]


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from letheon.runs.folder import lock
        with lock(Path(sys.argv[1])):
            print("entered")
    """
    with lock(tmp_path):
        refused = run_python(code, tmp_path)
    assert f"{tmp_path} is in use by process {os.getpid()}. Wait until it ends" in refused.stderr
    assert "BadInput" in refused.stderr and refused.stdout == ""
    assert run_python(code, tmp_path).stdout == "entered\n"


def test_the_lock_ends_with_an_exception_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "run"):
        raise ZeroDivisionError
    with lock(tmp_path / "run"):
        pass
    assert names(tmp_path / "run") == []


def test_a_file_hash_is_that_of_its_bytes_and_follows_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same modification time
    assert sha256_file(path) != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_young_file_is_read_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of a coarse clock a file can change and keep its size and all its times."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    sha256_file(path)
    monkeypatch.setattr(folders.hashlib, "file_digest", lambda *_: hashlib.sha256(b"read again"))
    assert sha256_file(path) == hashlib.sha256(b"read again").hexdigest()


def test_a_settled_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    monkeypatch.setattr(folders, "_SETTLED_S", -1.0)
    first = sha256_file(path)
    monkeypatch.setattr(folders.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert sha256_file(path) == first


def test_a_settled_file_altered_under_its_old_times_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    monkeypatch.setattr(folders, "_SETTLED_S", -1.0)
    first, before = sha256_file(path), path.stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_file(path) != first


def model_folder(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "config.json").write_text("{}")
    (path / "sub" / "tokenizer.json").write_text("{}")
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "sub/tokenizer.json"])
def test_a_model_hash_changes_with_each_file_that_makes_the_model(tmp_path: Path, name: str) -> None:
    model = model_folder(tmp_path / "m")
    before = sha256_folder(model)
    (model / name).write_text("altered")
    assert sha256_folder(model) != before


def test_a_model_hash_tells_names_and_ignores_place_logs_and_hidden_files(tmp_path: Path) -> None:
    first, second = model_folder(tmp_path / "a"), model_folder(tmp_path / "b")
    (first / "metrics.jsonl").write_text("{}\n")
    (first / "README.md").write_text("card")
    (first / ".cache").mkdir()
    (first / ".cache" / "x.json").write_text("{}")
    assert sha256_folder(first) == sha256_folder(second)
    (second / "config.json").rename(second / "generation_config.json")
    assert sha256_folder(first) != sha256_folder(second)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(BadInput, match=r"holds no model file.*config\.json"):
        sha256_folder(tmp_path)
