"""One of two processes of a search on CPU; nnU-Net's own launcher for several GPUs knows CUDA only.

Called as `python two_processes.py RANK PORT DATASET_FOLDER OUTPUT`.
"""

import sys
from pathlib import Path

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import make_trainer

from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch


def main(rank, port, dataset, output):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = make_trainer(nnUNetTrainerIACLTHSearch, dataset)
    # In a process group nnU-Net's constructor takes the CUDA device of the rank for granted.
    trainer.device = torch.device("cpu")
    batches, step = [], trainer.train_step

    def train_step(batch):
        batches.append(batch["data"].double().sum().item())
        return step(batch)

    trainer.train_step = train_step
    trainer.run_training()
    torch.save(
        {
            "alpha": trainer.network.alpha.detach(),
            "beta": trainer.network.beta.detach(),
            "cells": trainer.network.cell_state(),
            "active": torch.from_numpy(trainer.network.active),
            "operations_left": torch.from_numpy(trainer.history.operations_left),
            "batch_size": trainer.batch_size,
            "batches": batches,
        },
        output,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
