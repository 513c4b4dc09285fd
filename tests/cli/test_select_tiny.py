"""`nnunet_nas select_tiny` from end to end on a tiny data set: what it writes, prints, refuses and survives.

The bases have 32 channels at most: caps 32 (the base), 16, 8, 4, 2, 1, of which the paper's rule can select 16 and 8.
"""

import copy
import csv
import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nnunet_nas.cli.main import main
from nnunet_nas.xtiny import job, report
from nnunet_nas.xtiny.scoring import Scorer
from nnunet_nas.xtiny.store import ScoreStore

ROOT = Path(__file__).resolve().parents[2]
CAPS = [32, 16, 8, 4, 2, 1]
CASES = [f"case_{number:02d}" for number in range(12)]
ADDED = ["2d_xtiny16", "2d_xtiny8", "2d_xtiny4", "2d_xtiny2", "2d_xtiny1"]


@pytest.fixture
def tiny(dataset, capsys):
    """Calls the command on the data set; returns exit code, standard output and standard error.

    Unless `few` images are enough, those that are not named are all: the paper's way.
    """

    def call(*arguments, device="cpu", name="11", few=False):
        try:
            rule = [] if "-rule" in arguments else ["-rule", "paper"]
            images = [] if few or {"-n", "-cases"} & {*arguments} else ["-n", "all"]
            code = main(["select_tiny", "-d", name, "-device", device, *rule, *images, *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def known_costs():
    return {}


@pytest.fixture(autouse=True)
def quick(request, monkeypatch, known_costs):
    """Counts the cost of each network once for all tests, and draws the picture only where `picture` asks for it."""
    count = job.complexity_of

    def complexity_of(spec):
        key = json.dumps(
            [spec.architecture, spec.input_channels, spec.output_channels, spec.patch_size], sort_keys=True
        )
        if key not in known_costs:
            known_costs[key] = count(spec)
        return known_costs[key]

    monkeypatch.setattr(job, "complexity_of", complexity_of)
    if "picture" not in request.fixturenames:
        monkeypatch.setattr(report, "draw", lambda report: Figure(figsize=(1, 1)))


@pytest.fixture
def picture(results):
    """The picture that the test looks at."""
    return results / "sensitivity.png"


@pytest.fixture
def plans_file(dataset):
    return dataset / "nnUNetPlans.json"


@pytest.fixture
def results(dataset):
    return dataset / "nas_xtiny" / "nnUNetPlans__2d"


def read(path):
    return json.loads(path.read_text())


def edit(path, change):
    content = read(path)
    change(content)
    path.write_text(json.dumps(content, indent=4))


def listing(folder):
    """Every file and folder with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def no_scoring(monkeypatch):
    def fail(*arguments, **keywords):
        raise AssertionError("something was scored")

    monkeypatch.setattr(Scorer, "_measure", fail)


def scores(selection):
    return [candidate["score_by_seed"] for candidate in selection["candidates"]]


SLOW = pytest.mark.integration
BASES = [
    ("nnUNetPlans", "2d"),
    pytest.param("nnUNetPlans", "2d_bs4", marks=SLOW),
    pytest.param("nnUNetPlans", "3d_lowres", marks=SLOW),
    ("nnUNetPlans", "3d_fullres"),
    ("nnUNetResEncUNetMPlans", "2d"),
    pytest.param("nnUNetResEncUNetMPlans", "3d_fullres", marks=SLOW),
]


@pytest.mark.parametrize(("plans", "base"), BASES)
def test_nnunet_builds_every_width_that_was_added(tiny, dataset, plans, base):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    before = read(dataset / f"{plans}.json")
    assert tiny("-p", plans, "-c", base, "-n", 4)[0] == 0
    manager = PlansManager(str(dataset / f"{plans}.json"))
    original = manager.get_configuration(base)
    for cap in CAPS[1:]:
        added = manager.get_configuration(f"{base}_xtiny{cap}")
        arguments = {**original.network_arch_init_kwargs, "features_per_stage": [min(cap, 16), cap, cap]}
        assert added.network_arch_init_kwargs == arguments
        assert added.network_arch_class_name == original.network_arch_class_name
        assert (added.data_identifier, added.batch_size) == (original.data_identifier, original.batch_size)
        required = added.network_arch_init_kwargs_req_import
        network = get_network_from_plans(added.network_arch_class_name, arguments, required, 1, 2)
        with torch.no_grad():
            assert network(torch.randn(1, 1, *added.patch_size)).shape == (1, 2, *added.patch_size)
    after = read(dataset / f"{plans}.json")
    for cap in CAPS[1:]:
        del after["configurations"][f"{base}_xtiny{cap}"]
    assert json.dumps(after) == json.dumps(before)


def test_three_files_lie_beside_the_plans(tiny, results, picture):
    assert tiny()[0] == 0
    selection = read(results / "selection.json")
    assert [candidate["cap"] for candidate in selection["candidates"]] == CAPS
    assert selection["selected"]["cap"] in {16, 8}
    assert selection["inputs"]["cases"] == CASES
    with (results / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["cap"]) for row in rows] == CAPS
    assert [float(row["jacobian"]) for row in rows] == [c["score"] for c in selection["candidates"]]
    # The header of a PNG names its size: 7 x 7.5 inches at 150 dots.
    header = picture.read_bytes()[:24]
    assert header[1:4] == b"PNG"
    assert [int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")] == [1050, 1125]


def test_a_score_is_what_the_definition_says(tiny, dataset, results):
    """Once more in the plainest way: nnU-Net's network, one image at a time, gradient by `backward`."""
    import blosc2
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    assert tiny()[0] == 0
    added = PlansManager(str(dataset / "nnUNetPlans.json")).get_configuration("2d_xtiny8")
    random.seed(369)
    np.random.seed(369)
    torch.manual_seed(369)
    network = get_network_from_plans(
        added.network_arch_class_name,
        added.network_arch_init_kwargs,
        added.network_arch_init_kwargs_req_import,
        1,
        2,
        deep_supervision=False,
    )
    norms = []
    for case in CASES:
        image = blosc2.open(str(dataset / "nnUNetPlans_2d" / f"{case}.b2nd"))[:]  # (1, 3, 40, 28)
        patch = np.pad(image[:, 1, 4:36], [(0, 0), (0, 0), (2, 2)])
        inputs = torch.from_numpy(patch)[None].requires_grad_(True)
        network(inputs).sum().backward()
        norms.append(float(inputs.grad.norm()))
    score = next(c["score"] for c in read(results / "selection.json")["candidates"] if c["cap"] == 8)
    assert score == pytest.approx(np.mean(norms), rel=1e-4)


def test_the_table_marks_the_selection_and_ends_with_the_next_commands(tiny, results):
    code, out, err = tiny()
    selected = read(results / "selection.json")["selected"]["configuration"]
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[2:8]] == ["2d", *ADDED]
    assert [line.split()[0] for line in lines if "<- selected" in line] == [selected]
    assert lines[-2:] == [
        f"  nnUNetv2_train 11 {selected} 0",
        f"  nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d 11 -c {selected} -f 0",
    ]
    assert f"Added {', '.join(ADDED)} to the plans." in out
    assert err == ""


def test_json_is_all_that_is_printed(tiny, results):
    code, out, err = tiny("--json")
    printed = json.loads(out)
    assert (code, err) == (0, "")
    assert printed.pop("written") == ADDED
    assert printed.pop("next_commands")[0] == f"nnUNetv2_train 11 {printed['selected']['configuration']} 0"
    assert printed == read(results / "selection.json")


def test_a_data_set_is_found_by_name_as_well(tiny, results):
    assert tiny("--json", name="Dataset011_Fake")[0] == 0
    assert results.is_dir()


def test_the_plans_record_where_a_width_comes_from(tiny, plans_file):
    from nnunet_nas.plans import Plans

    digest = Plans(read(plans_file)).digest("2d")
    assert tiny("-n", 4, "-seed", 1, 2)[0] == 0
    record = read(plans_file)["configurations"]["2d_xtiny4"]["nas"]
    assert (record["method"], record["base_digest"], record["seeds"], record["fold"]) == ("xtiny", digest, [1, 2], None)
    assert (record["settings"]["cap"], record["settings"]["images"]) == (4, 4)


def test_batch_normalisation_is_scored_one_image_at_a_time_and_said(tiny, plans_file):
    def use_batch_norm(plans):
        arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
        arguments["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"

    said = "The network has batch normalisation, in which images influence each other: scored one at a time."
    assert said not in tiny("-n", 4, "--dry_run")[1]
    edit(plans_file, use_batch_norm)
    code, out, _ = tiny("-n", 4, "--dry_run")
    assert code == 0
    assert said in out.splitlines()


def test_the_search_settings_of_a_base_are_left_alone(tiny, plans_file):
    edit(plans_file, lambda plans: plans["configurations"]["2d"].update(nas_settings={"dints": {"epochs": 3}}))
    assert tiny("-n", 4)[0] == 0
    configurations = read(plans_file)["configurations"]
    assert configurations["2d"]["nas_settings"] == {"dints": {"epochs": 3}}
    assert "nas_settings" not in configurations["2d_xtiny8"]


@pytest.mark.parametrize("earlier_run", [False, True])
def test_a_dry_run_writes_nothing_at_all(tiny, nnunet_folders, earlier_run):
    if earlier_run:
        assert tiny("-n", 4)[0] == 0
    before = listing(nnunet_folders)
    code, out, _ = tiny("-n", 4, "-seed", 5, "--dry_run")
    assert code == 0
    assert "Nothing was written" in out
    assert listing(nnunet_folders) == before


def without_seconds(selection):
    """What two runs share: all but the time that they took."""
    assert selection["seconds"] > 0
    return {key: value for key, value in selection.items() if key != "seconds"}


def test_a_dry_run_prints_what_a_run_then_writes(tiny, results):
    dry = json.loads(tiny("--json", "--dry_run")[1])
    assert dry["written"] == []
    assert tiny()[0] == 0
    written = read(results / "selection.json")
    assert {key: dry[key] for key in written if key != "seconds"} == without_seconds(written)


def test_what_selection_json_lists_is_replayed_exactly(tiny, dataset, results):
    plans = (dataset / "nnUNetPlans.json").read_bytes()
    assert tiny("-n", 5, "-seed", 7, 3)[0] == 0
    first = read(results / "selection.json")
    assert len(first["inputs"]["cases"]) == 5
    shutil.rmtree(dataset / "nas_xtiny")
    (dataset / "nnUNetPlans.json").write_bytes(plans)
    assert tiny("-cases", *first["inputs"]["cases"], "-seed", *first["inputs"]["seeds"])[0] == 0
    assert without_seconds(read(results / "selection.json")) == without_seconds(first)


def test_images_are_drawn_with_a_seed_of_their_own(tiny, results):
    drawn = []
    for options in ([], ["-seed", 1], ["-seed", 1, 2], ["-image_seed", 2]):
        assert tiny("-n", 4, *options)[0] == 0
        drawn.append(read(results / "selection.json")["inputs"]["cases"])
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    # What the default seed has always drawn.
    assert drawn[0] == [CASES[index] for index in sorted(np.random.default_rng(369).choice(12, 4, replace=False))]


def test_seeds_that_are_added_as_advised_keep_what_was_scored(tiny, results, monkeypatch):
    _, out, _ = tiny("-n", 4)
    advised = re.search(r"add -seed ([\d ]+) to see it", out)[1].split()
    assert (advised[0], len(advised)) == ("369", 10)
    scored, measure = set(), Scorer._measure
    monkeypatch.setattr(
        Scorer,
        "_measure",
        lambda self, candidate, seed, *rest: [scored.add(seed), measure(self, candidate, seed, *rest)],
    )
    assert tiny("-n", 4, "-seed", *advised[:3])[0] == 0
    assert scored == {int(seed) for seed in advised[1:3]}


def numbers_of_seeds(selection):
    return [len(by_seed) for by_seed in scores(selection)]


def test_few_images_do_and_narrow_widths_are_drawn_more_often(tiny, results, plans_file, picture):
    code, out, _ = tiny(few=True)
    selection = read(results / "selection.json")
    numbers = numbers_of_seeds(selection)
    assert code == 0
    assert len(selection["inputs"]["cases"]) == 2
    assert numbers[0] == min(numbers) == 2
    assert numbers == sorted(numbers)
    assert numbers[-1] > 2
    for candidate in selection["candidates"]:
        assert candidate["score"] == pytest.approx(np.mean(list(candidate["score_by_seed"].values())))
    narrowest = read(plans_file)["configurations"]["2d_xtiny1"]["nas"]["seeds"]
    assert narrowest == [int(seed) for seed in selection["candidates"][-1]["score_by_seed"]]
    assert narrowest == [369, *range(numbers[-1] - 1)]
    assert read(plans_file)["configurations"]["2d_xtiny16"]["nas"]["seeds"] == [369, 0][: numbers[1]]
    with (results / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == sum(numbers)
    assert f"2 images, 2 to {numbers[-1]} seed(s)" in out
    assert "Each of 2 seeds alone would select" in out


def test_what_follows_from_the_law_is_stored_and_goes_on(tiny, dataset, results, monkeypatch):
    whole = json.loads(tiny("--json", "--dry_run", few=True)[1])
    add, added = ScoreStore.add, []

    def interrupt(self, seed, cap, values, seconds):
        if len(added) == 8:  # within the second seed
            raise KeyboardInterrupt
        added.append((seed, cap))
        add(self, seed, cap, values, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "add", interrupt)
        assert tiny(few=True)[0] == 130
    assert tiny(few=True)[0] == 0
    resumed = read(results / "selection.json")
    del resumed["seconds"]
    assert {key: whole[key] for key in resumed} == resumed
    before = listing(dataset)
    no_scoring(monkeypatch)
    assert tiny(few=True)[0] == 0
    assert listing(dataset) == before
    # The same two images and seeds are named now.
    assert tiny("-seed", 369, 0, few=True)[0] == 0
    named = scores(read(results / "selection.json"))
    assert named == [{seed: by_seed[seed] for seed in ("369", "0")} for by_seed in scores(resumed)]


def test_named_seeds_are_those_of_all_widths(tiny, results):
    assert tiny("-seed", 5, 6, 7, few=True)[0] == 0
    selection = read(results / "selection.json")
    assert numbers_of_seeds(selection) == [3] * len(CAPS)
    assert len(selection["inputs"]["cases"]) == 2


def test_the_rule_for_several_seeds_takes_ten_by_itself(tiny, results):
    code, out, _ = tiny("-rule", "spread", few=True)
    assert code == 0
    assert numbers_of_seeds(read(results / "selection.json")) == [10] * len(CAPS)
    assert "Each of 10 seeds alone would select" in out


@pytest.mark.parametrize("metric", ["naswot", "swap", "az_nas", "synflow"])
def test_what_is_no_mean_over_images_sees_as_many_as_ever(tiny, dataset, metric):
    assert tiny("-metric", metric, few=True)[0] == 0
    selection = read(dataset / "nas_xtiny" / f"nnUNetPlans__2d__{metric}" / "selection.json")
    assert (selection["inputs"]["cases"], selection["inputs"]["seeds"]) == (CASES, [369])


def test_all_images_are_scored_when_asked_for(tiny, results):
    assert tiny("-n", "all")[0] == 0
    assert len(read(results / "selection.json")["inputs"]["cases"]) == 12


def test_a_second_run_scores_nothing_and_changes_nothing(tiny, dataset, monkeypatch):
    assert tiny()[0] == 0
    before = listing(dataset)
    no_scoring(monkeypatch)
    code, out, _ = tiny()
    assert code == 0
    assert "The plans had these configurations already." in out
    assert listing(dataset) == before


def test_a_finished_selection_is_printed_without_torch(tiny):
    _, first, _ = tiny("-n", 4)
    call = ["select_tiny", "-rule", "paper", "-d", "11", "-device", "cpu", "-n", "4"]
    script = (
        f"import sys; from nnunet_nas.cli.main import main; assert main({call}) == 0; print('torch' in sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    *printed, torch_was_imported = again.stdout.splitlines()
    assert torch_was_imported == "False"
    assert [line for line in printed if "xtiny" in line and "." in line] == [
        line.replace(f"Added {', '.join(ADDED)} to the plans.", "The plans had these configurations already.")
        for line in first.splitlines()
        if "xtiny" in line and "." in line
    ]


@pytest.mark.parametrize("lost", ["sensitivity.png", "scores.csv"])
def test_a_report_that_was_lost_is_written_again(tiny, results, monkeypatch, lost):
    assert tiny("-n", 4)[0] == 0
    no_scoring(monkeypatch)
    (results / lost).unlink()
    assert tiny("-n", 4)[0] == 0
    assert (results / lost).exists()


def test_an_image_that_was_replaced_is_scored_again(tiny, dataset, results):
    assert tiny("-cases", "case_00", "case_03")[0] == 0
    before = scores(read(results / "selection.json"))
    spoil(dataset, "case_05", 9.0)  # not among them
    assert tiny("-cases", "case_00", "case_03")[0] == 0
    assert scores(read(results / "selection.json")) == before
    spoil(dataset, "case_03", 9.0)
    assert tiny("-cases", "case_00", "case_03")[0] == 0
    assert scores(read(results / "selection.json")) != before


def test_reports_of_other_settings_are_kept_and_the_plans_tell_of_the_last_run(tiny, results, plans_file):
    assert tiny("-n", 4)[0] == 0
    first = (results / "selection.json").read_bytes()
    _, out, _ = tiny("-n", 4, "-seed", 1, 2)
    (kept,) = results.glob("earlier_*")
    assert f"reports are kept: {kept}" in out
    assert (kept / "selection.json").read_bytes() == first
    assert sorted(path.name for path in kept.iterdir()) == ["scores.csv", "selection.json", "sensitivity.png"]
    selection = read(results / "selection.json")
    for name in ADDED:
        record = read(plans_file)["configurations"][name]["nas"]
        assert record["seeds"] == selection["inputs"]["seeds"] == [1, 2]
        assert record["settings"]["selected_cap"] == selection["selected"]["cap"]


def test_a_width_that_was_trained_keeps_the_record_that_it_was_trained_with(tiny, plans_file, nnunet_folders):
    assert tiny("-n", 4)[0] == 0
    trained = nnunet_folders / "nnUNet_results" / "Dataset011_Fake" / "nnUNetTrainer__nnUNetPlans__2d_xtiny8"
    trained.mkdir(parents=True)
    assert tiny("-n", 4, "-seed", 1)[0] == 0
    records = {name: read(plans_file)["configurations"][name]["nas"]["seeds"] for name in ADDED}
    assert records == {name: [369] if name == "2d_xtiny8" else [1] for name in ADDED}


def test_five_widths_leave_no_choice_and_that_is_said(tiny, plans_file):
    edit(plans_file, with_arguments(features_per_stage=[16, 16, 16]))
    code, out, _ = tiny("-n", 4, "-seed", 1, 2, "--dry_run")
    assert code == 0
    assert "This is no selection: of 5 widths the paper's rule can take cap 8 only" in out
    assert "stable" not in out


def test_another_seed_is_scored_and_the_known_one_is_not(tiny, monkeypatch):
    assert tiny("-cases", "case_00", "-seed", 1)[0] == 0
    scored = []
    measure = Scorer._measure
    monkeypatch.setattr(
        Scorer,
        "_measure",
        lambda self, candidate, seed, *rest: [scored.append(seed), measure(self, candidate, seed, *rest)],
    )
    assert tiny("-cases", "case_00", "-seed", 1, 2)[0] == 0
    assert scored == [2] * len(CAPS)


def test_scores_of_a_changed_base_are_not_used_again(tiny, plans_file, monkeypatch):
    assert tiny("-n", 4)[0] == 0
    for name in ADDED:
        edit(plans_file, lambda plans, name=name: plans["configurations"].pop(name))
    edit(plans_file, lambda plans: plans["configurations"]["2d"].update(spacing=[2.0, 2.0]))
    added, add = [], ScoreStore.add

    def count(self, seed, cap, values, seconds):
        added.extend((cap, case) for case in values)
        add(self, seed, cap, values, seconds)

    monkeypatch.setattr(ScoreStore, "add", count)
    assert tiny("-n", 4)[0] == 0
    assert len(added) == 4 * len(CAPS)


def test_several_seeds_make_several_curves_and_say_how_stable_the_choice_is(tiny, results):
    code, out, _ = tiny("-n", 4, "-seed", 0, 1, 2)
    selection = read(results / "selection.json")
    assert code == 0
    assert [list(candidate["score_by_seed"]) for candidate in selection["candidates"]] == [["0", "1", "2"]] * 6
    for candidate in selection["candidates"]:
        assert candidate["score"] == pytest.approx(sum(candidate["score_by_seed"].values()) / 3)
    assert sum(selection["seed_wins"].values()) == 3
    assert sum(selection["resampled_shares"].values()) == pytest.approx(1)
    assert "Each of 3 seeds alone would select" in out


def test_a_seed_gives_the_same_curve_alone_and_among_others(tiny, results):
    assert tiny("-seed", 2, "-cases", "case_00", "case_03")[0] == 0
    alone = scores(read(results / "selection.json"))
    shutil.rmtree(results)
    assert tiny("-seed", 1, 2, "-cases", "case_00", "case_03")[0] == 0
    assert [{"2": by_seed["2"]} for by_seed in scores(read(results / "selection.json"))] == alone


def test_a_budget_moves_the_choice_to_the_widest_that_fits(tiny, results):
    assert tiny()[0] == 0
    parameters = {c["cap"]: c["parameters"] for c in read(results / "selection.json")["candidates"]}
    code, out, _ = tiny("-max_params", parameters[4] - 1)
    assert code == 0
    assert read(results / "selection.json")["selected"]["configuration"] == "2d_xtiny2"
    assert "cap 2 is the widest in the budget" in out
    assert out.splitlines()[-2].split() == ["nnUNetv2_train", "11", "2d_xtiny2", "0"]


def test_a_budget_that_the_choice_satisfies_changes_nothing(tiny, results):
    assert tiny()[0] == 0
    before = read(results / "selection.json")["selected"]
    assert tiny("--max_params", 10**9, "-max_macs", 10**12, "-max_memory_mib", 10**6)[0] == 0
    assert read(results / "selection.json")["selected"] == before


@pytest.mark.parametrize(
    ("option", "name"), [("-max_params", "parameters"), ("-max_macs", "macs"), ("-max_memory_mib", "inference_mib")]
)
def test_a_budget_that_nothing_satisfies_is_exit_code_5_before_any_scoring(tiny, dataset, monkeypatch, option, name):
    # The narrowest network holds its input of 32 x 32 floats and as much again: more than 0.004 MiB, less than 1.
    edit(dataset / "nnUNetPlans.json", lambda plans: plans["configurations"]["2d"].update(patch_size=[1024, 1024]))
    before = listing(dataset)
    no_scoring(monkeypatch)
    code, out, err = tiny(option, 1)
    assert (code, out) == (5, "")
    assert len(err.splitlines()) == 1
    assert f"no width satisfies {name} <= 1" in err
    assert {path: digest for path, digest in listing(dataset).items() if path.endswith(".json")} == {
        path: digest for path, digest in before.items() if path.endswith(".json")
    }


def test_the_rule_for_several_seeds(tiny, results):
    code, out, _ = tiny("-n", 4, "-rule", "spread", "-seed", *range(6))
    selection = read(results / "selection.json")
    assert code == 0
    assert selection["rule"] == "spread"
    spread = [candidate["fitted_log_spread"] for candidate in selection["candidates"]]
    # By its definition: the narrowest width at which 95 % of the initialisations stay within a factor of two.
    stable = [cap for cap, value in zip(CAPS, spread, strict=True) if 1.96 * value <= np.log(2)]
    assert selection["selected"]["cap"] == stable[-1]
    assert "95 % of random initialisations" in out


@pytest.mark.parametrize("metric", ["jacobian", "naswot", "swap", "az_nas", "synflow"])
def test_every_metric_gives_a_curve_and_a_choice_of_its_own(tiny, dataset, metric):
    code, out, _ = tiny("-metric", metric)
    folder = dataset / "nas_xtiny" / ("nnUNetPlans__2d" if metric == "jacobian" else f"nnUNetPlans__2d__{metric}")
    selection = read(folder / "selection.json")
    assert code == 0
    assert selection["inputs"]["metric"] == metric
    assert selection["selected"]["cap"] in {16, 8}
    assert len({candidate["score"] for candidate in selection["candidates"]}) > 1
    assert f"  {'sensitivity' if metric == 'jacobian' else metric}  " in out.splitlines()[0]


def test_a_metric_that_saturates_is_a_flat_curve_and_said(tiny, dataset):
    """Four images have 2^4 sample-wise activation patterns, and every width shows all of them."""
    fragments = ("the curve is flat", "cannot exceed 16 on 4 images", "-n", "-metric")
    refused(lambda: tiny("-n", 4, "-metric", "swap"), 4, *fragments, dataset=dataset)


def test_a_metric_that_nearly_saturates_is_said(tiny):
    code, out, _ = tiny("-n", 10, "-metric", "swap", "--dry_run")
    assert code == 0
    assert "swap cannot exceed 1024 on 10 images, and caps 32, 16, 8" in out


def test_a_metric_that_compares_images_refuses_a_single_one(tiny, dataset):
    refused(lambda: tiny("-n", 1, "-metric", "naswot"), 2, "compares images with each other", dataset=dataset)


def test_metrics_do_not_mix_their_scores(tiny, dataset):
    assert tiny()[0] == tiny("-metric", "swap")[0] == 0
    jacobian = read(dataset / "nas_xtiny" / "nnUNetPlans__2d" / "selection.json")
    swap = read(dataset / "nas_xtiny" / "nnUNetPlans__2d__swap" / "selection.json")
    assert scores(jacobian) != scores(swap)


@pytest.mark.parametrize("earlier_run", [False, True])
def test_separate_plans_are_written_and_used_in_the_next_commands(tiny, dataset, plans_file, earlier_run):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if earlier_run:
        assert tiny("-n", 4)[0] == 0
    before = plans_file.read_bytes()
    code, out, _ = tiny("-n", 4, "-o", "tinyPlans")
    assert code == 0
    assert plans_file.read_bytes() == before
    manager = PlansManager(str(dataset / "tinyPlans.json"))
    assert manager.plans_name == "tinyPlans"
    assert manager.get_configuration("2d_xtiny8").data_identifier == "nnUNetPlans_2d"
    assert (dataset / "nas_xtiny" / "tinyPlans__2d" / "selection.json").exists()
    assert [line.split()[-2:] for line in out.splitlines()[-2:]] == [["-p", "tinyPlans"]] * 2


OLD_KEYS = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 16,
    "unet_max_num_features": 32,
    "n_conv_per_stage_encoder": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "num_pool_per_axis": [2, 2],
    "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]],
    "conv_kernel_sizes": [[3, 3], [3, 3], [3, 3]],
}


def make_old(plans, unet_class="PlainConvUNet"):
    """The format of nnU-Net before 2.2: keys of the U-Net instead of an architecture."""
    del plans["configurations"]["2d"]["architecture"]
    plans["configurations"]["2d"].update(OLD_KEYS, UNet_class_name=unet_class)


@pytest.mark.parametrize("unet_class", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_of_an_older_nnunet_are_extended(tiny, dataset, plans_file, unet_class):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    edit(plans_file, lambda plans: make_old(plans, unet_class))
    before = read(plans_file)
    code, _, err = tiny("-n", 4)
    assert (code, err) == (0, "")
    added = PlansManager(str(plans_file)).get_configuration("2d_xtiny4")
    assert added.network_arch_class_name.endswith(f".{unet_class}")
    assert added.network_arch_init_kwargs["features_per_stage"] == [4, 4, 4]
    after = read(plans_file)
    assert after["configurations"]["2d"] == before["configurations"]["2d"]


def refused(call, code, *fragments, dataset):
    """A call that fails in one line, without a traceback, and leaves all JSON files as they were."""
    before = {path: digest for path, digest in listing(dataset).items() if path.endswith(".json")}
    actual, out, err = call()
    assert (actual, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("nnunet_nas select_tiny: ")
    assert "Traceback" not in err
    assert "unexpected" not in err
    for fragment in fragments:
        assert fragment in err
    assert {path: digest for path, digest in listing(dataset).items() if path.endswith(".json")} == before


def test_an_unset_variable_is_named(tiny, dataset, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    refused(tiny, 3, "nnUNet_preprocessed is not set: export", dataset=dataset)


@pytest.mark.parametrize("name", ["12", "Dataset012_Other"])
def test_an_unknown_data_set_is_named_with_what_there_is(tiny, dataset, name):
    fragments = (name, "Dataset011_Fake", "nnUNetv2_plan_and_preprocess -d 12")
    refused(lambda: tiny(name=name), 4, *fragments, dataset=dataset)


def test_what_is_no_data_set_at_all_is_a_usage_error(tiny, dataset):
    refused(lambda: tiny(name="Fake"), 2, "-d Fake is neither a number nor a name", dataset=dataset)


def test_unknown_plans_are_named(tiny, dataset):
    refused(lambda: tiny("-p", "myPlans"), 4, "myPlans.json does not exist", "-p", dataset=dataset)


def test_an_unknown_configuration_is_named_with_what_there_is(tiny, dataset):
    refused(lambda: tiny("-c", "2D"), 4, "configuration 2D is not in the plans; choose one of: 2d, ", dataset=dataset)


@pytest.mark.parametrize("remains", [None, "folder", "stray file", "labels"])
def test_data_that_are_not_preprocessed_are_said(tiny, dataset, remains):
    shutil.rmtree(dataset / "nnUNetPlans_2d")
    if remains:
        (dataset / "nnUNetPlans_2d").mkdir()
    if remains == "stray file":
        (dataset / "nnUNetPlans_2d" / "notes.txt").write_text("?")
    if remains == "labels":
        (dataset / "nnUNetPlans_2d" / "case_00_seg.b2nd").write_text("?")
    refused(tiny, 4, "nnUNetPlans_2d", "run nnUNetv2_preprocess", dataset=dataset)


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_truncated_plans_are_said(tiny, dataset, plans_file, length):
    plans_file.write_bytes(plans_file.read_bytes()[:length])
    refused(tiny, 4, "is not valid JSON", "nnUNetv2_plan_experiment -d 11", dataset=dataset)


@pytest.mark.parametrize("content", [b"not JSON", b"[]", b"{}", b"\x80\x04\x95"])
def test_a_file_that_is_not_plans_is_said(tiny, dataset, plans_file, content):
    plans_file.write_bytes(content)
    refused(tiny, 4, str(plans_file), "nnUNetv2_plan_experiment -d 11", dataset=dataset)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"channel_names": {"0": "MRI"}, "labels": {"a": 1}}'])
def test_an_unfit_dataset_json_is_said(tiny, dataset, content):
    (dataset / "dataset.json").unlink()
    if content is not None:
        (dataset / "dataset.json").write_bytes(content)
    refused(tiny, 4, "dataset.json", "nnUNetv2_plan", dataset=dataset)


@pytest.fixture
def read_only(dataset, monkeypatch):
    """The data set as on a file system that is mounted read-only; holds for root, too."""
    system_open, system_mkdir = os.open, os.mkdir

    def below(path):
        return Path(os.fsdecode(path)).is_relative_to(dataset)

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def guarded_open(path, flags, *arguments, **keywords):
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return refuse(path) if writes and below(path) else system_open(path, flags, *arguments, **keywords)

    def guarded_mkdir(path, *arguments, **keywords):
        return refuse(path) if below(path) else system_mkdir(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", guarded_open)
    monkeypatch.setattr(os, "mkdir", guarded_mkdir)


def test_a_read_only_folder_is_said_before_any_scoring(tiny, dataset, read_only, monkeypatch):
    no_scoring(monkeypatch)
    before = listing(dataset)
    refused(tiny, 3, str(dataset), "Read-only file system", "make it writable", dataset=dataset)
    assert listing(dataset) == before


@pytest.mark.usefixtures("read_only")
def test_a_dry_run_needs_no_writable_folder(tiny):
    assert tiny("-n", 4, "--dry_run")[0] == 0


def test_a_file_in_the_way_of_the_results_is_said(tiny, dataset):
    (dataset / "nas_xtiny").write_text("mine")
    refused(tiny, 3, "nas_xtiny", dataset=dataset)
    assert (dataset / "nas_xtiny").read_text() == "mine"


def with_architecture(**changes):
    return lambda plans: plans["configurations"]["2d"]["architecture"].update(changes)


def with_arguments(**changes):
    return lambda plans: plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(changes)


def with_configuration(**changes):
    return lambda plans: plans["configurations"]["2d"].update(changes)


UNFIT = {
    "no features_per_stage": (with_architecture(arch_kwargs={"width": 16}), "has no features_per_stage list"),
    "one number": (with_arguments(features_per_stage=32), "has no features_per_stage list"),
    "words": (with_arguments(features_per_stage=["16", "32", "32"]), "has no features_per_stage list"),
    "empty": (with_arguments(features_per_stage=[]), "has no features_per_stage list"),
    "too few stages": (with_arguments(features_per_stage=[16, 32]), "features_per_stage=[16, 32]"),
    "unknown class": (with_architecture(network_class_name="nowhere.Net"), "nowhere.Net"),
    "no arguments": (lambda plans: plans["configurations"]["2d"]["architecture"].pop("arch_kwargs"), "arch_kwargs"),
    "no architecture": (with_configuration(architecture=None), "no network that nnU-Net could build"),
    "groups that do not divide": (
        with_arguments(norm_op="torch.nn.GroupNorm", norm_op_kwargs={"num_groups": 2}),
        "GroupNorm",
    ),
    "patch that does not divide": (with_configuration(patch_size=[30, 30]), "cannot process its patch size 30x30"),
    "patch of three axes": (with_configuration(patch_size=[8, 32, 32]), "cannot process its patch size 8x32x32"),
    "narrow already": (with_arguments(features_per_stage=[8, 8, 8]), "the rule needs 5"),
    "no data": (lambda plans: plans["configurations"]["2d"].pop("data_identifier"), "has no data_identifier"),
    "not an object": (lambda plans: plans["configurations"].update({"2d": []}), "is not one of nnU-Net v2"),
    "unknown old format": (lambda plans: make_old(plans, "SwinUNETR"), "Unknown architecture SwinUNETR"),
    "circle": (with_configuration(inherits_from="2d"), "inherits from itself"),
}


@pytest.mark.parametrize(("change", "fragment"), UNFIT.values(), ids=UNFIT)
def test_a_configuration_that_cannot_be_narrowed_is_said(tiny, dataset, plans_file, change, fragment):
    edit(plans_file, change)
    refused(tiny, 4, fragment, dataset=dataset)


def test_a_network_whose_module_does_not_import_is_said(tiny, dataset, plans_file, tmp_path, monkeypatch):
    (tmp_path / "needs_a_gpu.py").write_text("raise OSError('libcuda\\nis missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NNUNET_NAS_TRUST", "needs_a_gpu")
    edit(plans_file, with_architecture(network_class_name="needs_a_gpu.Net"))
    refused(tiny, 4, "needs_a_gpu.Net", "libcuda is missing", dataset=dataset)


def test_a_cascade_is_refused_with_what_to_take_instead(tiny, dataset):
    refused(lambda: tiny("-c", "3d_cascade_fullres"), 4, "-c 3d_fullres", dataset=dataset)


def test_a_stale_base_is_refused(tiny, dataset, plans_file):
    assert tiny("-n", 4)[0] == 0
    edit(plans_file, with_configuration(batch_size=99))
    refused(lambda: tiny("-c", "2d_xtiny16"), 4, "2d_xtiny16 is stale", dataset=dataset)


def test_a_name_that_is_taken_is_refused_before_any_scoring(tiny, dataset, plans_file, monkeypatch):
    edit(plans_file, lambda plans: plans["configurations"].update({"2d_xtiny2": {"inherits_from": "2d"}}))
    with monkeypatch.context() as patch:
        no_scoring(patch)
        refused(tiny, 4, "2d_xtiny2 exists", "--overwrite", "-o NAME", dataset=dataset)
    assert tiny("-n", 4, "--overwrite")[0] == 0
    assert "architecture" in read(plans_file)["configurations"]["2d_xtiny2"]


def test_a_trained_width_is_not_replaced(tiny, dataset, plans_file, nnunet_folders):
    edit(plans_file, lambda plans: plans["configurations"].update({"2d_xtiny2": {"inherits_from": "2d"}}))
    trained = nnunet_folders / "nnUNet_results" / "Dataset011_Fake" / "nnUNetTrainer__nnUNetPlans__2d_xtiny2"
    trained.mkdir(parents=True)
    refused(lambda: tiny("--overwrite"), 4, "2d_xtiny2 is not replaced because it was trained", dataset=dataset)


def test_a_base_that_is_planned_again_during_the_scoring_is_noticed(tiny, dataset, plans_file, monkeypatch):
    add = ScoreStore.add

    def plan_again(self, seed, cap, values, seconds):
        edit(plans_file, with_configuration(batch_size=99))
        add(self, seed, cap, values, seconds)

    monkeypatch.setattr(ScoreStore, "add", plan_again)
    code, _, err = tiny("-n", 4)
    assert code == 4
    assert "2d in " in err
    assert "is not the one that was searched on" in err
    assert [name for name in read(plans_file)["configurations"] if "xtiny" in name] == []


@pytest.mark.parametrize("number", [13, 1000])
def test_fewer_cases_than_asked_for_are_counted(tiny, dataset, number):
    fragments = (f"{number} cases were asked for and only 12 are preprocessed", "-n 12 or -n all")
    refused(lambda: tiny("-n", number), 4, *fragments, dataset=dataset)


def test_an_unknown_case_is_named(tiny, dataset):
    refused(lambda: tiny("-cases", "case_00", "case_99"), 4, "case_99", dataset=dataset)


def test_a_case_given_twice_is_a_usage_error(tiny, dataset):
    refused(lambda: tiny("-cases", "case_00", "case_00"), 2, "names a case twice", dataset=dataset)


def test_a_seed_given_twice_is_a_usage_error(tiny, dataset):
    refused(lambda: tiny("-seed", 1, 1), 2, "names a seed twice", dataset=dataset)


def test_too_few_seeds_for_the_rule_are_a_usage_error(tiny, dataset):
    refused(lambda: tiny("-rule", "spread", "-seed", 1, 2), 2, "at least 5 seeds", dataset=dataset)


@pytest.mark.parametrize("output", ["dataset", "a/b", "two__parts"])
def test_a_name_that_nnunet_could_not_use_is_a_usage_error(tiny, dataset, output):
    refused(lambda: tiny("-o", output), 2, f"-o {output}", dataset=dataset)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-device", "tpu"),
        ("-metric", "snip"),
        ("-rule", "best"),
        ("-n", "0"),
        ("-n", "-3"),
        ("-n", "some"),
        ("-n", "3", "-cases", "case_00"),
        ("-seed", "-1"),
        ("-seed", "4294967296"),
        ("-seed", "1.5"),
        ("-batch_size", "0"),
        ("-max_params", "0"),
        ("-max_params", "1e5"),
        ("-cases",),
        ("-fold", "0"),
    ],
)
def test_unsupported_values_are_usage_errors(tiny, dataset, arguments):
    before = listing(dataset)
    code, out, err = tiny(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("nnunet_nas select_tiny: error: ") or "unrecognized arguments" in err
    assert listing(dataset) == before


@pytest.mark.parametrize(("device", "available"), [("cuda", "cuda"), ("mps", "backends.mps")])
def test_a_device_that_is_not_there_is_said(tiny, dataset, monkeypatch, device, available):
    monkeypatch.setattr(f"torch.{available}.is_available", lambda: False)
    refused(lambda: tiny(device=device), 3, f"-device {device}", "use -device cpu", dataset=dataset)


def spoil(dataset, case, value):
    """Writes one voxel of a preprocessed case; (2, 20, 14) is outside the middle slice, (1, 20, 14) inside."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = dataset / "nnUNetPlans_2d"
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    data, seg = data[:], seg[:]
    data[0, 1, 20, 14] = value
    for path in folder.glob(f"{case}*"):
        path.unlink()
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case), (1, 1, 32, 28), (1, 1, 32, 28))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sensitivity_that_is_not_finite_names_the_case(tiny, dataset, value):
    spoil(dataset, "case_03", value)
    refused(tiny, 4, "case_03", "nan", "-cases", dataset=dataset)
    assert tiny("-cases", "case_00", "case_01", "case_02", "case_04")[0] == 0


@pytest.mark.parametrize("suffix", [".b2nd", ".pkl"])
@pytest.mark.parametrize("length", [0, 7, -9])
def test_a_truncated_case_is_named(tiny, dataset, suffix, length):
    path = dataset / "nnUNetPlans_2d" / f"case_03{suffix}"
    path.write_bytes(path.read_bytes()[:length])
    refused(tiny, 4, "case case_03", "cannot be read", "preprocess", dataset=dataset)


def fail_on_call(number):
    """A function that works until its call `number` (from 1) and then finds the disk full."""
    calls = []
    works = os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        works(descriptor)

    return fsync


def test_a_full_disk_during_the_scoring_keeps_the_scores_so_far(tiny, dataset, results, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_on_call(4))
        refused(lambda: tiny("-batch_size", 2), 3, "No space left", "scores so far are kept", dataset=dataset)
    (store,) = results.glob("scores_*.jsonl")
    assert len(store.read_text().splitlines()) >= 4  # the key and three batches
    assert tiny("-batch_size", 2)[0] == 0


def test_a_full_disk_when_the_plans_are_written_changes_nothing(tiny, dataset, plans_file, monkeypatch):
    assert tiny("--json")[0] == 0
    plans = read(plans_file)
    for name in ADDED:
        del plans["configurations"][name]
    plans_file.write_text(json.dumps(plans, indent=4))
    no_scoring(monkeypatch)  # all scores are known: the plans are the first thing that is written
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_on_call(1))
        refused(tiny, 3, "no space left to write", "nothing was changed", dataset=dataset)
    assert [path for path in dataset.rglob("*") if path.suffix == ".tmp"] == []
    assert tiny()[0] == 0
    assert set(ADDED) <= set(read(plans_file)["configurations"])


@pytest.mark.parametrize("batches", [0, 1, 23])
def test_an_interrupted_scoring_goes_on_to_the_same_numbers(tiny, dataset, results, monkeypatch, batches):
    """One image at a time: 4 batches for each of 6 widths."""
    call = ("-batch_size", 1, "-cases", *CASES[:4])
    whole = json.loads(tiny(*call, "--json", "--dry_run")[1])
    plans = (dataset / "nnUNetPlans.json").read_bytes()
    add, added, spent = ScoreStore.add, [], []

    def interrupt(self, seed, cap, values, seconds):
        if len(added) == batches:
            raise KeyboardInterrupt
        added.extend((cap, case) for case in values)
        spent.append(seconds)
        add(self, seed, cap, values, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "add", interrupt)
        code, out, err = tiny(*call)
    assert (code, out) == (130, "")
    assert err == "interrupted: scores so far are kept, the same command goes on from there\n"
    assert len(added) == batches
    assert (dataset / "nnUNetPlans.json").read_bytes() == plans
    assert not (results / "selection.json").exists()

    def count(self, seed, cap, values, seconds):
        added.extend((cap, case) for case in values)
        spent.append(seconds)
        add(self, seed, cap, values, seconds)

    monkeypatch.setattr(ScoreStore, "add", count)
    assert tiny(*call)[0] == 0
    assert added == [(cap, case) for cap in CAPS for case in CASES[:4]]
    resumed = read(results / "selection.json")
    assert min(spent) > 0
    assert resumed["seconds"] == pytest.approx(sum(spent))
    assert resumed["selected"]["configuration"] == whole["selected"]["configuration"]
    for before, after in zip(scores(whole), scores(resumed), strict=True):
        assert after == pytest.approx(before, rel=1e-6)


def test_a_report_of_an_earlier_version_is_written_anew_without_scoring(tiny, results, monkeypatch):
    assert tiny("-n", 4)[0] == 0
    whole = read(results / "selection.json")
    assert whole["seconds"] > 0
    edit(results / "selection.json", lambda report: report.pop("seconds"))
    no_scoring(monkeypatch)
    assert tiny("-n", 4)[0] == 0
    assert read(results / "selection.json") == whole


def test_an_interrupted_dry_run_says_that_nothing_was_kept(tiny, dataset, monkeypatch):
    before = listing(dataset)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoreStore, "add", interrupt)
    code, _, err = tiny("--dry_run")
    assert (code, err) == (130, "interrupted: nothing was kept (dry run)\n")
    assert listing(dataset) == before


HOLDER = """
import sys
from pathlib import Path
from nnunet_nas.files import locked
with locked(Path(sys.argv[1]), timeout=0, busy="busy"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def held(results):
    """Another process that is scoring the same configuration."""
    results.parent.mkdir()
    command = [sys.executable, "-c", HOLDER, str(results)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("done\n", timeout=60)


def test_two_at_once_on_the_same_configuration_are_kept_apart(tiny, dataset, held):
    refused(tiny, 3, "another select_tiny is scoring 2d of Dataset011_Fake", "wait for it", dataset=dataset)
    assert tiny("-n", 4, "-c", "3d_fullres")[0] == 0
    assert tiny("-n", 4, "--dry_run")[0] == 0
    held.kill()
    held.wait(timeout=60)
    assert tiny("-n", 4)[0] == 0


def test_verbose_shows_where_an_error_comes_from(tiny):
    code, _, err = tiny("-c", "2D", "--verbose")
    assert code == 4
    assert "Traceback" in err


def test_the_callers_random_state_and_threads_are_not_a_matter_of_luck(tiny, results):
    """The scores depend on the seeds given and on nothing that happened before."""
    assert tiny("-n", 4)[0] == 0
    first = scores(read(results / "selection.json"))
    shutil.rmtree(results)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    threads = torch.get_num_threads()
    assert tiny("-n", 4)[0] == 0
    assert scores(read(results / "selection.json")) == first
    assert torch.get_num_threads() == threads


def test_regions_and_several_channels_are_read_from_dataset_json(tiny, dataset):
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.plans import Plans

    edit(
        dataset / "dataset.json",
        lambda content: content.update(
            labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, regions_class_order=[1, 2]
        ),
    )
    spec = network_spec(Plans(read(dataset / "nnUNetPlans.json")), "2d", copy.deepcopy(read(dataset / "dataset.json")))
    assert spec.output_channels == 2
    assert tiny("-n", 4)[0] == 0
