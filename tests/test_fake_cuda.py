"""Every network, trainer and proxy on a GPU that is not there; see `nnunet_nas.gpu_check.fake_cuda`."""

import contextlib
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from cell_searches import make_backbone
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from searches import make_trainer, read_plans, set_settings
from test_networks import GENOTYPE, GEOMETRY, KINDS, QUICK_ENCODER, with_encoder
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_nas.architecture import build_network, derive, network_spec
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.distill.trainer import nnUNetTrainerDistill
from nnunet_nas.encoders.network import ENCODERS
from nnunet_nas.gpu_check.fake_cuda import DEVICE, NoDoublePrecision, backward, fake_cuda, gradients
from nnunet_nas.iac.genotype import Genotype, cells_architecture
from nnunet_nas.iac.trainers import _MeanSlopes, nnUNetTrainerIACLTHSearch, nnUNetTrainerIACSearch
from nnunet_nas.iac.trial import train_briefly
from nnunet_nas.methods import trainers
from nnunet_nas.plans import Plans, Provenance
from nnunet_nas.precision import LossWatch, half_precision
from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled
from nnunet_nas.skips.retrofit import nnUNetTrainerIACRetrofit
from nnunet_nas.xtiny.proxies import PROXIES, Scene
from nnunet_nas.xtiny.sensitivity import prepare


def amp_step(network, image):
    """As nnU-Net's: half precision, scaled loss, clipped gradients, SGD."""
    scaler, optimizer = torch.amp.GradScaler("cuda"), torch.optim.SGD(network.parameters(), 0.1, 0.9, nesterov=True)
    with half_precision(DEVICE):
        outputs = network(image)
        loss = sum(output.float().square().mean() for output in outputs)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    scaler.step(optimizer)
    scaler.update()
    return outputs


# What the layer finds, and what it does not


class Planted(nn.Module):
    """A fault in the forward pass of a network."""

    def __init__(self, fault):
        super().__init__()
        self.conv, self.fault = nn.Conv2d(1, 4, 3, padding=1), fault

    def forward(self, x):
        return [self.fault(self.conv(x))]


def cpu_index(x):
    return x.index_select(1, torch.tensor([0, 2]))


def cpu_operand(x):
    return x * torch.arange(4.0)[:, None, None]


def read_back(x):
    return x if torch.isfinite(x).all() else -x


def double(x):
    return x.double().float()


def planted(fault):
    return amp_step(Planted(fault).to(DEVICE), torch.zeros(2, 1, 8, 8, device=DEVICE))


@pytest.mark.parametrize("fault", [cpu_index, cpu_operand, read_back])
def test_a_planted_fault_is_caught(fault):
    with fake_cuda(), pytest.raises(Exception, match="same device|local_scalar_dense"):
        planted(fault)


def test_planted_double_precision_is_caught_where_there_is_none():
    with fake_cuda(), pytest.raises(TypeError, match="float64"), NoDoublePrecision():
        planted(double)
    with fake_cuda():
        planted(double)


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x + torch.rand(x.shape, generator=torch.Generator(), device="cpu").to(DEVICE),
        lambda x: x.index_put((torch.tensor([0]),), torch.zeros((), device=DEVICE, dtype=x.dtype)),
    ],
)
def test_what_it_cannot_see_is_known(fault):
    with fake_cuda():
        planted(fault)


def test_the_walk_through_the_graph_gives_the_gradients_of_the_engine():
    torch.manual_seed(0)
    network, image = (
        build_network(KINDS[0][0](KINDS[0][1], "2d", 8), seed=0, deep_supervision=True),
        torch.randn(2, 2, 32, 24),
    )
    sum(output.square().mean() for output in network(image)).backward()
    engine = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    backward(sum(output.square().mean() for output in network(image)))
    assert all(torch.allclose(p.grad, g, atol=1e-7) for p, g in zip(network.parameters(), engine, strict=True))
    found = gradients(sum(output.square().mean() for output in network(image)), list(network.parameters()))
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found, engine, strict=True))


# Networks


def cases():
    """Every kind in every geometry; one each in the fast layers."""
    for (turn, (build, name, _)), (number, geometry) in itertools.product(enumerate(KINDS), enumerate(GEOMETRY)):
        slow = () if turn % len(GEOMETRY) == number else pytest.mark.integration
        yield pytest.param(build, name, geometry, marks=slow)
    for name in ENCODERS:
        yield pytest.param(with_encoder, name, "2d", marks=() if name == QUICK_ENCODER else pytest.mark.integration)


@pytest.mark.parametrize(
    ("build", "name", "geometry"), list(cases()), ids=lambda value: getattr(value, "__name__", value)
)
def test_a_network_trains_in_half_precision(build, name, geometry):
    described = build(name, geometry, 8)
    network = build_network(described, seed=0, deep_supervision=True)
    with fake_cuda():
        image = torch.zeros(2, described.input_channels, *described.patch_size, device=DEVICE)
        outputs = amp_step(network.to(DEVICE), image)
        assert {output.dtype for output in outputs} == {torch.float16}
        assert {output.device for output in outputs} == {DEVICE}
        assert all(parameter.grad.device == DEVICE for parameter in network.parameters())


# Proxies


@pytest.mark.parametrize("without_double", [False, True], ids=["cuda", "as on MPS"])
@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("backbone", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_proxy_scores(name, backbone, without_double, monkeypatch):
    described = KINDS[0][0](backbone, "2d", 8)
    network = build_network(described, seed=0)
    if without_double:
        monkeypatch.setattr("nnunet_nas.precision._WITHOUT_DOUBLE", ("mps", "cuda"))

    def load(some):
        return torch.zeros(len(some), described.input_channels, *described.patch_size)

    scene = Scene(load, ["a", "b", "c"], described.patch_size, DEVICE, 2, 0)
    with fake_cuda(reads=True):
        if without_double:
            with NoDoublePrecision():
                values = list(PROXIES[name].measure(prepare(network, DEVICE), scene))
        else:
            values = list(PROXIES[name].measure(prepare(network, DEVICE), scene))
    assert values


# Trainers: the real steps of nnU-Net's loop


@pytest.fixture
def school(dataset, monkeypatch):
    """Settings of seconds for every method, a backbone, a student, and cells of each search to retrofit."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    one = {"num_epochs": 4, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    for method in ("iac", "iac_lth"):
        set_settings(dataset, "2d", method, **one, warmup_epochs=1)
    set_settings(dataset, "2d", "dints", **one, num_layers=2, features=4, search_features=2)
    content = read_plans(dataset)
    architecture = json.loads(json.dumps(content["configurations"]["2d"]["architecture"]))
    architecture["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    content["configurations"]["2d_xtiny8"] = {"inherits_from": "2d", "architecture": architecture}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    path = make_backbone(dataset)
    spec = network_spec(Plans(read_plans(dataset)), "2d", json.loads((dataset / "dataset.json").read_text()))
    genotype = Genotype.from_json(GENOTYPE)
    architecture = cells_architecture(spec.architecture, genotype, widths=[8, 8], norm="backbone", residual=True)
    content = read_plans(dataset)
    origin = Provenance("iac_lth", Plans(content).digest("2d"), {}, [0], fold=0, checkpoint=str(path))
    derived = derive("2d_cells", "2d", dataclasses.replace(spec, architecture=architecture), origin)
    content["configurations"]["2d_cells"] = json.loads(json.dumps(derived.entry()))
    content["configurations"]["2d_cells"]["nas_settings"] = {"iac_retrofit": {"init": "random"}}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    return dataset


def batch_of(trainer):
    """As nnU-Net's loaders give it: images and labels at every resolution, on the CPU."""
    size = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(size)]
    shapes = [[round(length * factor) for length, factor in zip(size, scale, strict=True)] for scale in scales]
    target = [torch.zeros(trainer.batch_size, 1, *shape, dtype=torch.int16) for shape in shapes]
    return {
        "data": torch.zeros(trainer.batch_size, 1, *size),
        "target": target if trainer.enable_deep_supervision else target[0],
    }


def onto_the_card(trainer, *, half=True):
    """A trainer that was made on the CPU, as it would be there."""
    trainer.device = DEVICE
    trainer.network.to(DEVICE)
    if getattr(trainer, "teacher", None) is not None:
        trainer.teacher.to(DEVICE)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    if hasattr(trainer, "_slopes"):
        trainer._slopes = _MeanSlopes(trainer.network)
    if half:
        trainer.grad_scaler = torch.amp.GradScaler("cuda")
        trainer._watch = LossWatch(trainer.grad_scaler)
    trainer.dataloader_architecture = itertools.repeat(batch_of(trainer))


TRAINERS = {
    "iac": (nnUNetTrainerIACSearch, "2d", {}),
    "iac of batch norms": (nnUNetTrainerIACSearch, "2d", {"norm": "batch"}),
    "iac_lth": (nnUNetTrainerIACLTHSearch, "2d", {}),
    "dints": (nnUNetTrainerDiNTSSearch, "2d", {}),
    "dints fast": (nnUNetTrainerDiNTSSearch, "2d", {"supernet": "fast", "losses": "paper"}),
    "dints of samples": (nnUNetTrainerDiNTSSearch, "2d", {"weights_on": "samples", "selection": "evidence"}),
    "retrofit": (nnUNetTrainerIACRetrofit, "2d_cells", {}),
    "distill": (nnUNetTrainerDistill, "2d_xtiny8", {}),
    "schedule": (nnUNetTrainerScheduled, "2d_xtiny8", {}),
}


def ready(name, school):
    """A trainer on the CPU, as far as the first step."""
    trainer_class, configuration, changed = TRAINERS[name]
    if changed:
        set_settings(school, configuration, trainer_class.settings_class.method, **changed)
    trainer = make_trainer(trainer_class, school, configuration)
    trainer.initialize()
    trainer.print_to_log_file = lambda *text, **_: None
    if isinstance(trainer, nnUNetTrainerDiNTSSearch):
        drawn = trainer.draw_topologies(0)  # from numbers, which the card does not have
        trainer.draw_topologies = lambda epoch: drawn
    if isinstance(trainer, nnUNetTrainerDistill):
        trainer.find_teacher()
    if isinstance(trainer, nnUNetTrainerIACRetrofit):
        trainer.start_from_backbone()
    return trainer


def test_every_trainer_is_here():
    assert {trainer_class.__name__ for trainer_class, *_ in TRAINERS.values()} == set(trainers())


@pytest.mark.integration
@pytest.mark.parametrize("half", [True, False], ids=["cuda", "as on MPS"])
@pytest.mark.parametrize("name", TRAINERS)
def test_the_real_steps_of_a_trainer(name, half, school, monkeypatch):
    trainer = ready(name, school)
    if not half:
        monkeypatch.setattr("nnunet_nas.precision._WITHOUT_DOUBLE", ("mps", "cuda"))
        # The card of the fake tensors is called cuda, where both would cast.
        monkeypatch.setattr(torch.amp.autocast_mode.autocast, "__enter__", lambda self: self)
        monkeypatch.setattr(torch.amp.autocast_mode.autocast, "__exit__", lambda *args: None)
    with fake_cuda(), contextlib.nullcontext() if half else NoDoublePrecision():
        onto_the_card(trainer, half=half)
        before = {key: value.device for key, value in trainer.network.state_dict().items()}
        for epoch in (0, trainer.num_epochs - 1):  # with the architecture left alone, and not
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            loss = trainer.train_step(batch_of(trainer))["loss"]
            assert np.shape(loss) == ()
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            assert np.shape(trainer.validation_step(batch_of(trainer))["tp_hard"]) == (1,)
        assert before == {key: value.device for key, value in trainer.network.state_dict().items()}
        assert set(before.values()) == {DEVICE}


class Events(TorchDispatchMode):
    """What happens in which order: arithmetic in double precision on the CPU, copies between CPU and card, steps."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = ({x.device.type for x in given}, {x.device.type for x in tensors})
        if "copy" in func.name() and devices == ({"cuda"}, {"cpu"}):
            self.seen.append("copied to the CPU")
        elif "copy" not in func.name() and any(x.device.type == "cpu" and x.dtype == torch.float64 for x in tensors):
            self.seen.append("computed on the CPU")
        return result

    def named(self, name, function):
        """The function, whose calls are events."""

        def call(*args, **kwargs):
            self.seen.append(name)
            return function(*args, **kwargs)

        return call

    def without_repetitions(self):
        return [name for name, _ in itertools.groupby(self.seen)]


@pytest.mark.integration
@pytest.mark.parametrize("share", [None, 0.5])
def test_the_terms_of_dints_are_computed_while_the_card_is_busy(share, school):
    set_settings(school, "2d", "dints", terms_share=share)
    trainer = ready("dints", school)
    with fake_cuda():
        onto_the_card(trainer)
        trainer.current_epoch = trainer.num_epochs - 1
        trainer.on_train_epoch_start()
        batch, events = batch_of(trainer), Events()
        trainer.loss_of = events.named("forward", trainer.loss_of)
        for optimizer in (trainer.optimizer, trainer.architecture_optimizer):
            optimizer.step = events.named("step", optimizer.step)
        with pytest.MonkeyPatch.context() as patch, events:
            patch.setattr(torch.Tensor, "backward", events.named("backward", torch.Tensor.backward))
            trainer.train_step(batch)
    assert events.without_repetitions() == [
        "copied to the CPU",  # alpha and x, before the card has anything to do
        "forward", "backward", "step",
        "forward", "backward", "computed on the CPU", "step",
        "copied to the CPU",  # the loss, for nnU-Net's log
    ]  # fmt: skip


@pytest.mark.integration
def test_the_trial_of_a_cell(school):
    trainer = ready("retrofit", school)
    with fake_cuda():
        onto_the_card(trainer)

        def loss_of(batch, network):
            with half_precision(DEVICE):
                return trainer.loss(network(batch["data"].to(DEVICE)), [part.to(DEVICE) for part in batch["target"]])

        batches = itertools.repeat(batch_of(trainer))
        train_briefly(trainer.network, batches, 2, loss_of=loss_of, scaler=torch.amp.GradScaler("cuda"))


@pytest.mark.integration
def test_nnunets_own_trainer_for_comparison(school):
    trainer = make_trainer(nnUNetTrainer, school)
    trainer.initialize()
    with fake_cuda():
        onto_the_card(trainer)
        trainer.network.train()
        trainer.train_step(batch_of(trainer))
        with torch.no_grad():
            trainer.validation_step(batch_of(trainer))
