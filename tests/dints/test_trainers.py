"""The life of a DiNTS search: what it writes, how it goes on, what it refuses. Networks are tiny."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from searches import (
    kill_in,
    leave_out_pictures,
    make_trainer,
    poison,
    read_plans,
    refused,
    search,
    search_in_two_processes,
    set_settings,
    use_regions_and_an_ignore_label,
)
from torch._dynamo.utils import counters

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.dints.decoding import most_probable
from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.judge import Judge
from nnunet_nas.dints.sampling import RelaxedTopology
from nnunet_nas.dints.selection import smallest_network
from nnunet_nas.dints.topology import Topology
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.plans import Plans
from nnunet_nas.training_cost import training_memory

# In nnU-Net's training loop: seconds each, so they run with the slow layer.
pytestmark = pytest.mark.integration

# A search in this process takes seconds; the fast layers keep one of each kind.
SLOW = pytest.mark.integration
NO_PICTURES = pytest.mark.usefixtures("no_pictures")
SHORT = {
    "num_epochs": 4,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "num_layers": 2,
    "features": 4,
    "search_features": 2,
    # Large, so that four epochs decide something.
    "architecture_lr": 0.2,
}
NAME = "2d_dints"


@pytest.fixture
def no_pictures(monkeypatch):
    leave_out_pictures(monkeypatch, "nnunet_nas.dints.trainers", "draw_progress", "draw_topology")


@pytest.fixture
def searchable(dataset, monkeypatch):
    """The fake data set with settings for searches of seconds, and single-threaded loading."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    set_settings(dataset, "2d", "dints", **SHORT)
    return dataset


def run(dataset, **options):
    return search(nnUNetTrainerDiNTSSearch, dataset, **options)


def make(dataset, **options):
    return make_trainer(nnUNetTrainerDiNTSSearch, dataset, **options)


def log_of(trainer):
    """Without the space that nnU-Net puts after every line."""
    text = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    return text.replace(" \n", "\n")


def start_again(dataset):
    """Without results, and without what a search added to the plans."""
    results = dataset.parents[1] / "nnUNet_results"
    shutil.rmtree(results)
    results.mkdir()
    content = read_plans(dataset)
    content["configurations"].pop(NAME)
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))


def test_a_search_ends_in_a_configuration_that_stock_nnunet_trains(searchable):
    before = read_plans(searchable)["configurations"]
    trainer = run(searchable)
    folder, plans = Path(trainer.output_folder), read_plans(searchable)
    assert set(plans["configurations"]) - set(before) == {NAME}
    assert {key: plans["configurations"][key] for key in before} == before
    entry = plans["configurations"][NAME]
    assert set(entry) == {"inherits_from", "architecture", "nas"}
    assert entry["inherits_from"] == "2d"
    kwargs = entry["architecture"]["arch_kwargs"]
    assert entry["architecture"]["network_class_name"] == "nnunet_nas.dints.network.DiNTSNet"
    assert kwargs["features_per_stage"] == [4, 8, 8]  # 16, 32, 32 in the plans
    assert kwargs["strides"] == before["2d"]["architecture"]["arch_kwargs"]["strides"]
    topology = json.loads((folder / "topology.json").read_text())
    assert kwargs["topology"] == topology
    assert len(Topology.from_json(topology).layers) == SHORT["num_layers"]
    assert entry["nas"]["method"] == "dints"
    assert entry["nas"]["fold"] == 0
    assert entry["nas"]["settings"]["num_layers"] == 2
    assert entry["nas"]["training_mib"]["predicted"] <= trainer.budget_mib
    assert entry["nas"]["training_mib"]["predicted"] == pytest.approx(entry["nas"]["training_mib"]["counted"], rel=0.1)

    spec = network_spec(Plans(plans), NAME, json.loads((searchable / "dataset.json").read_text()))
    outputs = build_network(spec, deep_supervision=True)(torch.randn(2, 1, 32, 32))
    assert [tuple(output.shape[2:]) for output in outputs] == [(32, 32), (16, 16)]

    for file in ("search_progress.png", "topology.png", "checkpoint_final.pth"):
        assert (folder / file).stat().st_size > 5000
    assert not (folder / "checkpoint_latest.pth").exists()
    history = TopologyHistory.load(folder / "search_history.npz")
    assert len(history) == trainer.current_epoch == 4
    # 11 of 21 parts of four epochs.
    assert history.warmup.tolist() == [1, 1, 0, 0]
    assert np.isfinite(np.stack([history.train_loss, history.val_loss, history.dice, history.expected_mib])).all()
    assert (history.budget_mib == trainer.budget_mib).all()
    assert "next: nnUNetv2_train 11 2d_dints 0\n" in log_of(trainer)
    assert log_of(trainer).endswith("control: nnunet_nas add_width -d 11 -c 2d -as 2d_dints\n")


@NO_PICTURES
@pytest.mark.parametrize("epoch", [pytest.param(1, marks=SLOW), 3])
def test_interrupted_and_continued_it_ends_bit_for_bit_as_without(searchable, epoch):
    run(searchable, stop_before=epoch)
    again = run(searchable, resume=True)
    topology = (Path(again.output_folder) / "topology.json").read_bytes()
    result = read_plans(searchable)["configurations"][NAME]["architecture"]
    start_again(searchable)
    straight = run(searchable)
    assert straight.network.encoder.edge_logits.abs().max() > 0.1
    state = straight.network.state_dict()
    for key, value in again.network.state_dict().items():
        assert value.equal(state[key]), key
    for name, value in straight.history.arrays().items():
        if name != "seconds":
            np.testing.assert_array_equal(again.history.arrays()[name], value, err_msg=name)
    assert again.logger.get_value("ema_fg_dice", None) == straight.logger.get_value("ema_fg_dice", None)
    assert (Path(straight.output_folder) / "topology.json").read_bytes() == topology
    assert read_plans(searchable)["configurations"][NAME]["architecture"] == result


@SLOW
@NO_PICTURES
@pytest.mark.parametrize("method", ["on_train_end", "_add_results"])
def test_killed_after_the_last_epoch_it_ends_as_without(searchable, monkeypatch, method):
    trainer = make(searchable)
    kill_in(trainer, method)
    assert (Path(trainer.output_folder) / "checkpoint_latest.pth").exists()
    assert NAME not in read_plans(searchable)["configurations"]
    monkeypatch.setattr(nnUNetTrainerDiNTSSearch, "train_step", None)
    again = run(searchable, resume=True)
    assert NAME in read_plans(searchable)["configurations"]
    assert again.select(limit_mib=again.budget_mib).topology == trainer.select(limit_mib=again.budget_mib).topology


EVIDENCE = {"selection": "evidence", "samples": 5, "scoring_batches": 2, "finalists": 3, "race_iterations": 2}


def scores_of(trainer):
    return json.loads((Path(trainer.output_folder) / "candidates.json").read_text())["candidates"]


@NO_PICTURES
@pytest.mark.parametrize("weights_on", [pytest.param("mixture", marks=SLOW), "samples"])
def test_evidence_chooses_what_is_delivered_and_an_interruption_costs_one_score(searchable, weights_on):
    set_settings(searchable, "2d", "dints", **EVIDENCE, weights_on=weights_on, sigma=0.5)
    trainer, trained = make(searchable), Judge.trained_loss
    asked = []

    def die_at_the_second(self, topology):
        if asked:
            raise KeyboardInterrupt
        asked.append(topology)
        return trained(self, topology)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "trained_loss", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()
    assert NAME not in read_plans(searchable)["configurations"]
    left = scores_of(trainer)
    assert [sum(key in entry for entry in left) for key in ("shared_loss", "trained_loss")] == [len(left), 1]
    assert 1 < len(left) <= 6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "shared_loss", None)
        again = run(searchable, resume=True)
    scores, result = scores_of(again), read_plans(searchable)["configurations"][NAME]
    losses = {number: entry["trained_loss"] for number, entry in enumerate(scores) if "trained_loss" in entry}
    assert len(losses) == 3
    winner = scores[min(losses, key=losses.get)]["topology"]
    assert result["architecture"]["arch_kwargs"]["topology"] == winner
    assert json.loads((Path(again.output_folder) / "topology.json").read_text()) == winner
    assert result["nas"]["training_mib"]["counted"] <= again.budget_mib
    history = TopologyHistory.load(Path(again.output_folder) / "search_history.npz")
    np.testing.assert_array_equal(history.selected[-1], Topology.from_json(winner).selected())

    start_again(searchable)
    undisturbed = scores_of(run(searchable))
    assert [entry["topology"] for entry in undisturbed] == [entry["topology"] for entry in scores]
    # Seen once to differ in the last digit of float32. Why is not known. In three steps of a small DiNTSNet two threads
    # in place of one changed that digit, and where the batch lies in memory changed nothing; but all losses of this
    # test had the same number of threads when it was looked at.
    for key in ("shared_loss", "trained_loss"):
        first, again = (
            {number: entry[key] for number, entry in enumerate(found) if key in entry}
            for found in (scores, undisturbed)
        )
        assert again == pytest.approx(first, rel=1e-6)
    assert read_plans(searchable)["configurations"][NAME]["architecture"] == result["architecture"]


@NO_PICTURES
def test_candidates_are_judged_on_the_half_that_the_weights_have_not_seen(searchable):
    set_settings(searchable, "2d", "dints", **EVIDENCE, weights_on="samples")
    trainer = make(searchable)
    trainer.on_train_start()
    halves = [set(loader.data_loader._data.identifiers) for loader in trainer.loaders()[::2]]
    training, judging = (set(loader.data_loader._data.identifiers) for loader in trainer.judging_loaders())
    assert [training, judging] == halves


@pytest.mark.parametrize("weights_on", ["mixture", "samples"])
def test_samples_are_drawn_with_topologies_and_not_edges_equally_probable(searchable, weights_on):
    set_settings(searchable, "2d", "dints", **EVIDENCE, weights_on=weights_on)
    trainer = make(searchable)
    trainer.initialize()
    relaxed = trainer.relaxed()
    uniform = RelaxedTopology.uniform(len(relaxed.edge_logits), relaxed.names, relaxed.model).edge_logits
    assert uniform.min() > 1  # of three operations at least
    wanted = uniform if weights_on == "samples" else np.zeros_like(uniform)
    np.testing.assert_allclose(relaxed.edge_logits, wanted, atol=0.06)


@NO_PICTURES
def test_weights_trained_on_samples_leave_the_distribution_as_it_is(searchable):
    set_settings(searchable, "2d", "dints", **EVIDENCE, weights_on="samples")
    trainer = make(searchable)
    trainer.on_train_start()
    architecture = [parameter.detach().clone() for parameter in trainer.network.architecture_parameters()]
    weights = [parameter.detach().clone() for parameter in trainer.network.network_parameters()]
    trainer.current_epoch = 3
    trainer.on_train_epoch_start()
    (drawn,) = trainer._drawn
    trainer.train_step(next(trainer.dataloader_train))
    for now, then in zip(trainer.network.architecture_parameters(), architecture, strict=True):
        assert now.equal(then)
    moved = set()
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    for now, then in zip(trainer.network.network_parameters(), weights, strict=True):
        name = names[id(now)].split(".")
        if not now.equal(then) and name[1] == "layers":
            moved.add((int(name[2]), name[3]))
    edges_drawn = {(n, f"{source}_to_{end}") for n, layer in enumerate(drawn.layers) for source, end in layer}
    assert moved
    assert moved <= edges_drawn


@SLOW
@NO_PICTURES
def test_a_compiled_mixture_is_searched_as_the_eager_one_in_two_graphs(searchable, monkeypatch):
    eager = run(searchable)
    start_again(searchable)
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(nnUNetTrainerDiNTSSearch, "compiles_steps", lambda self: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = run(searchable)
    assert compiled._compiled is not None
    # Of the weights and of the architecture.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    state = eager.network.state_dict()
    for key, value in compiled.network.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-6, msg=key)


@NO_PICTURES
@pytest.mark.parametrize(
    ("device", "asked", "compiles"),
    [("cuda", None, False), ("cuda", "f", False), ("cuda", "t", True), ("cpu", "t", False), ("mps", "t", False)],
)
def test_only_who_asks_for_it_has_a_search_compiled(searchable, monkeypatch, device, asked, compiles):
    trainer = make(searchable)
    trainer.device = torch.device(device)
    monkeypatch.delenv("nnUNet_compile", raising=False)
    if asked is not None:
        monkeypatch.setenv("nnUNet_compile", asked)
    assert trainer.compiles_steps() is compiles
    assert trainer._do_i_compile() is False


@NO_PICTURES
def test_weights_trained_on_samples_need_evidence(searchable, capsys):
    set_settings(searchable, "2d", "dints", weights_on="samples")
    assert "selection=evidence" in refused(4, make(searchable).run_training, capsys)


@NO_PICTURES
def test_the_architecture_waits_and_has_a_batch_of_its_own(searchable):
    trainer = make(searchable)
    trainer.on_train_start()
    weights, architecture = (
        [parameter.detach().clone() for parameter in group]
        for group in (trainer.network.network_parameters(), trainer.network.architecture_parameters())
    )
    given = []
    loss_of = trainer.loss_of
    trainer.loss_of = lambda batch: given.append(batch["keys"].tolist()) or loss_of(batch)
    halves = [set(loader.data_loader._data.identifiers) for loader in trainer.loaders()[::2]]
    assert trainer.loaders()[0] is trainer.dataloader_train
    assert trainer.loaders()[2] is trainer.dataloader_architecture

    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert all(
        now.equal(then) for now, then in zip(trainer.network.architecture_parameters(), architecture, strict=True)
    )
    assert not all(now.equal(then) for now, then in zip(trainer.network.network_parameters(), weights, strict=True))
    assert len(given) == 1

    trainer.current_epoch = trainer.weights_only_epochs
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert len(given) == 3
    assert set(given[1]) <= halves[0]
    assert set(given[2]) <= halves[1]
    for now, then in zip(trainer.network.architecture_parameters(), architecture, strict=True):
        assert not now.equal(then)
        assert now.isfinite().all()


@NO_PICTURES
def test_a_step_of_the_architecture_leaves_the_weights_alone(searchable):
    set_settings(searchable, "2d", "dints", weights_lr=0.0, weights_lr_start=0.0)
    trainer = make(searchable)
    trainer.on_train_start()
    before = [parameter.detach().clone() for parameter in trainer.network.network_parameters()]
    trainer.current_epoch = 3
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert all(now.equal(then) for now, then in zip(trainer.network.network_parameters(), before, strict=True))
    assert trainer.network.encoder.edge_logits.abs().max() > 0.1


@NO_PICTURES
def test_the_search_sees_two_halves_of_the_training_cases_of_its_fold(searchable):
    trainer = make(searchable)
    trainer.initialize()
    trainer.on_train_start()
    training, validation = trainer.do_split()
    loaders = {"weights": trainer.dataloader_train, "architecture": trainer.dataloader_architecture}
    seen = {name: set(loader.data_loader._data.identifiers) for name, loader in loaders.items()}
    assert seen["weights"] | seen["architecture"] == set(training)
    assert not seen["weights"] & seen["architecture"]
    assert abs(len(seen["weights"]) - len(seen["architecture"])) <= 1
    assert set(trainer.dataloader_val.data_loader._data.identifiers) == set(validation)
    assert not set(training) & set(validation)
    # The seed decides about the halves.
    trainer.settings = type(trainer.settings)(**{**vars(trainer.settings), "seed": 1})
    trainer._half = 0
    assert set(trainer.do_split()[0]) != seen["weights"]


@NO_PICTURES
def test_eq_11_grows_with_the_iterations_of_the_architecture(searchable):
    set_settings(searchable, "2d", "dints", num_epochs=6, num_iterations_per_epoch=5)
    trainer = make(searchable)
    trainer.initialize()
    # Three epochs of six are for the weights; then 15 iterations.
    whole = trainer.terms().total(1.0).item()
    for step, share in ((15, 0), (16, 1 / 15), (29, 14 / 15)):
        trainer._step = step
        assert trainer.architecture_loss().item() == pytest.approx(share * whole)


@NO_PICTURES
def test_terms_can_be_switched_on_late(searchable):
    set_settings(searchable, "2d", "dints", num_epochs=6, num_iterations_per_epoch=5, terms_from=0.5)
    trainer = make(searchable)
    trainer.initialize()
    # 15 iterations of the architecture; the terms grow over the last seven and a half.
    for step, weight in ((15, 0), (22, 0), (23, 0.5 / 7.5), (29, 6.5 / 7.5)):
        trainer._step = step
        assert trainer.terms_weight() == pytest.approx(weight)
    trainer.settings = type(trainer.settings)(**{**vars(trainer.settings), "terms_from": 1.0})
    assert trainer.terms_weight() == 0


@NO_PICTURES
def test_terms_can_be_a_share_of_the_segmentation_gradient(searchable):
    set_settings(searchable, "2d", "dints", num_epochs=2, num_iterations_per_epoch=5, terms_share=0.3)
    trainer = make(searchable)
    trainer.initialize()
    trainer.on_train_start()
    trainer.current_epoch, trainer._step = 1, 8
    parameters = trainer.network.architecture_parameters()
    trainer.train_only(weights=False)
    batch = next(trainer.dataloader_architecture)
    segmentation = torch.autograd.grad(trainer.loss_of(batch), parameters)
    terms = torch.autograd.grad(trainer.terms().total(1.0), parameters)
    trainer._architecture_step(trainer.loss_of(batch), trainer._copied_logits())
    for parameter, own, other in zip(parameters, segmentation, terms, strict=True):
        added = parameter.grad - own
        # Three of five iterations of the architecture are done.
        assert added.norm().item() == pytest.approx(0.3 * 0.6 * own.norm().item(), rel=1e-4)
        torch.testing.assert_close(added / added.norm(), other / other.norm(), rtol=1e-3, atol=1e-5)


@SLOW
@NO_PICTURES
@pytest.mark.parametrize("values", [{"losses": "paper"}, {"supernet": "fast"}, {"losses": "paper", "supernet": "fast"}])
def test_the_other_modes_work(searchable, values):
    set_settings(searchable, "2d", "dints", **values)
    trainer = run(searchable)
    assert NAME in read_plans(searchable)["configurations"]
    assert trainer.topology_weight == (0.001 if "losses" in values else 1)
    assert all(
        edge.fast == ("supernet" in values) for layer in trainer.network.encoder.layers for edge in layer.values()
    )
    assert np.isfinite(trainer.history.train_loss).all()


@NO_PICTURES
def test_a_limit_in_mib_is_met(searchable):
    trainer = make(searchable)
    trainer.initialize()
    smallest = smallest_network(2, trainer.space.names, trainer.memory).mib
    assert trainer.budget_mib == pytest.approx(training_memory(trainer.base_spec()).total)
    set_settings(searchable, "2d", "dints", memory_limit_mib=1.15 * smallest, losses="paper")
    limited = make(searchable)
    limited.initialize()
    with torch.no_grad():
        limited.network.encoder.edge_logits.fill_(3)
    assert limited.select(limit_mib=None).mib > limited.budget_mib
    found = limited.select(limit_mib=limited.hard_budget_mib)
    assert smallest <= found.mib <= limited.budget_mib == pytest.approx(1.15 * smallest)


@NO_PICTURES
def test_what_is_delivered_meets_the_budget_as_counted(searchable, monkeypatch):
    """Where built networks need more than predicted, a smaller one is delivered; where none fits, the log says so."""
    counted = training_memory

    def dearer(spec, **options):
        found = counted(spec, **options)
        return replace(found, activations=found.activations + 0.2 * found.total)

    monkeypatch.setattr("nnunet_nas.dints.trainers.training_memory", dearer)
    trainer = make(searchable)
    trainer.initialize()
    with torch.no_grad():
        trainer.network.encoder.edge_logits.fill_(3)
    trainer.budget_mib = 0.6 * trainer.memory.full(2)
    predicted = trainer.select(limit_mib=trainer.budget_mib)
    assert dearer(trainer.spec_of(predicted.topology)).total > trainer.budget_mib
    assert dearer(trainer.spec_of(trainer._decoded().topology)).total <= trainer.budget_mib
    smallest = smallest_network(2, trainer.space.names, trainer.memory).mib
    set_settings(searchable, "2d", "dints", memory_limit_mib=1.1 * smallest, num_epochs=2)
    assert "WARNING: no topology was found that needs less" in log_of(run(searchable))


@NO_PICTURES
def test_what_is_recorded_is_what_is_delivered_where_the_budget_decides(searchable):
    trainer = make(searchable)
    trainer.initialize()
    smallest = smallest_network(2, trainer.space.names, trainer.memory).mib
    set_settings(searchable, "2d", "dints", memory_limit_mib=1.3 * smallest, num_epochs=2)
    limited = run(searchable)
    delivered = Topology.from_json(json.loads((Path(limited.output_folder) / "topology.json").read_text()))
    assert limited.select(limit_mib=None).mib > limited.budget_mib
    selected = limited.history.selected[-1].astype(bool)
    np.testing.assert_array_equal(selected, delivered.selected())
    assert limited.history.selected_mib[-1] == pytest.approx(limited.memory.of(delivered, limited.space.names))
    assert limited.history.gap[-1] == np.sum(most_probable(limited.history.edge_logits[-1]) != selected) > 0


@NO_PICTURES
@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"memory_limit_mib": 0.001}, 5),
        ({"memory_limit_mib": 0.001, "losses": "paper"}, 5),
        ({"sigma": 0.001}, 5),
        ({"num_levels": 4}, 4),
        ({"num_levels": 2}, 4),
        ({"first_level": 2}, 4),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_the_search(searchable, values, code, capsys):
    set_settings(searchable, "2d", "dints", **values)
    text = refused(code, make(searchable).run_training, capsys)
    assert ("smallest feasible network" if code == 5 else "do not fit the plan's 3 stages") in text
    assert "set_search" in text


@NO_PICTURES
@pytest.mark.parametrize(
    ("values", "reason", "share"),
    [
        ({}, "what nnU-Net's own network needs", None),
        ({"sigma": 0.8}, "sigma 0.8 of the full network", 0.8),
        ({"losses": "paper"}, "sigma 0.8 of the full network", 0.8),
        ({"losses": "paper", "sigma": 0.3}, "sigma 0.3 of the full network", 0.3),
        ({"memory_limit_mib": 3, "sigma": 0.3}, "memory_limit_mib", None),
    ],
    ids=str,
)
def test_the_budget_is_nnunets_own_memory_unless_settings_say_otherwise(searchable, values, reason, share):
    set_settings(searchable, "2d", "dints", search_batch_size=1, **values)
    trainer = make(searchable)
    trainer.initialize()
    # At the planned batch, not that of the search.
    own = training_memory(trainer.base_spec())
    assert own.activations > 2 * 2 * 32 * 32 * 16 * 4 / 2**20
    full = trainer.memory.full(2)
    assert trainer.budget_mib == pytest.approx(
        values.get("memory_limit_mib", own.total if share is None else share * full)
    )
    text = log_of(trainer)
    assert f"at batch 2 in float32: nnU-Net's own network {own}" in text
    assert f"({reason}), {trainer.budget_mib / own.total:.2f} times nnU-Net's" in text
    assert ("The budget is no limit" in text) == (trainer.budget_mib >= full)


@NO_PICTURES
def test_a_final_convolution_is_searched_built_and_counted(searchable):
    plain = make(searchable)
    plain.initialize()
    set_settings(searchable, "2d", "dints", final_conv=True)
    trainer = run(searchable)
    assert trainer.network.decoder.final is not None
    assert plain.network.decoder.final is None
    assert trainer.memory.fixed > plain.memory.fixed
    entry = read_plans(searchable)["configurations"][NAME]
    assert entry["architecture"]["arch_kwargs"]["final_conv"] is True
    memory = entry["nas"]["training_mib"]
    assert memory["predicted"] == pytest.approx(memory["counted"], rel=0.1)
    assert memory["budget"] == pytest.approx(trainer.budget_mib, abs=1e-3)


@NO_PICTURES
def test_in_the_papers_mode_sigma_is_a_wish(searchable):
    set_settings(searchable, "2d", "dints", sigma=0.001, losses="paper")
    trainer = make(searchable)
    trainer.initialize()
    assert trainer.select(limit_mib=trainer.hard_budget_mib).mib > trainer.budget_mib


@NO_PICTURES
def test_a_patch_that_the_levels_do_not_divide_is_refused(searchable, capsys):
    content = read_plans(searchable)
    content["configurations"]["2d"]["patch_size"] = [30, 32]
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    text = refused(4, make(searchable).run_training, capsys)
    assert "30x32 is not divisible by 4 along axis 0" in text


@NO_PICTURES
def test_the_search_may_use_another_batch_size_than_the_result(searchable):
    plain = make(searchable)
    plain.initialize()
    set_settings(searchable, "2d", "dints", search_batch_size=1)
    before = read_plans(searchable)
    trainer = make(searchable)
    trainer.on_train_start()
    assert next(trainer.dataloader_train)["data"].shape[0] == 1
    # The result is planned for the plan's batch of 2.
    assert trainer.memory.full(2) == pytest.approx(plain.memory.full(2))
    assert trainer.base_digest == plain.base_digest
    assert read_plans(searchable) == before
    kept = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    assert kept["configurations"]["2d"]["batch_size"] == 2


@NO_PICTURES
def test_a_second_search_does_not_overwrite_the_first(searchable, capsys):
    run(searchable, stop_before=1)
    kept = sorted((searchable.parents[1] / "nnUNet_results").rglob("*.pth"))
    contents = [path.read_bytes() for path in kept]
    assert "--c" in refused(4, make(searchable).run_training, capsys)
    assert [path.read_bytes() for path in kept] == contents


@NO_PICTURES
def test_changed_settings_and_plans_are_not_mixed_into_a_search(searchable, capsys):
    run(searchable, stop_before=1)
    plans = (searchable / "nnUNetPlans.json").read_bytes()
    set_settings(searchable, "2d", "dints", sigma=0.5, num_layers=3)
    text = refused(4, lambda: run(searchable, resume=True), capsys)
    assert "sigma: None -> 0.5" in text
    assert "num_layers: 2 -> 3" in text
    content = json.loads(plans)
    content["configurations"]["2d"]["batch_size"] = 3
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    assert "has changed since the search" in refused(4, lambda: run(searchable, resume=True), capsys)


@NO_PICTURES
def test_a_name_that_is_taken_is_noticed_before_the_search(searchable, capsys):
    content = read_plans(searchable)
    content["configurations"][NAME] = {"inherits_from": "2d"}
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    text = refused(4, make(searchable).run_training, capsys)
    assert "2d_dints is in the plans already" in text
    assert "-m dints suffix=_b" in text


@NO_PICTURES
def test_an_unknown_setting_is_refused(searchable, capsys):
    set_settings(searchable, "2d", "dints", num_layer=2)
    assert "did you mean num_layers" in refused(4, lambda: make(searchable), capsys)


@NO_PICTURES
def test_a_cascade_is_refused(searchable, capsys):
    text = refused(2, lambda: make(searchable, configuration="3d_cascade_fullres"), capsys)
    assert "second stage of a cascade" in text


@NO_PICTURES
def test_one_training_case_has_no_halves(searchable, capsys):
    trainer = make(searchable)
    split = [{"train": ["case_00"], "val": ["case_01"]}] * 5
    (searchable / "splits_final.json").write_text(json.dumps(split))
    text = refused(4, trainer.run_training, capsys)
    assert "two halves of the training cases, fold 0 has 1" in text


@SLOW
@NO_PICTURES
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_epoch(searchable, capsys):
    trainer = make(searchable)
    poison(trainer, epoch=2)
    text = refused(4, trainer.run_training, capsys)
    assert "the loss became nan in epoch 2" in text
    again = run(searchable, resume=True)
    assert len(again.history) == 4


@NO_PICTURES
def test_an_infinite_architecture_stops_before_it_is_kept(searchable, capsys, monkeypatch):
    trainer = make(searchable)
    end = trainer.on_epoch_end

    def poisoned():
        if trainer.current_epoch == 1:
            trainer.network.encoder.alpha.data[0, 0, 0] = float("inf")
        end()

    monkeypatch.setattr(trainer, "on_epoch_end", poisoned)
    text = refused(4, trainer.run_training, capsys)
    assert "the architecture became infinite in epoch 1" in text
    assert "architecture_lr" in text
    again = make(searchable)
    again.load_checkpoint(str(Path(again.output_folder) / "checkpoint_latest.pth"))
    assert again.current_epoch == len(again.history) == 1
    assert again.network.encoder.alpha.isfinite().all()


@SLOW
@NO_PICTURES
def test_other_folds_and_suffixes_are_in_the_name(searchable):
    set_settings(searchable, "2d", "dints", suffix="_b")
    trainer = run(searchable, fold=1)
    assert trainer.result_name() == "2d_dints_b_f1"
    assert read_plans(searchable)["configurations"]["2d_dints_b_f1"]["nas"]["fold"] == 1
    assert "next: nnUNetv2_train 11 2d_dints_b_f1 1\n" in log_of(trainer)
    assert "validation cases of folds 0, 2, 3, 4" in log_of(trainer)


@SLOW
@NO_PICTURES
def test_fold_all_works(searchable):
    trainer = run(searchable, fold="all")
    assert trainer.result_name() == "2d_dints_fall"
    assert "This search sees all cases" in log_of(trainer)


@SLOW
@NO_PICTURES
@pytest.mark.parametrize(
    ("configuration", "plans"),
    [("3d_fullres", "nnUNetPlans"), ("3d_lowres", "nnUNetPlans"), ("3d_fullres", "nnUNetResEncUNetMPlans")],
)
def test_3d_and_residual_plans_work(searchable, configuration, plans):
    set_settings(searchable, configuration, "dints", plans, **{**SHORT, "num_epochs": 2})
    trainer = run(searchable, configuration=configuration, plans=plans)
    content = read_plans(searchable, plans)
    assert f"{configuration}_dints" in content["configurations"]
    dataset_json = json.loads((searchable / "dataset.json").read_text())
    network = build_network(network_spec(Plans(content), f"{configuration}_dints", dataset_json))
    patch = content["configurations"][configuration]["patch_size"]
    assert list(network(torch.randn(1, 1, *patch)).shape) == [1, 2, *patch]
    option = "" if plans == "nnUNetPlans" else f" -p {plans}"
    assert f"next: nnUNetv2_train 11 {configuration}_dints 0{option}\n" in log_of(trainer)


@SLOW
@NO_PICTURES
def test_half_resolution_works_with_its_own_scales_of_deep_supervision(searchable):
    set_settings(searchable, "2d", "dints", first_level=1)
    trainer = run(searchable)
    assert trainer.network.levels == 2
    assert trainer._get_deep_supervision_scales() == [[1, 1], [0.5, 0.5]]
    kwargs = read_plans(searchable)["configurations"][NAME]["architecture"]["arch_kwargs"]
    assert (kwargs["first_level"], kwargs["topology"]["levels"]) == (1, 2)


@SLOW
@NO_PICTURES
def test_regions_and_an_ignore_label_work(searchable):
    use_regions_and_an_ignore_label(searchable)
    trainer = run(searchable)
    assert trainer.label_manager.has_regions
    assert trainer.label_manager.has_ignore_label
    assert trainer.network.decoder.seg_layers[0].out_channels == 2
    assert np.isfinite(trainer.history.train_loss).all()


@SLOW
@NO_PICTURES
def test_validation_can_be_left_out(searchable):
    set_settings(searchable, "2d", "dints", num_val_iterations_per_epoch=0, augmentation=False)
    trainer = run(searchable)
    assert np.isnan(trainer.history.val_loss).all()
    assert np.isnan(trainer.history.dice).all()
    assert trainer.inference_allowed_mirroring_axes is None


@SLOW
@NO_PICTURES
def test_validation_alone_says_that_there_is_none(searchable, capsys):
    run(searchable)
    trainer = make(searchable)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    capsys.readouterr()
    trainer.perform_actual_validation()
    assert "nnUNetv2_train 11 2d_dints 0" in capsys.readouterr().out


@SLOW
@pytest.mark.parametrize("ending", [{}, EVIDENCE], ids=["decoded", "evidence"])
def test_two_processes_take_the_same_decisions(ending, searchable, tmp_path):
    # With batch Dice, as here, nnU-Net's loss waits for all processes: what the first one does alone must not.
    set_settings(searchable, "2d", "dints", **ending)
    first, second = search_in_two_processes(nnUNetTrainerDiNTSSearch, searchable, tmp_path)
    # Four of the weights and two of the architecture.
    assert len(first["batches"]) == 6
    assert first["history"]["edge_logits"].abs().max() > 0.1
    for key in ("edge_logits", "selected"):
        assert first["history"][key].equal(second["history"][key]), key
    assert NAME in read_plans(searchable)["configurations"]
