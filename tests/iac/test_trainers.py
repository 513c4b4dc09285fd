"""The life of a search: what it writes, how it goes on, what it refuses. Networks are tiny and untrained."""

import copy
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_searches import SHORT, make_backbone, search_folder
from searches import (
    kill_in,
    make_trainer,
    poison,
    read_plans,
    refused,
    search,
    search_in_two_processes,
    set_settings,
    start_two_processes,
    use_regions_and_an_ignore_label,
)

from nnunet_nas.architecture import network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.duration import Pace, in_words
from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.genotype import EDGES, Genotype
from nnunet_nas.iac.history import CellHistory
from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch, nnUNetTrainerIACSearch
from nnunet_nas.plans import Plans
from nnunet_nas.precision import LossWatch
from nnunet_nas.search_cost import search_cost
from nnunet_nas.skips.retrofit import nnUNetTrainerIACRetrofit
from nnunet_nas.skips.unet import SKIP_PREFIX

# In nnU-Net's training loop: seconds each, so they run with the slow layer.
pytestmark = pytest.mark.integration

# More searches of seconds each; the fast layers keep one of each kind.
SLOW = pytest.mark.integration
NO_PICTURES = pytest.mark.usefixtures("no_pictures")
BOTH = pytest.mark.parametrize(
    "trainer_class", [pytest.param(nnUNetTrainerIACSearch, marks=SLOW), nnUNetTrainerIACLTHSearch]
)
METHOD = {nnUNetTrainerIACSearch: "iac", nnUNetTrainerIACLTHSearch: "iac_lth"}
NAME = {nnUNetTrainerIACSearch: "2d_iac", nnUNetTrainerIACLTHSearch: "2d_iaclth"}


@pytest.fixture
def easily_convinced(monkeypatch):
    """Tests by evidence that count after a few epochs of one iteration."""
    monkeypatch.setattr("nnunet_nas.iac.trainers.level", lambda error_rate, tests: 0.2)


@BOTH
def test_a_search_ends_in_two_configurations_and_leaves_its_records(trainer_class, searchable):
    before = read_plans(searchable)["configurations"]
    trainer = search(trainer_class, searchable)
    folder, configurations = Path(trainer.output_folder), read_plans(searchable)["configurations"]
    name = NAME[trainer_class]
    assert set(configurations) - set(before) == {name, f"{name}_residual"}
    assert {key: configurations[key] for key in before} == before
    entry = configurations[name]
    assert entry["inherits_from"] == "2d"
    assert entry["architecture"]["network_class_name"] == "nnunet_nas.iac.network.IACUNet"
    cells = entry["architecture"]["arch_kwargs"]["cells"]
    assert cells["genotype"] == json.loads((folder / "genotype.json").read_text())
    assert Genotype.from_json(cells["genotype"]) == trainer.genotype()
    assert not cells["residual"]
    assert configurations[f"{name}_residual"]["architecture"]["arch_kwargs"]["cells"] == {**cells, "residual": True}
    assert entry["nas"]["method"] == METHOD[trainer_class]
    assert entry["nas"]["fold"] == 0
    assert entry["nas"]["checkpoint"].endswith("nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth")
    for file in ("theta_0.pth", "search_progress.png", "genotype.png", "checkpoint_final.pth"):
        assert (folder / file).stat().st_size > 5000
    assert not (folder / "checkpoint_latest.pth").exists()
    history = CellHistory.load(folder / "search_history.npz")
    assert len(history) == trainer.current_epoch
    assert history.warmup.tolist() == [True] + [False] * (len(history) - 1)


@SLOW
@NO_PICTURES
def test_lth_stops_by_itself_and_iac_does_not(searchable):
    set_settings(searchable, "2d", "iac_lth", num_epochs=50, tau0=1.0)
    lth = search(nnUNetTrainerIACLTHSearch, searchable)
    # Every test succeeds at such a threshold (at most ln 2 < 1), and drops at least one of seven operations.
    assert 1 < lth.current_epoch <= 1 + 6
    assert lth.history.edges_settled[-1] == len(EDGES)
    assert search(nnUNetTrainerIACSearch, searchable).current_epoch == SHORT["num_epochs"]


@NO_PICTURES
def test_constant_alpha_stop_after_six_tests(searchable):
    set_settings(searchable, "2d", "iac_lth", architecture_lr=0.0, num_epochs=50)
    trainer = search(nnUNetTrainerIACLTHSearch, searchable)
    assert trainer.history.operations_left.tolist() == [98, 84, 70, 56, 42, 28, 14]


@NO_PICTURES
@pytest.mark.parametrize("trainer_class", [nnUNetTrainerIACSearch, pytest.param(nnUNetTrainerIACLTHSearch, marks=SLOW)])
def test_the_backbone_stays_bit_identical_and_the_cells_learn(trainer_class, searchable):
    trainer = search(trainer_class, searchable)
    backbone = torch.load(Path(trainer.backbone.path), map_location="cpu", weights_only=False)["network_weights"]
    start = torch.load(Path(trainer.output_folder) / "theta_0.pth", weights_only=True)
    for key, value in trainer.network.state_dict().items():
        if key.startswith(SKIP_PREFIX):
            if "project" in key or "output" in key:
                assert not value.equal(start[key]), key
        elif key not in ("alpha", "beta"):
            assert value.equal(backbone[key]), key


@NO_PICTURES
def test_a_search_that_ends_undecided_says_so(searchable):
    set_settings(searchable, "2d", "iac_lth", stability="evidence")
    trainer = search(nnUNetTrainerIACLTHSearch, searchable)
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert "WARNING: the search ended undecided: 0 of 14 edges have settled (0 of the 8 that are kept), 98 of 98" in log
    certainty = read_plans(searchable)["configurations"]["2d_iaclth"]["nas"]["certainty"]
    assert (certainty["edges_settled"], certainty["operations_left"]) == (0, 98)
    assert 0 <= certainty["smallest_lead"] <= certainty["median_lead"] < 1


@NO_PICTURES
@BOTH
def test_the_cell_is_tried_against_the_plain_skip_and_the_answer_recorded(trainer_class, searchable):
    trainer = search(trainer_class, searchable)
    trial = read_plans(searchable)["configurations"][NAME[trainer_class]]["nas"]["certainty"]["trial"]
    assert (trial["iterations"], trial["batches"]) == (1, 2)
    assert trial["answer"] == ("cell" if trial["mean"] > trial["half_width"] else "identity")
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert "Trial: after 1 iterations of training the residual cell" in log
    assert ("The answer of this search is the identity" in log) == (trial["answer"] == "identity")


@NO_PICTURES
@pytest.mark.parametrize(("gain", "answer"), [(0.2, "cell"), (0.001, "identity"), (None, "identity")])
def test_a_search_may_answer_that_the_plain_skip_is_best(searchable, monkeypatch, gain, answer):
    """Whatever was found: a gain within its noise, and a training that diverges, speak for the identity."""

    # Of two batches, before the training and after it; the interval is 6.35 times as wide as they differ.
    found_losses = [[1.0, 1.2], None if gain is None else [1.0 - gain, 1.199 - gain]]

    def losses(network, batches, loss_of):
        next_one = found_losses.pop(0)
        if next_one is None:
            raise DataProblem("the loss became nan")
        return next_one

    monkeypatch.setattr("nnunet_nas.iac.trainers.losses", losses)
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    trainer.on_train_start()
    found = trainer.results()
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert ("The answer of this search is the identity: keep" in log) == (answer == "identity")
    assert len(found) == 2
    assert trainer.next_steps()[0] == "nnUNetv2_train 11 2d_iaclth_residual 0 -tr nnUNetTrainerIACRetrofit"


@NO_PICTURES
def test_the_cost_is_said_before_the_search_begins(searchable):
    set_settings(searchable, "2d", "iac_retrofit", num_iterations_per_epoch=50_000)
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    trainer.on_train_start()
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert "as a share of one default nnU-Net training of 2d" in log
    assert "(4 epochs of 1 iterations, each " in log
    assert "(2 epochs of 50000, each " in log
    search_share, retrofit, both = map(float, re.findall(r"(?:this search|a retrofit|both) ([0-9]\.[0-9]+)", log))
    assert both > 0.2
    assert both == pytest.approx(search_share + retrofit, abs=0.0011)


@NO_PICTURES
@BOTH
def test_the_time_is_said_after_the_first_iterations_of_warm_up_and_of_search(trainer_class, searchable, monkeypatch):
    method = METHOD[trainer_class]
    epochs = {"num_epochs": 3, "warmup_epochs": 1, "num_iterations_per_epoch": 3, "trial_iterations": 0}
    set_settings(searchable, "2d", method, **epochs)
    # Two iterations in each interval of 4000 s.
    clock = itertools.count(step=4000.0)
    monkeypatch.setattr("nnunet_nas.iac.trainers.Pace", lambda iterations: Pace(iterations, lambda: next(clock)))
    trainer = search(trainer_class, searchable)
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    first, second = re.findall(r"Time: (.*?) for an iteration, as 2 took now on cpu: about (.*?) to go at this", log)
    plans = Plans.of(searchable, "nnUNetPlans")
    warmup, searching = search_cost(method, network_spec(plans, "2d"), trainer.settings).phases
    # All six iterations of the search are ahead, and after the first three of these the other three.
    assert first == ("2e+03 s", in_words(6 * 2000 * searching.macs / warmup.macs))
    assert second == ("2e+03 s", in_words(3 * 2000))


@NO_PICTURES
def test_a_search_that_goes_on_says_how_long_it_still_takes(searchable):
    epochs = {"num_epochs": 4, "warmup_epochs": 1, "num_iterations_per_epoch": 2, "stability": "evidence"}
    set_settings(searchable, "2d", "iac_lth", **epochs)
    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=2)
    again = search(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    logs = sorted(Path(again.output_folder).glob("training_log*.txt"))
    assert "".join(path.read_text() for path in logs).count(" to go at this speed") == 3


@NO_PICTURES
def test_warm_up_leaves_alpha_and_beta_alone(searchable):
    set_settings(searchable, "2d", "iac_lth", num_epochs=3, warmup_epochs=2)
    trainer = search(nnUNetTrainerIACLTHSearch, searchable, stop_before=2)
    assert not trainer.network.alpha.any()
    assert not trainer.network.beta.any()


@NO_PICTURES
def test_alpha_and_beta_of_iac_learn_on_the_other_half(searchable):
    trainer = make_trainer(nnUNetTrainerIACSearch, searchable)
    trainer.on_train_start()
    halves = [set(loader.data_loader._data.identifiers) for loader in trainer.loaders()[::2]]
    assert not halves[0] & halves[1]
    given, loss_of = [], trainer.loss_of
    trainer.loss_of = lambda batch: given.append(set(batch["keys"].tolist())) or loss_of(batch)
    trainer.current_epoch = SHORT["warmup_epochs"]
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert len(given) == 2
    assert given[0] <= halves[0]
    assert given[1] <= halves[1]
    assert trainer.network.alpha.any()


@NO_PICTURES
@pytest.mark.usefixtures("easily_convinced")
@pytest.mark.parametrize(
    ("trainer_class", "epoch", "changed"),
    [
        pytest.param(nnUNetTrainerIACSearch, 1, {}, marks=SLOW),
        pytest.param(nnUNetTrainerIACSearch, 3, {}, marks=SLOW),
        pytest.param(nnUNetTrainerIACLTHSearch, 1, {}, marks=SLOW),
        (nnUNetTrainerIACLTHSearch, 3, {}),
        (nnUNetTrainerIACLTHSearch, 4, {"stability": "evidence", "num_epochs": 6}),
    ],
)
def test_interrupted_and_continued_it_ends_bit_for_bit_as_without(trainer_class, epoch, changed, searchable, tmp_path):
    set_settings(searchable, "2d", METHOD[trainer_class], architecture_lr=0.05, **changed)
    other = tmp_path / "untouched"
    shutil.copytree(tmp_path / "nnUNet_results", other)
    search(trainer_class, searchable, stop_before=epoch)
    again = search(trainer_class, searchable, resume=True)
    result = read_plans(searchable)["configurations"][NAME[trainer_class]]["architecture"]
    shutil.rmtree(tmp_path / "nnUNet_results")
    shutil.copytree(other, tmp_path / "nnUNet_results")
    content = read_plans(searchable)
    for name in (NAME[trainer_class], f"{NAME[trainer_class]}_residual"):
        del content["configurations"][name]
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    straight = search(trainer_class, searchable)
    assert again.network.alpha.abs().max() > 0
    if changed:
        assert 14 < straight.history.operations_left[-1] < 98
    assert again.network.alpha.equal(straight.network.alpha)
    assert again.network.beta.equal(straight.network.beta)
    for name, value in straight.history.arrays().items():
        if name != "seconds":
            np.testing.assert_array_equal(again.history.arrays()[name], value, err_msg=name)
    assert all(again.network.cell_state()[key].equal(value) for key, value in straight.network.cell_state().items())
    assert read_plans(searchable)["configurations"][NAME[trainer_class]]["architecture"] == result


@SLOW
@NO_PICTURES
def test_killed_before_the_plans_were_written_it_only_writes_them(searchable, monkeypatch):
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    kill_in(trainer, "_add_results")
    assert "2d_iaclth" not in read_plans(searchable)["configurations"]
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    random_numbers = torch.load(final, weights_only=True)["random"]["torch"]
    monkeypatch.setattr(nnUNetTrainerIACLTHSearch, "train_step", None)
    again = search(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    assert "2d_iaclth" in read_plans(searchable)["configurations"]
    assert again.genotype() == trainer.genotype()
    assert torch.load(final, weights_only=True)["random"]["torch"].equal(random_numbers)


@NO_PICTURES
def test_killed_inside_a_checkpoint_write_the_one_before_stays(searchable, monkeypatch):
    rename = Path.replace

    def killed(self, target):
        if trainer.current_epoch == 3 and Path(target).name == "checkpoint_latest.pth":
            raise KeyboardInterrupt
        return rename(self, target)

    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()
    again = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    again.load_checkpoint(str(Path(again.output_folder) / "checkpoint_latest.pth"))
    assert again.current_epoch == len(again.history) == 2


@NO_PICTURES
def test_a_second_search_does_not_overwrite_the_first(searchable, capsys):
    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=2)
    kept = sorted(Path(searchable.parents[1] / "nnUNet_results").rglob("*.pth"))
    contents = [path.read_bytes() for path in kept]
    text = refused(4, make_trainer(nnUNetTrainerIACLTHSearch, searchable).run_training, capsys)
    assert "--c" in text
    assert [path.read_bytes() for path in kept] == contents


@NO_PICTURES
def test_a_name_that_is_taken_is_noticed_before_the_search(searchable, capsys):
    content = read_plans(searchable)
    content["configurations"]["2d_iaclth"] = {"inherits_from": "2d"}
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    text = refused(4, make_trainer(nnUNetTrainerIACLTHSearch, searchable).run_training, capsys)
    assert "2d_iaclth is in the plans already" in text
    assert "suffix" in text


@NO_PICTURES
def test_the_name_of_the_residual_cells_is_noticed_before_the_search(searchable, capsys):
    content = read_plans(searchable)
    content["configurations"]["2d_iaclth_residual"] = {"inherits_from": "2d"}
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    text = refused(4, trainer.run_training, capsys)
    assert "2d_iaclth_residual is in the plans already" in text
    assert "suffix" in text
    assert trainer.current_epoch == 0


@NO_PICTURES
def test_a_name_that_is_taken_meanwhile_is_refused_with_what_nnunetv2_train_can_do(searchable, capsys):
    def take():
        content = read_plans(searchable)
        content["configurations"]["2d_iaclth"] = {"inherits_from": "2d"}
        (searchable / "nnUNetPlans.json").write_text(json.dumps(content))

    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    trainer.on_train_start, start = lambda: (start(), take()), trainer.on_train_start
    text = refused(4, trainer.run_training, capsys)
    assert "nnUNetv2_train 11 2d 0 -tr nnUNetTrainerIACLTHSearch --c" in text
    assert "--overwrite" not in text
    assert " -o " not in text
    content = read_plans(searchable)
    content["configurations"]["mine"] = content["configurations"].pop("2d_iaclth")
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    search(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    assert "2d_iaclth" in read_plans(searchable)["configurations"]


@NO_PICTURES
def test_two_searches_at_once_do_not_mix(searchable, capsys):
    first, seen = make_trainer(nnUNetTrainerIACLTHSearch, searchable), []

    def start_another(start=first.on_train_start):
        start()
        seen.append(refused(3, make_trainer(nnUNetTrainerIACLTHSearch, searchable).run_training, capsys))

    first.on_train_start = start_another
    first.run_training()
    assert "another process trains in" in seen[0]
    assert str(first.output_folder) in seen[0]
    genotype = json.loads((Path(first.output_folder) / "genotype.json").read_text())
    architecture = read_plans(searchable)["configurations"]["2d_iaclth"]["architecture"]
    assert architecture["arch_kwargs"]["cells"]["genotype"] == genotype


@NO_PICTURES
def test_a_search_that_runs_is_not_gone_on_with(searchable, capsys):
    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=1)
    first, seen = make_trainer(nnUNetTrainerIACLTHSearch, searchable, resume=True), []
    latest = str(Path(first.output_folder) / "checkpoint_latest.pth")
    first.load_checkpoint(latest)
    second = make_trainer(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    seen.append(refused(3, lambda: second.load_checkpoint(latest), capsys))
    assert "another process trains in" in seen[0]
    first.run_training()


@NO_PICTURES
def test_killed_between_the_last_checkpoint_and_the_history_its_last_epoch_is_not_lost(searchable, monkeypatch):
    save = CellHistory.save

    def killed(self, path):
        if len(self) == SHORT["num_epochs"]:
            raise KeyboardInterrupt
        save(self, path)

    trainer = make_trainer(nnUNetTrainerIACSearch, searchable)
    with monkeypatch.context() as patch:
        patch.setattr(CellHistory, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()
    again = search(nnUNetTrainerIACSearch, searchable, resume=True)
    assert len(CellHistory.load(Path(again.output_folder) / "search_history.npz")) == SHORT["num_epochs"]


@NO_PICTURES
def test_what_killed_writers_left_is_removed_by_the_next_one(searchable):
    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=1)
    left = search_folder(searchable) / ".checkpoint_latest.pth.abcd1234.tmp"
    left.write_bytes(b"half a checkpoint")
    search(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    assert not left.exists()


@NO_PICTURES
def test_a_setting_that_the_version_at_the_time_did_not_have_counts_as_its_default(searchable, capsys):
    trainer = search(nnUNetTrainerIACLTHSearch, searchable, stop_before=1)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    state = torch.load(path, weights_only=True)
    before = json.loads(state["settings"])
    del before["edge_nonlinearity"]
    torch.save({**state, "settings": json.dumps(before)}, path)
    make_trainer(nnUNetTrainerIACLTHSearch, searchable).load_checkpoint(str(path))
    set_settings(searchable, "2d", "iac_lth", edge_nonlinearity="identity")
    again = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    assert "edge_nonlinearity: elu -> identity" in refused(4, lambda: again.load_checkpoint(str(path)), capsys)


@NO_PICTURES
def test_a_search_that_began_with_another_default_says_which_settings_to_write(searchable, capsys):
    trainer = search(nnUNetTrainerIACLTHSearch, searchable, stop_before=1)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    state = torch.load(path, weights_only=True)
    before = {**json.loads(state["settings"]), "num_epochs": 200, "gamma": 1.5}
    torch.save({**state, "settings": json.dumps(before)}, path)
    set_settings(searchable, "2d", "iac_lth", gamma=2.0)
    again = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    text = refused(4, lambda: again.load_checkpoint(str(path)), capsys)
    wanted = "nnunet_nas set_search -d 11 -c 2d -m iac_lth num_epochs=200 gamma=default"
    assert "num_epochs: 200 -> 4, gamma: 1.5 -> 2.0" in text
    assert wanted in text
    assert main(wanted.split()[1:]) == 0
    make_trainer(nnUNetTrainerIACLTHSearch, searchable).load_checkpoint(str(path))


@NO_PICTURES
@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "no key"])
def test_a_damaged_checkpoint_is_one_line(searchable, damage, capsys):
    trainer = search(nnUNetTrainerIACLTHSearch, searchable, stop_before=1)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    content = path.read_bytes()
    if damage == "no key":
        state = torch.load(path, weights_only=True)
        del state["random"]
        torch.save(state, path)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "foreign": b"foreign"}[damage])
    again = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    assert str(path) in refused(4, lambda: again.load_checkpoint(str(path)), capsys)


@SLOW
@NO_PICTURES
def test_other_folds_name_the_fold(searchable):
    make_backbone(searchable, fold=2)
    trainer = search(nnUNetTrainerIACLTHSearch, searchable, fold=2)
    assert trainer.result_name() == "2d_iaclth_f2"
    assert "2d_iaclth_f2" in read_plans(searchable)["configurations"]
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert "validation cases of folds 0, 1, 3, 4" in log


@NO_PICTURES
def test_the_search_sees_training_cases_of_its_fold_only(searchable):
    trainer = make_trainer(nnUNetTrainerIACSearch, searchable)
    trainer.initialize()
    training, validation = trainer.do_split()
    trainer._half = 0
    first, _ = trainer.do_split()
    trainer._half = 1
    second, _ = trainer.do_split()
    assert sorted(first + second) == sorted(training)
    assert abs(len(first) - len(second)) <= 1
    assert not set(first) & set(second)
    assert not set(first + second) & set(validation)


@SLOW
@NO_PICTURES
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("plans", ["nnUNetPlans", "nnUNetResEncUNetMPlans"])
def test_anisotropic_3d_and_residual_encoders_work(configuration, plans, searchable):
    short = {"num_epochs": 2, "warmup_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 0}
    set_settings(searchable, configuration, "iac_lth", plans, **short)
    make_backbone(searchable, configuration, plans=plans)
    search(nnUNetTrainerIACLTHSearch, searchable, configuration=configuration, plans=plans)
    retrofit = make_trainer(nnUNetTrainerIACRetrofit, searchable, configuration=f"{configuration}_iaclth", plans=plans)
    retrofit.on_train_start()
    batch = next(retrofit.dataloader_train)
    assert np.isfinite(retrofit.train_step(batch)["loss"])


@SLOW
@NO_PICTURES
def test_cells_on_a_tiny_backbone(searchable):
    content = read_plans(searchable)
    architecture = json.loads(json.dumps(content["configurations"]["2d"]["architecture"]))
    architecture["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    content["configurations"]["2d_xtiny8"] = {"inherits_from": "2d", "architecture": architecture}
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    make_backbone(searchable, "2d_xtiny8")
    search(nnUNetTrainerIACLTHSearch, searchable, configuration="2d_xtiny8")
    assert read_plans(searchable)["configurations"]["2d_xtiny8_iaclth"]["inherits_from"] == "2d_xtiny8"
    retrofit = make_trainer(nnUNetTrainerIACRetrofit, searchable, configuration="2d_xtiny8_iaclth")
    retrofit.on_train_start()
    assert np.isfinite(retrofit.train_step(next(retrofit.dataloader_train))["loss"])


@SLOW
@NO_PICTURES
def test_regions_and_an_ignore_label_work(searchable):
    use_regions_and_an_ignore_label(searchable)
    make_backbone(searchable, seed=2)
    trainer = search(nnUNetTrainerIACLTHSearch, searchable)
    assert trainer.label_manager.has_regions
    assert trainer.label_manager.has_ignore_label
    assert trainer.network.decoder.seg_layers[0].out_channels == 2
    assert np.isfinite(trainer.history.train_loss).all()


@SLOW
@NO_PICTURES
def test_fold_all_works(searchable):
    make_backbone(searchable, fold="all")
    assert search(nnUNetTrainerIACLTHSearch, searchable, fold="all").result_name() == "2d_iaclth_fall"


@NO_PICTURES
def test_without_augmentation_nothing_is_mirrored(searchable):
    set_settings(searchable, "2d", "iac_lth", augmentation=False)
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    trainer.on_train_start()
    assert trainer.inference_allowed_mirroring_axes is None
    names = [type(transform).__name__ for transform in trainer.dataloader_train.data_loader.transforms.transforms]
    assert "SpatialTransform" not in names
    assert "MirrorTransform" not in names


@NO_PICTURES
def test_a_backbone_without_mirroring_is_not_mirrored(searchable):
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring,
    )

    shutil.rmtree(searchable.parents[1] / "nnUNet_results")
    (searchable.parents[1] / "nnUNet_results").mkdir()
    make_backbone(searchable, trainer=nnUNetTrainerNoMirroring)
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    trainer.on_train_start()
    assert trainer.backbone.trainer == "nnUNetTrainerNoMirroring"
    assert trainer.inference_allowed_mirroring_axes is None


@NO_PICTURES
def test_a_missing_backbone_names_the_command(searchable, capsys):
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable, fold=4)
    assert "nnUNetv2_train 11 2d 4" in refused(4, trainer.run_training, capsys)


@NO_PICTURES
def test_a_backbone_of_older_plans_is_refused(searchable, capsys):
    content = read_plans(searchable)
    content["configurations"]["2d"]["batch_size"] = 3
    (searchable / "nnUNetPlans.json").write_text(json.dumps(content))
    text = refused(4, make_trainer(nnUNetTrainerIACLTHSearch, searchable).run_training, capsys)
    assert "another version of configuration 2d" in text


@NO_PICTURES
def test_a_backbone_of_another_architecture_is_refused(searchable, capsys):
    path = next((searchable.parents[1] / "nnUNet_results").rglob("checkpoint_final.pth"))
    checkpoint = torch.load(path, weights_only=False)
    key = next(key for key in checkpoint["network_weights"] if key.startswith("encoder"))
    checkpoint["network_weights"][key] = checkpoint["network_weights"][key][:1]
    torch.save(checkpoint, path)
    text = refused(4, make_trainer(nnUNetTrainerIACLTHSearch, searchable).run_training, capsys)
    assert "another architecture" in text


@NO_PICTURES
def test_a_backbone_trained_again_meanwhile_is_noticed(searchable, capsys):
    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=2)
    make_backbone(searchable, seed=9)
    text = refused(4, lambda: search(nnUNetTrainerIACLTHSearch, searchable, resume=True), capsys)
    assert "trained again since this search began" in text


@NO_PICTURES
def test_changed_settings_are_not_mixed_into_a_search(searchable, capsys):
    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=2)
    set_settings(searchable, "2d", "iac_lth", gamma=2.0)
    text = refused(4, lambda: search(nnUNetTrainerIACLTHSearch, searchable, resume=True), capsys)
    assert "gamma: 1.5 -> 2.0" in text


@SLOW
@NO_PICTURES
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_epoch(searchable, capsys):
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searchable)
    poison(trainer, epoch=2)
    text = refused(4, trainer.run_training, capsys)
    assert "the loss became nan in epoch 2" in text
    again = search(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    assert len(again.history) >= 3


@SLOW
@NO_PICTURES
def test_what_is_in_checkpoints_is_not_in_nnunets_debug_file_too(searchable):
    def written(trainer):
        return json.loads((Path(trainer.output_folder) / "debug.json").read_text())

    search(nnUNetTrainerIACLTHSearch, searchable, stop_before=2)
    going_on = search(nnUNetTrainerIACLTHSearch, searchable, resume=True)
    assert sum(map(len, written(going_on).values())) < 50_000
    assert written(going_on)["resumed_from"] == "None"
    assert not {"_theta_0", "backbone", "history"} & set(written(going_on))
    assert going_on.resumed_from["current_epoch"] == 2
    retrofit = make_trainer(nnUNetTrainerIACRetrofit, searchable, configuration="2d_iaclth")
    retrofit.run_training()
    again = make_trainer(nnUNetTrainerIACRetrofit, searchable, configuration="2d_iaclth", resume=True)
    again.load_checkpoint(str(Path(again.output_folder) / "checkpoint_final.pth"))
    again.on_train_start()
    assert again._random_states is not None
    assert written(again)["_random_states"] == "None"


@SLOW
@NO_PICTURES
def test_several_gpus_are_told_of_batch_norms_that_are_not_synchronised(searchable, monkeypatch):
    def said(trainer):
        trainer.initialize()
        printed = []
        monkeypatch.setattr(trainer, "print_to_log_file", lambda *text, **_: printed.append(" ".join(map(str, text))))
        trainer._parallel = True
        trainer._log_unsynchronised_norms()
        return " ".join(printed)

    assert said(make_trainer(nnUNetTrainerIACLTHSearch, searchable)) == ""
    set_settings(searchable, "2d", "iac_lth", norm="batch")
    assert "each GPU's own patches" in said(make_trainer(nnUNetTrainerIACLTHSearch, searchable))


def with_scaler(trainer):
    """On the CPU, as nnU-Net has it on CUDA."""
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer._watch = LossWatch(trainer.grad_scaler)
    return trainer


@SLOW
@NO_PICTURES
@BOTH
def test_a_loss_that_overflows_once_costs_its_step_alone(trainer_class, searchable):
    trainer = with_scaler(make_trainer(trainer_class, searchable))
    poison(trainer, epoch=2)
    states, decide = {}, trainer.decide

    def remember():
        states[trainer.current_epoch] = copy.deepcopy(trainer.network.cell_state())
        decide()

    trainer.decide = remember
    trainer.run_training()
    assert len(trainer.history) == 4
    assert np.isnan(trainer.history.train_loss[2])
    assert np.isfinite(trainer.history.train_loss[[0, 1, 3]]).all()
    assert all(value.equal(states[1][key]) for key, value in states[2].items())
    assert not all(value.equal(states[2][key]) for key, value in states[3].items())
    assert 32768 <= trainer.grad_scaler.get_scale() < 65536


@SLOW
@NO_PICTURES
def test_a_loss_that_stays_nan_stops_a_search_in_half_precision(searchable, capsys):
    set_settings(searchable, "2d", "iac_lth", num_iterations_per_epoch=45)
    trainer = with_scaler(make_trainer(nnUNetTrainerIACLTHSearch, searchable))
    poison(trainer, epoch=0)
    text = refused(4, trainer.run_training, capsys)
    assert "the loss became nan in epoch 0 and stayed so for 40 iterations" in text
    assert not (Path(trainer.output_folder) / "checkpoint_latest.pth").exists()


@SLOW
@NO_PICTURES
def test_processes_stop_together_with_one_line_each(searchable, tmp_path):
    processes, _ = start_two_processes(nnUNetTrainerIACLTHSearch, searchable, tmp_path, "2")
    # The one with finite losses has NaN from the other's gradients in its weights, so that its own are NaN one later.
    for process in processes:
        printed, _ = process.communicate(timeout=300)
        lines = [line for line in printed.splitlines() if line.startswith("nnunet_nas: ")]
        assert process.returncode == 4, printed[-4000:]
        assert len(lines) == 1
        assert "in epoch 2: the search up to the epoch before is kept" in lines[0]
        assert "Traceback" not in printed


@NO_PICTURES
@BOTH
def test_a_warm_up_that_leaves_no_epoch_for_the_search_is_refused(trainer_class, searchable, capsys):
    set_settings(searchable, "2d", METHOD[trainer_class], num_epochs=4, warmup_epochs=4)
    text = refused(4, make_trainer(trainer_class, searchable).run_training, capsys)
    assert "warmup_epochs=4 leaves nothing of num_epochs=4" in text
    assert NAME[trainer_class] not in read_plans(searchable)["configurations"]


@NO_PICTURES
def test_a_cascade_is_refused(searchable, capsys):
    text = refused(
        2, lambda: make_trainer(nnUNetTrainerIACLTHSearch, searchable, configuration="3d_cascade_fullres"), capsys
    )
    assert "second stage of a cascade" in text


@NO_PICTURES
def test_an_unknown_setting_is_refused(searchable, capsys):
    set_settings(searchable, "2d", "iac_lth", gama=2)
    assert "gama" in refused(4, lambda: make_trainer(nnUNetTrainerIACLTHSearch, searchable), capsys)


@NO_PICTURES
def test_cells_in_cells_are_refused(searched, capsys):
    text = refused(
        4,
        make_trainer(nnUNetTrainerIACLTHSearch, searched, configuration="2d_iaclth").run_training,
        capsys,
    )
    assert "already" in text


@NO_PICTURES
def test_validation_alone_says_that_there_is_none(searched, capsys):
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, searched)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.perform_actual_validation()
    assert "nnUNetv2_train 11 2d_iaclth 0 -tr nnUNetTrainerIACRetrofit" in capsys.readouterr().out


@SLOW
def test_two_processes_take_the_same_decisions(searchable, tmp_path):
    set_settings(searchable, "2d", "iac_lth", num_epochs=30, architecture_lr=0.05, gamma=4.0)
    first, second = search_in_two_processes(nnUNetTrainerIACLTHSearch, searchable, tmp_path)
    assert first["network"]["alpha"].any()
    active = first["history"]["active"]
    assert active.equal(second["history"]["active"])
    # The graph got smaller step by step, until one operation per edge was left.
    assert len(active.sum((1, 2)).unique()) > 2
    assert active[-1].sum(1).eq(1).all()
    assert "2d_iaclth" in read_plans(searchable)["configurations"]
