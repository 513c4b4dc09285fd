"""The random numbers of Python, NumPy and torch go on where they were, from a file that runs no code."""

import io
import random

import numpy as np
import torch

from nnunet_nas.randomness import random_states, restore_random_states, seed_everything


def draw():
    # An odd number of normal ones, so that the second of a pair waits inside each generator.
    return [random.gauss(0, 1), random.random(), *np.random.normal(size=3), np.random.random(), *torch.rand(2).tolist()]


def test_equal_seeds_give_equal_numbers():
    drawn = []
    for seed in (1, 1, 2, 2**40 + 1):  # NumPy's seeds have 32 bits
        seed_everything(seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert len({tuple(numbers) for numbers in drawn[1:]}) == 3


def test_restored_from_a_file_all_three_go_on():
    seed_everything(3)
    draw()
    file = io.BytesIO()
    torch.save(random_states(), file)
    expected = draw()
    draw()
    file.seek(0)
    restore_random_states(torch.load(file, weights_only=True))
    assert draw() == expected
