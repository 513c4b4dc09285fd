"""One of two processes of a search on CPU; nnU-Net's own launcher for several GPUs knows CUDA only.

Called as `python two_processes.py RANK PORT TRAINER DATASET_FOLDER OUTPUT [EPOCH]`: in that epoch the images of the
second process are not numbers.
"""

import sys
from pathlib import Path

import torch
from searches import make_trainer, poison
from torch import distributed as dist

from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch

TRAINERS = {trainer.__name__: trainer for trainer in (nnUNetTrainerDiNTSSearch, nnUNetTrainerIACLTHSearch)}


def main(rank, port, trainer, dataset, *rest):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        train(rank, trainer, dataset, *rest)
    finally:
        # Also where the search stops with an exit code: the group's threads abort an interpreter that ends before them.
        dist.destroy_process_group()


def train(rank, trainer, dataset, output, poisoned_epoch=None):
    trainer = make_trainer(TRAINERS[trainer], dataset)
    # In a process group nnU-Net's constructor takes the CUDA device of the rank for granted.
    trainer.device = torch.device("cpu")
    batches, loss_of = [], trainer.loss_of

    def recorded_loss_of(batch, network=None):
        if network is None:  # of another network: what the first process does by itself
            batches.append(batch["data"].double().sum().item())
        return loss_of(batch, network)

    trainer.loss_of = recorded_loss_of
    if rank == 1 and poisoned_epoch is not None:
        poison(trainer, int(poisoned_epoch))
    trainer.run_training()
    torch.save(
        {
            "network": trainer.network.state_dict(),
            "history": {name: torch.from_numpy(value) for name, value in trainer.history.arrays().items()},
            "batch_size": trainer.batch_size,
            "batches": batches,
        },
        output,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), *sys.argv[5:])
