"""Fixtures of all tests: nnU-Net's folders, a tiny data set in them, and real data where they are named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fake_dataset import DATASET, write_dataset
from hypothesis import HealthCheck, settings

# Before torch is imported: threads that wait must sleep, or networks of this size take ten times as long when the
# tests share their few cores with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers share the cores, and what they start inherits it.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

pytest_plugins = ["cell_searches"]

# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_modifyitems(items):
    """The longest tests first: as the last ones they would keep one worker busy and the others waiting."""
    items.sort(key=lambda item: (item.path.name != "test_reference_values.py", item.path.parent.name != "integration"))


@pytest.fixture(scope="session")
def fake_preprocessed(tmp_path_factory):
    """`write_dataset` once; tests that change it ask for `dataset`."""
    dataset = tmp_path_factory.mktemp("nnUNet_preprocessed") / DATASET
    write_dataset(dataset)
    return dataset


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    """nnU-Net's three folders, empty, and the environment variables that name them."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def dataset(nnunet_folders, fake_preprocessed):
    """A preprocessed data set of its own for each test: `<nnUNet_preprocessed>/Dataset011_Fake`."""
    folder = nnunet_folders / "nnUNet_preprocessed" / DATASET
    shutil.copytree(fake_preprocessed, folder)
    return folder


@pytest.fixture(scope="session")
def test_data():
    """A folder of raw nnU-Net data sets (`Dataset101_Hippocampus`, ...)."""
    folder = os.environ.get("NNUNET_NAS_TEST_DATA")
    if not folder:
        pytest.skip("set NNUNET_NAS_TEST_DATA to a folder with raw nnU-Net data sets to run this test")
    return Path(folder)
