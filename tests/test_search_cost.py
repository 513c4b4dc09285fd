"""Predicted costs against those counted while real trainers make real steps, and iterations worked out by hand."""

from dataclasses import replace

import fake_dataset
import pytest
import torch
from searches import make_trainer, set_settings
from test_complexity import plain_unet
from torch.utils.flop_counter import FlopCounterMode

from nnunet_nas.architecture import NetworkSpec, build_without_weights, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.complexity import count_macs
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.distill.settings import DistillSettings
from nnunet_nas.distill.trainer import nnUNetTrainerDistill
from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.settings import IACLTHSettings, IACSettings
from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch, nnUNetTrainerIACSearch
from nnunet_nas.methods import METHODS, settings_class, with_cost
from nnunet_nas.plans import Plans
from nnunet_nas.schedule.settings import ScheduleSettings
from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled
from nnunet_nas.search_cost import cost_in_plans, retrofit_cost, search_cost
from nnunet_nas.settings import read_settings
from nnunet_nas.skips.retrofit import nnUNetTrainerIACRetrofit
from nnunet_nas.training_cost import plain_step

SPEC = plain_unet(channels=1, classes=2, cap=16, stages=4, patch=(64, 64))
SHORT = {"num_epochs": 4, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 0, "augmentation": False}


def test_a_plain_step_by_hand():
    # Backward costs twice the forward pass, except for the gradient of the image, which nobody wants.
    network = build_without_weights(SPEC, deep_supervision=True)
    forward = count_macs(network, (1, 1, 64, 64))
    assert plain_step(SPEC) == 3 * forward - 9 * 1 * 16 * 64 * 64


def test_plain_training_costs_its_own_iterations():
    cost = search_cost("schedule", SPEC, ScheduleSettings(num_epochs=10, num_iterations_per_epoch=25))
    assert cost.iterations == cost.plain_iterations == 250
    assert cost.default_trainings == 0.001
    assert cost.macs == 250 * 2 * plain_step(SPEC)


def test_a_second_pass_for_the_architecture_after_warm_up():
    settings = {"num_epochs": 10, "warmup_epochs": 4, "num_iterations_per_epoch": 5, "trial_iterations": 7}
    one_level = search_cost("iac_lth", SPEC, IACLTHSettings(**settings))
    bilevel = search_cost("iac", SPEC, IACSettings(**settings))
    assert one_level.iterations == bilevel.iterations == 57
    # The architecture's own pass needs no gradients of the cells' weights.
    assert 1.5 < bilevel.phases[1].macs / one_level.phases[1].macs < 2
    assert bilevel.phases[0] == one_level.phases[0]
    assert search_cost("iac", SPEC, IACSettings(**settings | {"trial_iterations": 0})).iterations == 50


def test_what_evidence_adds_to_a_search_for_a_topology():
    plain = DiNTSSettings(num_epochs=21, num_iterations_per_epoch=10, num_layers=3)
    evidence = replace(plain, selection="evidence", samples=5, scoring_batches=2, finalists=4, race_iterations=25)
    costs = [search_cost("dints", SPEC, settings) for settings in (plain, evidence)]
    assert [phase.iterations for phase in costs[0].phases] == [110, 100]
    assert [phase.iterations for phase in costs[1].phases[2:]] == [6 * 2, 4 * 25, 4 * 2]
    assert costs[0].phases == costs[1].phases[:2]


PLANNED = {
    "2-D": {"dimensions": 2, "channels": [32, 64, 128, 256, 512, 512, 512], "patch": (256, 256), "batch": 49},
    "3-D, isotropic": {"dimensions": 3, "channels": [32, 64, 128, 256, 320, 320], "patch": (128, 128, 128), "batch": 2},
    "3-D, thick slices": {"dimensions": 3, "channels": [32, 64, 128, 256, 320], "patch": (16, 256, 224), "batch": 2},
}


def planned(*, dimensions, channels, patch, batch):
    """As nnU-Net's planner has it; thick slices are left alone by the first kernel and stride."""
    stages, thick = len(channels), dimensions == 3 and patch[0] < patch[1] / 3
    first = [1, 2, 2] if thick else [2] * dimensions
    strides = [[1] * dimensions, first, *[[2] * dimensions] * (stages - 2)]
    kernels = [[1, 3, 3] if thick and stage == 0 else [3] * dimensions for stage in range(stages)]
    architecture = fake_dataset.plain_unet(dimensions, strides, kernels, channels)
    return NetworkSpec(architecture, input_channels=1, output_channels=3, patch_size=patch, batch_size=batch)


@pytest.mark.parametrize("plan", PLANNED)
def test_by_default_searches_cost_a_share_of_a_training(plan):
    spec = planned(**PLANNED[plan])
    search = search_cost("iac_lth", spec, IACLTHSettings())
    retrofit = retrofit_cost("iac_lth", spec, IACLTHSettings(), {})
    assert retrofit.method == "iac_retrofit"
    assert 0.1 < search.default_trainings + retrofit.default_trainings < 0.3
    assert search_cost("dints", spec, DiNTSSettings()).default_trainings < 1.0
    assert retrofit_cost("dints", spec, DiNTSSettings(), {}) is None


def test_a_retrofit_costs_what_its_own_settings_say():
    longer = {"nas_settings": {"iac_retrofit": {"num_epochs": 200, "batch_size": 1}}}
    default, other = (retrofit_cost("iac", SPEC, IACSettings(), content) for content in ({}, longer))
    assert (default.iterations, other.iterations) == (100 * 250, 200 * 250)
    assert other.macs == default.macs == 100 * 250 * default.phases[0].macs


def counted(step):
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops() // 2


def within(predicted, found):
    """At most; nnU-Net gives its coarsest head no weight."""
    return 0.99 * predicted <= found <= predicted


@pytest.mark.parametrize(
    ("trainer_class", "method", "settings"),
    [
        (nnUNetTrainerIACLTHSearch, "iac_lth", {"warmup_epochs": 1}),
        (nnUNetTrainerIACSearch, "iac", {"warmup_epochs": 1}),
        (nnUNetTrainerIACLTHSearch, "iac_lth", {"warmup_epochs": 1, "search_batch_size": 3}),
        (nnUNetTrainerDiNTSSearch, "dints", {"num_layers": 5}),
        (nnUNetTrainerDiNTSSearch, "dints", {"num_layers": 2, "search_batch_size": 3, "supernet": "fast"}),
        (nnUNetTrainerScheduled, "schedule", {"num_val_iterations_per_epoch": 1}),
    ],
)
def test_a_real_step_costs_what_was_predicted(searchable, trainer_class, method, settings):
    set_settings(searchable, "2d", method, **SHORT | settings)
    plans = Plans.of(searchable, "nnUNetPlans")
    read = read_settings(settings_class(method), plans.resolve("2d"))
    phases = search_cost(method, network_spec(plans, "2d"), read).phases
    trainer = make_trainer(trainer_class, searchable)
    trainer.on_train_start()
    for epoch, phase in ((0, phases[0]), (3, phases[: 2 if METHODS[method].searches else 1][-1])):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        assert within(phase.macs, counted(lambda batch=batch: trainer.train_step(batch)))


def test_a_retrofit_of_the_cells_that_were_found(searched):
    plans = Plans.of(searched, "nnUNetPlans")
    spec = network_spec(plans, "2d_iaclth")
    settings = read_settings(settings_class("iac_retrofit"), plans.resolve("2d_iaclth"))
    cost = search_cost("iac_retrofit", spec, settings)
    assert cost.iterations == 2
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert within(cost.phases[0].macs, counted(lambda: trainer.train_step(batch)))
    with pytest.raises(DataProblem, match="no modules in its skips"):
        search_cost("iac_retrofit", network_spec(plans, "2d"), settings)


def test_methods_without_a_cost_say_so():
    assert with_cost() == ["iac", "iac_lth", "iac_retrofit", "dints", "distill", "schedule"]
    with pytest.raises(DataProblem, match="encoder has no cost to predict"):
        search_cost("encoder", SPEC, None)


def test_a_distillation_is_the_students_step_and_each_teachers_forward_pass():
    teacher = plain_unet(channels=1, classes=2, cap=32, stages=4, patch=(64, 64))
    short = {"num_epochs": 10, "num_iterations_per_epoch": 25}
    looks = count_macs(build_without_weights(teacher, deep_supervision=True), (1, 1, 64, 64))
    for folds, number in ((None, 1), (("0", "1", "2"), 3)):
        settings = DistillSettings(**short, teacher_folds=folds)
        cost = search_cost("distill", SPEC, settings, beside=teacher)
        assert cost.iterations == 250
        assert cost.macs == 250 * 2 * (plain_step(SPEC) + number * looks)
    # Plain training of the student is what it is compared with.
    assert search_cost("distill", SPEC, DistillSettings(**short, weight=0)).plain_iterations == 250


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_real_step_with_a_teacher_costs_what_was_predicted(searchable, weight):
    assert main(["add_width", "-d", "11", "-c", "2d", "-width", "8"]) == 0
    set_settings(searchable, "2d_w8", "distill", **SHORT | {"num_val_iterations_per_epoch": 1, "weight": weight})
    plans = Plans.of(searchable, "nnUNetPlans")
    settings = read_settings(DistillSettings, plans.resolve("2d_w8"))
    cost = cost_in_plans("distill", plans, "2d_w8", network_spec(plans, "2d_w8"), settings)
    assert (cost.plain_iterations > 4) == (weight > 0)
    trainer = make_trainer(nnUNetTrainerDistill, searchable, configuration="2d_w8")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert within(cost.phases[0].macs, counted(lambda: trainer.train_step(batch)))


def test_counting_takes_no_memory():
    large = plain_unet(channels=1, classes=2)
    with torch.device("cpu"):
        assert search_cost("dints", large, DiNTSSettings(num_levels=4)).macs > 1e15
