"""A file is replaced whole or not at all, and only one process at a time writes it."""

import errno
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.files import locked, read_json, replace_file, require_writable

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534


def python(code, *arguments):
    """Starts Python with the package importable, standard input and output as pipes."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def ordinary_folder():
    """A folder of a user whom permissions bind: if the tests run as root, they step down for the test."""
    folder = Path(tempfile.mkdtemp())
    is_root = hasattr(os, "setresuid") and os.geteuid() == 0
    if is_root:
        # Import what locking needs while Python's own folders can be read.
        with locked(folder / "warm-up", timeout=0, busy="busy"):
            pass
        os.chown(folder, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield folder
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_a_new_file_is_written_with_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "plans.json", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "plans.json").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "plans.json").stat().st_mode) == 0o640


def test_an_existing_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "plans.json"
    path.write_bytes(b"old")
    path.chmod(0o604)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to any group")
def test_an_existing_file_keeps_its_group(tmp_path):
    path = tmp_path / "plans.json"
    path.write_bytes(b"old")
    path.chmod(0o664)
    os.chown(path, -1, NOBODY)
    replace_file(path, b"new")
    assert path.stat().st_gid == NOBODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


# An access control list as Linux keeps it: owner rw, a user of this number rw, group r, at most rw, others r.
ACCESS_LIST = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 6, 2**32 - 1, 2, 6, NOBODY, 4, 4, 2**32 - 1, 0x10, 6, 2**32 - 1, 0x20, 4, 2**32 - 1),
)


def give(path, name, value):
    if not hasattr(os, "setxattr"):
        pytest.skip("this system has no extended attributes")
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"the file system of {path.parent} has no {name} ({error.strerror})")


@pytest.mark.parametrize(
    ("name", "value"),
    [("system.posix_acl_access", ACCESS_LIST), ("user.checked_by", b"somebody")],
    ids=["list", "attribute"],
)
def test_an_existing_file_keeps_its_access_control_list_and_attributes(tmp_path, name, value):
    path = tmp_path / "plans.json"
    path.write_bytes(b"old")
    path.chmod(0o664)
    give(path, name, value)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.getxattr(path, name) == value
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_folder_that_opens_new_files_to_a_user_opens_ours_and_leaves_old_ones_closed(tmp_path):
    (tmp_path / "old.json").write_bytes(b"old")
    give(tmp_path, "system.posix_acl_default", ACCESS_LIST)
    (tmp_path / "plain.json").write_bytes(b"new")
    for name in ("new.json", "old.json"):
        replace_file(tmp_path / name, b"new")
    plain, new = (os.getxattr(tmp_path / name, "system.posix_acl_access") for name in ("plain.json", "new.json"))
    assert new == plain
    assert "system.posix_acl_access" not in os.listxattr(tmp_path / "old.json")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
@pytest.mark.parametrize(("folder", "lock"), [(0o775, 0o660), (0o755, 0o600), (0o777, 0o666)])
def test_whoever_may_write_into_the_folder_may_take_the_lock(tmp_path, folder, lock):
    tmp_path.chmod(folder)
    old = tmp_path / ".old.json.lock"
    old.touch()
    old.chmod(0o644)
    before = os.umask(0o022)
    try:
        for name in ("new.json", "old.json"):
            with locked(tmp_path / name, timeout=0, busy="busy"):
                assert stat.S_IMODE((tmp_path / f".{name}.lock").stat().st_mode) == lock
    finally:
        os.umask(before)


def test_a_lock_that_was_not_shared_names_its_file_and_the_mend(ordinary_folder):
    lock = ordinary_folder / ".plans.json.lock"
    lock.touch()
    lock.chmod(0o444)
    with (
        pytest.raises(EnvironmentProblem, match=r"\.plans\.json\.lock is not writable for you: ask its owner"),
        locked(ordinary_folder / "plans.json", timeout=0, busy="busy"),
    ):
        pytest.fail("the lock was taken")


FORK = """
import os, sys, time
from pathlib import Path
from nnunet_nas.files import locked
with locked(Path(sys.argv[1]), timeout=0, busy="busy"):
    if os.fork() == 0:
        os.close(1)
        time.sleep(60)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_workers_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path):
    path = tmp_path / "training"
    holder = subprocess.Popen(
        [sys.executable, "-c", FORK, path],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        with locked(path, timeout=5, busy="the orphan has it"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdin.close()
        holder.stdout.close()


def test_a_symbolic_link_stays_one_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "shared").mkdir()
    target, link = tmp_path / "shared" / "plans.json", tmp_path / "link.json"
    target.write_bytes(b"old")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, function, full):
    path = tmp_path / "plans.json"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(full, os.strerror(full))

    monkeypatch.setattr(*((os, "fsync") if function == "fsync" else (Path, "replace")), fail)
    with pytest.raises(EnvironmentProblem, match="no space left to write .*plans.json: nothing was changed"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["plans.json"]


def test_a_content_larger_than_the_limit_leaves_the_old_file(tmp_path):
    path = tmp_path / "plans.json"
    path.write_bytes(b"old")
    code = """
import resource, signal, sys
from pathlib import Path
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.files import replace_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    replace_file(Path(sys.argv[1]), bytes(100_000))
except EnvironmentProblem as error:
    print(error)
"""
    output, _ = python(code, path).communicate()
    assert "File too large" in output
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["plans.json"]


@pytest.mark.parametrize("moment", ["os.fsync", "Path.chmod", "Path.replace"])
def test_a_kill_during_the_write_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "plans.json"
    path.write_bytes(b"old")
    code = f"""
import os, signal, sys
from pathlib import Path
from nnunet_nas.files import replace_file
{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
replace_file(Path(sys.argv[1]), b"new")
"""
    process = python(code, path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    # What is left behind is hidden and is not taken for plans.
    assert list(tmp_path.glob("*.json")) == [path]
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    sync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "folders cannot be synced here")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    replace_file(tmp_path / "plans.json", b"new")
    assert (tmp_path / "plans.json").read_bytes() == b"new"


def test_a_read_only_folder_is_an_environment_problem_and_nothing_changes(ordinary_folder):
    path = ordinary_folder / "plans.json"
    path.write_bytes(b"old")
    ordinary_folder.chmod(0o500)
    with pytest.raises(EnvironmentProblem, match="cannot be written .*: make it writable"):
        replace_file(path, b"new")
    with pytest.raises(EnvironmentProblem, match="cannot be written .*: make it writable"):
        require_writable(ordinary_folder)
    with pytest.raises(EnvironmentProblem, match="cannot be written"), locked(path, timeout=0.1, busy="busy"):
        pytest.fail("a lock that cannot be written was granted")
    assert path.read_bytes() == b"old"


def test_a_file_that_its_owner_closed_is_not_replaced_although_the_folder_is_open(ordinary_folder):
    path = ordinary_folder / "plans.json"
    path.write_bytes(b"old")
    path.chmod(0o400)
    with pytest.raises(EnvironmentProblem, match="plans.json cannot be written"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_missing_folder_is_an_environment_problem(tmp_path):
    with pytest.raises(EnvironmentProblem, match="No such file"):
        replace_file(tmp_path / "gone" / "plans.json", b"new")


def test_a_writable_folder_stays_empty_when_tried(tmp_path):
    require_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_json_is_parsed(tmp_path):
    (tmp_path / "a.json").write_text('{"spacing": [1.0, 0.5]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", "plan again") == {"spacing": [1.0, 0.5]}


@pytest.mark.parametrize("content", [b"", b'{"configurations": {"2d"', b"plans: yes", b'{"a": "\xff"}'])
def test_truncated_or_other_content_is_a_data_problem_with_the_mend(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataProblem, match="is not valid JSON .*: plan again$") as caught:
        read_json(tmp_path / "a.json", "plan again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[" * 100_000, "[" * 60 + "]" * 60, "1" * 5000], ids=["deepest", "deep", "digits"])
def test_json_that_python_would_choke_on_is_a_data_problem(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataProblem, match="is not valid JSON .*: plan again$"):
        read_json(tmp_path / "a.json", "plan again")


def test_a_missing_file_is_a_data_problem_and_an_unreadable_one_of_the_environment(tmp_path):
    with pytest.raises(DataProblem, match="a.json does not exist: plan again"):
        read_json(tmp_path / "a.json", "plan again")
    with pytest.raises(EnvironmentProblem, match="cannot read"):
        read_json(tmp_path, "plan again")


HOLD = """
import sys
from pathlib import Path
from nnunet_nas.files import locked
with locked(Path(sys.argv[1]), timeout=0, busy="busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_is_in_the_way_and_a_kill_frees_the_lock(tmp_path):
    path = tmp_path / "plans.json"
    holder = python(HOLD, path)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(EnvironmentProblem, match="^another search runs$"),
            locked(path, timeout=0.1, busy="another search runs"),
        ):
            pytest.fail("two processes hold the lock")
        holder.kill()
        holder.wait()
        with locked(path, timeout=5, busy="busy"):
            replace_file(path, b"new")
    finally:
        holder.kill()
        holder.communicate()
    assert path.read_bytes() == b"new"


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "count"
    path.write_text("0", encoding="utf-8")
    code = """
import sys
from pathlib import Path
from nnunet_nas.files import locked, replace_file
path = Path(sys.argv[1])
for _ in range(20):
    with locked(path, timeout=60, busy="busy"):
        replace_file(path, str(int(path.read_text()) + 1).encode())
"""
    processes = [python(code, path) for _ in range(2)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert path.read_text(encoding="utf-8") == "40"
