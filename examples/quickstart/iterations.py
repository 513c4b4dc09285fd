"""Chooses how many iterations each width is trained for: every width gets the same time.

Times a few iterations of each configuration as nnU-Net runs them (data loading and augmentation included) and prints
one line per configuration: its name, epochs, iterations per epoch. The same number of iterations would be the other
fair choice; with so few, a narrow network has not begun to learn when a wide one has.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time

EPOCHS = 5
# Fewer shows nothing; more is not needed to show how the commands work together (nnU-Net trains for 250,000).
MIN_ITERATIONS, MAX_ITERATIONS = 20, 2500
WARM_UP, TIMED = 1, 2
# nnU-Net's single validation iteration, checkpoint and progress plot at the end of each epoch.
SECONDS_PER_EPOCH = 3.0


def seconds_per_iteration(*, dataset: str, configuration: str, device: str) -> float:
    """Mean time of one training iteration; nothing is kept of the attempt."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, configuration, 0, device=torch.device(device))
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    batches = loaders[0]
    for _ in range(WARM_UP):
        trainer.train_step(next(batches))
    start = time.perf_counter()
    for _ in range(TIMED):
        trainer.train_step(next(batches))
    elapsed = time.perf_counter() - start
    for loader in loaders:
        # Only the loader with worker processes has something to shut down.
        getattr(loader, "_finish", lambda: None)()
    return elapsed / TIMED


def iterations_per_epoch(*, budget: float, seconds: float) -> int:
    """Iterations per epoch so that training takes `budget` seconds, within the bounds."""
    fitting = int((budget - EPOCHS * SECONDS_PER_EPOCH) / seconds)
    return max(MIN_ITERATIONS, min(MAX_ITERATIONS, fitting)) // EPOCHS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", required=True, help="data set")
    parser.add_argument("-c", required=True, nargs="+", help="configurations")
    parser.add_argument("-device", required=True)
    parser.add_argument("-budget", required=True, type=float, help="seconds for training all of them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        # Read by nnU-Net when it is imported: the attempts leave no trace in the user's results.
        os.environ["nnUNet_results"] = scratch
        import torch

        torch.set_num_threads((os.cpu_count() or 1) if args.device == "cpu" else 1)
        seconds = [seconds_per_iteration(dataset=args.d, configuration=c, device=args.device) for c in args.c]
    for configuration, value in zip(args.c, seconds, strict=True):
        per_epoch = iterations_per_epoch(budget=args.budget / len(args.c), seconds=value)
        print(configuration, EPOCHS, per_epoch, f"{value:.2f}")


if __name__ == "__main__":
    main()
