"""What nnU-Net's commands show of errors that a user can mend."""

import errno
import os

import pytest

from nnunet_nas.errors import DataProblem, exit_with_one_line


def test_an_error_for_the_user_is_one_line_and_its_exit_code(capsys):
    with pytest.raises(SystemExit) as stop, exit_with_one_line():
        raise DataProblem("plans.json is broken: plan again")
    assert stop.value.code == 4
    assert capsys.readouterr().err == "nnunet_nas: plans.json is broken: plan again\n"


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_under_nnunets_own_files_is_one_line(full, capsys):
    with pytest.raises(SystemExit) as stop, exit_with_one_line():
        raise OSError(full, os.strerror(full), "debug.json")
    assert stop.value.code == 3
    assert (
        capsys.readouterr().err
        == "nnunet_nas: no space left to write debug.json: free some space, then go on with --c\n"
    )


def test_another_error_of_the_system_comes_through():
    with pytest.raises(PermissionError), exit_with_one_line():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "debug.json")
