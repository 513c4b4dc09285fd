"""Commands as a user is told them: nnU-Net's spelling, defaults left out, ready for a shell."""

import shlex

import pytest

from nnunet_nas import commands


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "nnUNetv2_train 4 2d 0"),
        ({"plans": "nnUNetPlans", "trainer": "nnUNetTrainer"}, "nnUNetv2_train 4 2d 0"),
        ({"fold": "all", "plans": "tinyPlans"}, "nnUNetv2_train 4 2d all -p tinyPlans"),
        ({"trainer": "nnUNetTrainer_5epochs", "switch": "--c"}, "nnUNetv2_train 4 2d 0 -tr nnUNetTrainer_5epochs --c"),
    ],
)
def test_a_training(options, expected):
    assert commands.train(4, "2d", **options) == expected


def test_a_prediction_with_several_folds():
    assert commands.predict("Dataset004_Hippocampus", "2d", "0 1 2", plans="P") == (
        "nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d Dataset004_Hippocampus -c 2d -f 0 1 2 -p P"
    )


def test_training_and_prediction_agree():
    assert commands.train_and_predict(4, "2d", 3, trainer="T") == [
        "nnUNetv2_train 4 2d 3 -tr T",
        "nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d 4 -c 2d -f 3 -tr T",
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, "nnunet_nas set_search ... -m dints seed=1"),
        ({"dataset": 4, "configuration": "2d"}, "nnunet_nas set_search -d 4 -c 2d -m dints seed=1"),
        ({"dataset": 4, "configuration": "2d", "plans": "P"}, "nnunet_nas set_search -d 4 -c 2d -p P -m dints seed=1"),
    ],
)
def test_settings_of_a_search(where, expected):
    assert commands.set_search("dints", "seed=1", **where) == expected


def test_a_call_of_our_own_names_what_is_known():
    assert commands.ours("ls", 4) == "nnunet_nas ls -d 4"
    assert commands.ours("select_tiny", 4, "2d", "-n", "9", plans="P") == "nnunet_nas select_tiny -d 4 -c 2d -p P -n 9"


def test_the_control_of_a_found_configuration():
    assert commands.control(4, "3d", "3d_dints") == "nnunet_nas add_width -d 4 -c 3d -as 3d_dints"
    assert commands.control(4, "3d", "x", plans="P") == "nnunet_nas add_width -d 4 -c 3d -p P -as x"


def test_names_that_a_shell_would_take_apart_are_quoted():
    command = commands.train(4, "2d small", plans="my plans")
    assert shlex.split(command) == ["nnUNetv2_train", "4", "2d small", "0", "-p", "my plans"]


def test_a_name_does_not_speak_to_the_terminal():
    assert commands.train(4, "2d\x1b[2J") == "nnUNetv2_train 4 '2d\\x1b[2J' 0"
