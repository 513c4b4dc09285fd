"""Files that survive a kill, a full disk and a second writer: atomic replacement and advisory locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_nas.errors import DataProblem, EnvironmentProblem


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees either the old file or the new one, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed. A symbolic link is
    followed (the file that it points to is replaced); permissions and group of an existing file are kept, the group
    only by a member of it.

    Raises:
        EnvironmentProblem: no permission or no space; the old file is as it was and no temporary file is left.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not os.access(target, os.W_OK):
        # Renaming needs permission for the folder only; a file that its owner closed is not ours to replace.
        raise _cannot_write(target, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise _cannot_write(target, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _keep_group(temporary, target)
        temporary.chmod(_mode_for(target))
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


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


def read_json(path: Path, mend: str) -> Any:
    """Parses a JSON file.

    Args:
        path: the file.
        mend: what the user can do if the file is missing or broken, ends the error message.

    Raises:
        DataProblem: missing, truncated or not JSON.
        EnvironmentProblem: not readable.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataProblem(f"{path} does not exist: {mend}") from error
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path} ({error.strerror}): make it readable for you") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataProblem(f"{path} is not valid JSON ({error}): {mend}") from error


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


def _mode_for(target: Path) -> int:
    """The permissions of the file to be replaced, or those that a plain `open` would give a new one."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _lock_mode(folder: Path) -> int:
    """Whoever may add files to the folder may take the lock; it has no content to protect."""
    try:
        shared = stat.S_IMODE(folder.stat().st_mode)
    except OSError:
        return 0o600
    return 0o600 | (0o060 if shared & stat.S_IWGRP else 0) | (0o006 if shared & stat.S_IWOTH else 0)


def _keep_group(temporary: Path, target: Path) -> None:
    """The group of the file to be replaced, where the system has groups and lets us."""
    if not hasattr(os, "chown") or not target.exists():
        return
    group = target.stat().st_gid
    if temporary.stat().st_gid != group:
        with contextlib.suppress(PermissionError):
            os.chown(temporary, -1, group)


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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(f"no space left to write {path}: nothing was changed, free some space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentProblem(f"{path} cannot be written ({error.strerror}): make it writable for you")
    return EnvironmentProblem(f"cannot write {path} ({error.strerror or error}): check the disk and the folder")
