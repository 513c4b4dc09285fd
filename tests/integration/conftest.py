"""A small synthetic data set, planned and preprocessed by nnU-Net's own commands, once per test run."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))
from commands import LOADING, run

NUMBER = "998"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a folder once for all workers: the first one that asks for it makes it, the others wait.

    Called with a name and a function that fills the new folder; returns the folder, which tests must not change.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def make(name, fill):
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def phantom(made_once):
    """Folder with nnU-Net's three folders, Dataset998_Phantom preprocessed for `2d`. Not to be changed by tests."""

    def fill(root):
        run(root, "nnunet_nas", "phantom", "-d", NUMBER, "-n", "10", "-n_test", "2", "-size", "64")
        one = ("-c", "2d", "-np", "1", "-npfp", "1")
        run(root, "nnUNetv2_plan_and_preprocess", "-d", NUMBER, *one, "--verify_dataset_integrity")

    return made_once("phantom", fill)


@pytest.fixture
def workspace(phantom, tmp_path):
    """A copy of the phantom's folders that a test may change."""
    shutil.copytree(phantom, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def trainers(tmp_path_factory):
    """The variable that a user exports once, and the short trainer of these tests beside ours."""
    printed, _ = run(tmp_path_factory.mktemp("ext_path"), "nnunet_nas", "ext_path")
    return {**LOADING, "nnUNet_extTrainer": f"{printed.strip()}{os.pathsep}{Path(__file__).parent / 'trainers'}"}
