"""Scores on real data against values from an independent script that shares no code with this package.

`tests/xtiny/reference/` holds, for named cases of three public data sets and seed 369, the gradient norm of every image
at every width, the parameter counts and the selection, computed with torch 2.15.0 on a CPU, one image and one width at
a time, on nnU-Net 2.8.1's default plans. Another torch may draw other initial weights; the comparison then says so.
Single and double precision differ by up to 2e-3 for one image (a LeakyReLU's kink), so only the same order of
arithmetic, `batch_size=1`, agrees to 1e-4.
"""

import json
from pathlib import Path

import pytest
import torch
from commands import environment, run

from nnunet_nas.xtiny.job import TinyJob, TinySettings

pytestmark = pytest.mark.integration
REFERENCES = sorted((Path(__file__).parent.parent / "xtiny/reference").glob("xtiny_*.json"))


@pytest.fixture(scope="session")
def preprocessed(test_data, tmp_path_factory):
    """Preprocesses a data set when it is first asked for; returns its folder."""
    root = tmp_path_factory.mktemp("real")
    environment(root)

    def folder(dataset):
        target = root / "nnUNet_preprocessed" / dataset
        if not target.exists():
            if not (test_data / dataset).is_dir():
                pytest.skip(f"NNUNET_NAS_TEST_DATA={test_data} has no {dataset}")
            (root / "nnUNet_raw" / dataset).symlink_to(test_data / dataset)
            run(
                root,
                "nnUNetv2_plan_and_preprocess",
                "-d",
                dataset[7:10],
                "-c",
                "2d",
                "3d_fullres",
                "-np",
                "2",
                "-npfp",
                "2",
            )
        return target

    return folder


@pytest.fixture(params=REFERENCES, ids=lambda path: path.stem.removeprefix("xtiny_"))
def reference(request):
    content = json.loads(request.param.read_text())
    if torch.__version__.split("+")[0] != content["torch"].split("+")[0]:
        pytest.skip(f"the values are of torch {content['torch']}, this is {torch.__version__}: other initial weights")
    return content


def test_scores_parameters_and_selection(reference, preprocessed):
    settings = TinySettings(
        configuration=reference["config"],
        cases=tuple(reference["cases"]),
        seeds=(reference["seed"],),
        batch_size=1,
        dry_run=True,
    )
    job = TinyJob(preprocessed(reference["dataset"]), settings, torch.device("cpu"))
    assert list(job.base.patch_size) == reference["patch"]
    scorer = job.scorer
    curve = scorer.curves(job.candidates, settings.seeds)[0]
    report = job.run()

    assert report.caps == reference["caps"]
    for cap, cost, mean in zip(report.caps, report.complexity, curve, strict=True):
        expected = reference["results"][str(cap)]
        values = scorer.store.known(reference["seed"], cap)
        assert cost.parameters == expected["params"]
        # Another number of threads sums in another order, and LeakyReLU's kink amplifies it in single images.
        assert [values[case] for case in reference["cases"]] == pytest.approx(expected["values"], rel=2e-3), cap
        assert mean == pytest.approx(expected["mean"], rel=1e-4), cap
    assert report.caps[report.decision.position] == reference["selected"]


def test_batches_give_the_same_curve_within_rounding(reference, preprocessed):
    if reference["dataset"] != "Dataset101_Hippocampus":
        pytest.skip("small patches are where batches are large")
    settings = TinySettings(configuration=reference["config"], cases=tuple(reference["cases"]), dry_run=True)
    report = TinyJob(preprocessed(reference["dataset"]), settings, torch.device("cpu")).run()
    expected = [reference["results"][str(cap)]["mean"] for cap in report.caps]
    assert report.curves[0] == pytest.approx(expected, rel=2e-3)
    assert report.caps[report.decision.position] == reference["selected"]
