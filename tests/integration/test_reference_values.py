"""Scores on real data against values from an independent script that shares no code with this package.

`tests/xtiny/reference/` holds, for named cases of three public data sets and seed 369, the gradient norm of every image
at every width, the parameter counts and the selection, computed with torch 2.15.0 on a CPU, one image and one width at
a time, on nnU-Net 2.8.1's default plans. Another torch may draw other initial weights; the comparison then says so.
Single and double precision differ by up to 2e-3 for one image (a LeakyReLU's kink), so only the same order of
arithmetic, `batch_size=1`, agrees to 1e-4.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment, run

from nnunet_nas.xtiny.job import TinyJob
from nnunet_nas.xtiny.request import TinySettings
from nnunet_nas.xtiny.selection import select

pytestmark = pytest.mark.integration
MANY_VOXELS = 2**17
REFERENCES = sorted((Path(__file__).parent.parent / "xtiny/reference").glob("xtiny_*.json"))


@pytest.fixture(scope="session")
def preprocessed(test_data, made_once):
    """Preprocesses a data set when it is first asked for; returns its folder."""

    def folder(dataset):
        if not (test_data / dataset).is_dir():
            pytest.skip(f"NNUNET_NAS_TEST_DATA={test_data} has no {dataset}")

        def fill(root):
            environment(root)
            (root / "nnUNet_raw" / dataset).symlink_to(test_data / dataset)
            two = ("-c", "2d", "3d_fullres", "-np", "2", "-npfp", "2")
            run(root, "nnUNetv2_plan_and_preprocess", "-d", dataset[7:10], *two)

        return made_once(f"real_{dataset}", fill) / "nnUNet_preprocessed" / dataset

    return folder


@pytest.fixture(params=REFERENCES, ids=lambda path: path.stem.removeprefix("xtiny_"))
def reference(request):
    content = json.loads(request.param.read_text())
    if torch.__version__.split("+")[0] != content["torch"].split("+")[0]:
        pytest.skip(f"the values are of torch {content['torch']}, this is {torch.__version__}: other initial weights")
    return content


def test_scores_parameters_and_selection(reference, preprocessed):
    # Images of 512 x 512 take half a minute each: every fourth of those.
    step = 4 if math.prod(reference["patch"]) > MANY_VOXELS else 1
    cases = reference["cases"][::step]
    settings = TinySettings(
        configuration=reference["config"], cases=tuple(cases), seeds=(reference["seed"],), batch_size=1, dry_run=True
    )
    job = TinyJob(preprocessed(reference["dataset"]), settings, torch.device("cpu"))
    assert list(job.base.patch_size) == reference["patch"]
    report = job.run()

    assert report.caps == reference["caps"]
    for cap, cost, mean in zip(report.caps, report.complexity, report.curves[0], strict=True):
        expected = reference["results"][str(cap)]
        values = job.scorer.store.known(reference["seed"], cap)
        assert cost.parameters == expected["params"]
        # Another number of threads sums in another order, and LeakyReLU's kink amplifies it in single images.
        assert [values[case] for case in cases] == pytest.approx(expected["values"][::step], rel=2e-3), cap
        assert mean == pytest.approx(np.mean(expected["values"][::step]), rel=1e-4 * step), cap
    whole = select([reference["results"][str(cap)]["mean"] for cap in report.caps])
    assert report.caps[whole.position] == reference["selected"]
    assert step > 1 or report.decision.position == whole.position


def test_batches_give_the_same_curve_within_rounding(reference, preprocessed):
    if reference["dataset"] != "Dataset101_Hippocampus":
        pytest.skip("small patches are where batches are large")
    settings = TinySettings(configuration=reference["config"], cases=tuple(reference["cases"]), dry_run=True)
    report = TinyJob(preprocessed(reference["dataset"]), settings, torch.device("cpu")).run()
    expected = [reference["results"][str(cap)]["mean"] for cap in report.caps]
    assert report.curves[0] == pytest.approx(expected, rel=2e-3)
    assert report.caps[report.decision.position] == reference["selected"]
