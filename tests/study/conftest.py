"""The modules of the workflow lie beside it and are no part of the package."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "examples" / "study"
sys.path.insert(0, str(HERE))


def pytest_collection_modifyitems(items):
    """Named as skipped where there is no Snakemake."""
    absent = pytest.mark.skip(reason="snakemake is not installed: pip install '.[study]'")
    for item in items:
        if item.path.parent == Path(__file__).parent and find_spec("snakemake") is None:
            item.add_marker(absent)


@pytest.fixture
def content():
    """A study of all kinds of methods, as its file says it."""
    return {
        "study": "all",
        "device": "cpu",
        "seeds": [0, 1],
        "folds": [0],
        "schedule": {"num_epochs": 10, "num_iterations_per_epoch": 5},
        "datasets": {"1": None, "2": {"phantom": {"n": 10}}},
        "bases": {"plain": {"configuration": "2d", "cap": 64}, "narrow": {"configuration": "2d", "datasets": [2]}},
        "methods": {
            "tiny": {"select": {"rule": "spread", "images": 4}},
            "w8": {"width": 8},
            "cells": {
                "search": "iac_lth",
                "settings": {"num_epochs": 20, "num_iterations_per_epoch": 3},
                "retrofit": {"num_epochs": 4, "num_iterations_per_epoch": 5},
                "bases": ["plain"],
                "against": "longer",
            },
            "longer": {"control_of": "cells", "bases": ["plain"]},
            "topology": {"search": "dints", "datasets": [1], "bases": ["plain"]},
            "thin": {"narrowed_to": "topology", "datasets": [1], "bases": ["plain"]},
            "from1": {"transfer": {"dataset": 1, "method": "topology"}, "bases": ["plain"]},
            "attention": {"skip": "attention", "schedule": {"num_epochs": 3}},
            "taught": {"width": 8, "distill": {"weight": 0.5}, "schedule": {"num_epochs": 6}, "against": "w8"},
        },
    }
