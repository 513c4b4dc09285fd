"""A small synthetic data set, planned and preprocessed by nnU-Net's own commands, once per test run."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from commands import LOADING, run

NUMBER = "998"


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """Folder with nnU-Net's three folders, Dataset998_Phantom preprocessed for `2d`. Not to be changed by tests."""
    root = tmp_path_factory.mktemp("phantom")
    run(root, "nnunet_nas", "phantom", "-d", NUMBER, "-n", "10", "-n_test", "2", "-size", "64")
    run(
        root,
        "nnUNetv2_plan_and_preprocess",
        "-d",
        NUMBER,
        "-c",
        "2d",
        "-np",
        "1",
        "-npfp",
        "1",
        "--verify_dataset_integrity",
    )
    return root


@pytest.fixture
def workspace(phantom, tmp_path):
    """A copy of the phantom's folders that a test may change."""
    shutil.copytree(phantom, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def trainers(tmp_path_factory):
    """The variable that a user exports once, and the short trainer of these tests beside ours."""
    folder = run(tmp_path_factory.mktemp("ext_path"), "nnunet_nas", "ext_path").stdout.strip()
    return {**LOADING, "nnUNet_extTrainer": f"{folder}{os.pathsep}{Path(__file__).parent / 'trainers'}"}
