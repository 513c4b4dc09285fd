"""When a loss that is not finite stops a training."""

import pytest
import torch

from nnunet_nas.precision import LossWatch, half_precision

NAN = float("nan")


def watched(losses, *, scaled, of=None):
    watch = LossWatch(torch.amp.GradScaler("cpu") if scaled else None)
    for number, loss in enumerate(losses):
        watch.add(torch.tensor(loss, requires_grad=True), None if of is None else of[number])
    return watch.fault()


@pytest.mark.parametrize(
    ("losses", "scaled", "found"),
    [
        ([], False, None),
        ([1.0, -2.0], False, None),
        ([1.0, NAN, 1.0], False, "nan"),
        ([float("inf"), 1.0], False, "inf"),
        ([NAN] * 39 + [1.0] + [NAN] * 39, True, None),
        ([1.0] + [NAN] * 40, True, "nan"),
        ([NAN] * 40 + [1.0], True, "nan"),
    ],
)
def test_what_is_skipped_may_happen_and_what_spoils_the_weights_may_not(losses, scaled, found):
    assert watched(losses, scaled=scaled) == found


def test_a_loss_that_stays_nan_is_not_hidden_by_another_that_is_finite():
    assert watched([NAN, 1.0] * 40, scaled=True, of=["weights", "architecture"] * 40) == "nan"


def test_a_scaler_that_is_switched_off_skips_nothing():
    watch = LossWatch(torch.amp.GradScaler("cpu", enabled=False))
    watch.add(torch.tensor(NAN))
    assert watch.fault() == "nan"


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_nothing_is_cast_where_nnunet_casts_nothing(name):
    with half_precision(torch.device(name)):
        assert not torch.is_autocast_enabled(name)


def test_on_cuda_everything_is_cast_as_nnunet_casts_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    with half_precision(torch.device("cuda")):
        assert torch.get_autocast_dtype("cuda") == torch.float16
        assert torch.is_autocast_enabled("cuda")
