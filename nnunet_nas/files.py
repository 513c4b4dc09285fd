"""Files that survive a kill, a full disk and a second writer: atomic replacement and advisory locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nnunet_nas.errors import FULL, DataProblem, EnvironmentProblem

# Python's own limit is a thousand, of which copying and comparing take several for every level.
_DEEPEST = 50
_PAUSE_SECONDS = 0.02
_RECENT_SECONDS = 2.0


def replace_file(path: Path, content: bytes, *, last_check: Callable[[], None] = lambda: None) -> None:
    """Writes `content` to `path` so that a reader sees either the old file or the new one, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed. A symbolic link is
    followed (the file that it points to is replaced). An existing file keeps its permissions, access control list,
    extended attributes and, if we are a member of it, its group; a new one gets what the folder gives to new files.

    Args:
        path: the file.
        content: its new content.
        last_check: called when the rename alone is left; what it raises leaves the old file.

    Raises:
        EnvironmentProblem: no permission or no space; the old file is as it was and no temporary file is left.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not os.access(target, os.W_OK):
        # Renaming needs permission for the folder only; a file that its owner closed is not ours to replace.
        raise _cannot_write(target, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    try:
        handle, temporary = _create_beside(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            _keep_group(temporary, target)
            _keep_attributes(temporary, target)
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        last_check()
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _create_beside(target: Path) -> tuple[int, Path]:
    """A temporary file: closed until it is as open as the old file, or as the system opens new ones."""
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if target.exists() else 0o666), path


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Removes temporary files that killed writers left; only for who holds the lock that every writer there takes.

    Args:
        folder: where.
        name: of the file that was being written; `*` for all.
    """
    for path in folder.glob(f".{name}.????????.tmp"):
        # Another user's, say: it does no harm but take room.
        with contextlib.suppress(OSError):
            path.unlink()


def read_json(path: Path, mend: str, *, patience: float = 0) -> Any:
    """Parses a JSON file.

    Args:
        path: the file.
        mend: what the user can do if the file is missing or broken, ends the error message.
        patience: seconds to wait for who is just writing the file in place, as nnU-Net does.

    Raises:
        DataProblem: missing, truncated, not JSON, or nested deeper than anything that is read here.
        EnvironmentProblem: not readable.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return _parsed(path)
        except FileNotFoundError as error:
            raise DataProblem(f"{path} does not exist: {mend}") from error
        except OSError as error:
            raise EnvironmentProblem(f"cannot read {path} ({error.strerror}): make it readable for you") from error
        except (ValueError, RecursionError) as error:  # json: not JSON, a number of thousands of digits; too deep
            if _just_written(path) and time.monotonic() < deadline:
                time.sleep(_PAUSE_SECONDS)
                continue
            raise DataProblem(f"{path} is not valid JSON ({error}): {mend}") from error


def _parsed(path: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    level = [content]
    for _ in range(_DEEPEST):
        level = [part for item in level if isinstance(item, (dict, list)) for part in _parts(item)]
        if not level:
            return content
    raise RecursionError(f"nested deeper than {_DEEPEST} levels")


def _parts(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def _just_written(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime < _RECENT_SECONDS
    return True


def require_writable(folder: Path) -> None:
    """Fails at once if nothing can be written to `folder`, so that no hour of work ends at a closed door.

    A folder that does not exist is made.

    Raises:
        EnvironmentProblem: the folder is read-only or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise _cannot_write(folder, error) from error


@contextlib.contextmanager
def locked(path: Path, *, timeout: float, busy: str) -> Iterator[None]:
    """Holds an advisory lock next to `path`; the system releases it even if the process is killed.

    Args:
        path: what is protected; the lock file is `.<name>.lock` beside it.
        timeout: seconds to wait for another holder.
        busy: the message when the other holder stays longer.

    Raises:
        EnvironmentProblem: another process holds the lock, or the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    file = path.with_name(f".{path.name}.lock")
    mode = _lock_mode(file.parent)
    lock = FileLock(file, mode=mode)
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise EnvironmentProblem(busy) from error
    except OSError as error:
        if file.exists() and not os.access(file, os.W_OK):
            raise EnvironmentProblem(
                f"{file} is not writable for you: ask its owner to run chmod {mode:o} on it, or to remove it while "
                f"nobody writes there"
            ) from error
        raise _cannot_write(path, error) from error
    try:
        # A lock that was left by who did not share it.
        if hasattr(os, "getuid") and file.exists() and file.stat().st_uid == os.getuid():
            file.chmod(mode)
        yield
    finally:
        lock.release()


def _lock_mode(folder: Path) -> int:
    """Whoever may add files to the folder may take the lock; it has no content to protect."""
    try:
        shared = stat.S_IMODE(folder.stat().st_mode)
    except OSError:
        return 0o600
    return 0o600 | (0o060 if shared & stat.S_IWGRP else 0) | (0o006 if shared & stat.S_IWOTH else 0)


def _keep_group(temporary: Path, target: Path) -> None:
    """The group of the file to be replaced, where the system has groups and lets us."""
    if not hasattr(os, "chown"):
        return
    group = target.stat().st_gid
    if temporary.stat().st_gid != group:
        with contextlib.suppress(PermissionError):
            os.chown(temporary, -1, group)


def _keep_attributes(temporary: Path, target: Path) -> None:
    """Access control list and other extended attributes, where the system has them and lets us."""
    if not hasattr(os, "listxattr"):
        return
    with contextlib.suppress(OSError):
        kept = os.listxattr(target)
        for name in kept:
            with contextlib.suppress(OSError):
                os.setxattr(temporary, name, os.getxattr(target, name))
        # What the folder gives to new files, and the old one did not have.
        for name in set(os.listxattr(temporary)) - set(kept):
            with contextlib.suppress(OSError):
                os.removexattr(temporary, name)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    # The file is in place by now: a network file system that cannot do this must not turn success into an error.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> EnvironmentProblem:
    if error.errno in FULL:
        return EnvironmentProblem(f"no space left to write {path}: nothing was changed, free some space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentProblem(f"{path} cannot be written ({error.strerror}): make it writable for you")
    return EnvironmentProblem(f"cannot write {path} ({error.strerror or error}): check the disk and the folder")
