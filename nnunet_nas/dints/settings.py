"""Settings of the DiNTS search; the paper's values are the defaults.

Where the paper counts iterations (1k warm-up, 10k without and 10k with architecture), they scale to nnU-Net's epochs:
84 epochs of 250 are its 21k. `source` says where a default comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_nas.settings import setting


@dataclass(frozen=True)
class DiNTSSettings:
    """`nas_settings.dints`."""

    method: ClassVar[str] = "dints"

    num_epochs: int = setting(84, "paper", "epochs; the first 11/21 train network weights only", minimum=2)
    num_iterations_per_epoch: int = setting(250, "our choice", "training iterations per epoch (nnU-Net's)", minimum=1)
    num_val_iterations_per_epoch: int = setting(
        10, "our choice", "validation iterations per epoch, for the picture only; 0 skips them", minimum=0
    )
    num_layers: int = setting(12, "paper", "L: layers of cells", minimum=2)
    num_levels: int | None = setting(
        None,
        "our choice",
        "D: resolutions that cells work at; none: all stages of the plan from first_level on",
        minimum=2,
    )
    first_level: int | None = setting(
        None,
        "our choice",
        "finest stage that has cells; none: 0 in 2-D, 1 (the paper's half resolution) in 3-D with 4 stages or more",
        minimum=0,
    )
    final_conv: bool | None = setting(
        None,
        "our choice",
        "a convolution at the full resolution before the head, as in MONAI's code; none: where no cells are at it",
    )
    features: int | None = setting(
        None,
        "our choice",
        "channels of the finest stage in the result, other stages in proportion; none: the plan's",
        minimum=1,
    )
    search_features: int | None = setting(
        None,
        "paper",
        "the same while searching; none: half of the result's (the paper doubles for retraining)",
        minimum=1,
    )
    search_batch_size: int | None = setting(
        None, "our choice", "samples per step while searching; none: the plan's", minimum=1
    )
    sigma: float | None = setting(
        None,
        "our choice",
        "memory budget as a share of the full network's (the paper's: 0.8); none: what nnU-Net's own network needs, or "
        "0.8 with losses=paper",
        minimum=0,
    )
    memory_limit_mib: float | None = setting(
        None,
        "our choice",
        "memory budget in MiB of training memory, for sigma: activations, weights, gradients and momentum in float32 "
        "at the planned batch and patch",
        minimum=0,
    )
    losses: Literal["exact", "paper"] = setting(
        "exact", "our choice", "exact: entropies in nats, P(feasible), MiB; paper: Eqs. 5, 7 and 10 as printed"
    )
    maximum_memory: Literal["code", "printed", "largest"] = setting(
        "code",
        "our choice",
        "M_a with losses=paper; code: that of MONAI, operations weighted; printed: Eq. 9, all operations at once, of "
        "which no network reaches more than 0.3 to 0.4; largest: each edge's most expensive operation",
    )
    topology_weight: float | None = setting(
        None,
        "our choice",
        "weight of the topology loss; none: the paper's 0.001 of Eq. 11, or 1 with losses=exact",
        minimum=0,
    )
    terms_from: float = setting(
        0.0,
        "paper",
        "share of the architecture's steps with L_seg alone, before the other terms begin to grow to their full weight",
        minimum=0,
        maximum=1,
    )
    terms_share: float | None = setting(
        None,
        "our choice",
        "gradient norm of the other terms at their full weight, on x and on alpha, as a share of L_seg's there; none: "
        "as Eq. 11 gives it",
        minimum=0,
    )
    weights_on: Literal["mixture", "samples"] = setting(
        "mixture",
        "paper",
        "what steps of the weights compute; mixture: all edges and operations, weighted; samples: one topology of the "
        "budget per step, drawn from P(topology | feasible), all of them about equally probable; x and alpha are not "
        "trained",
    )
    selection: Literal["argmax", "evidence"] = setting(
        "argmax",
        "paper",
        "what is delivered; argmax: the most probable topology; evidence: of it and of samples the one with the lowest "
        "loss on the architecture's half of the cases, with shared weights and then after a short training",
    )
    samples: int = setting(64, "our choice", "topologies that selection=evidence draws", minimum=1)
    scoring_batches: int = setting(16, "our choice", "batches that each of them is scored on", minimum=1)
    finalists: int = setting(
        8,
        "our choice",
        "how many of them, the most probable topology included, are trained for a short while",
        minimum=2,
    )
    race_iterations: int = setting(250, "our choice", "iterations of that training", minimum=1)
    supernet: Literal["exact", "fast"] = setting(
        "exact", "our choice", "fast mixes kernels instead of outputs: less time and memory, another relaxation"
    )
    weights_lr_start: float = setting(0.025, "paper", "learning rate of the weights (SGD) at the start", minimum=0)
    weights_lr: float = setting(0.2, "paper", "the same after warm-up; halved at 8/20 and 16/20 of the rest", minimum=0)
    weight_decay: float = setting(4e-5, "paper", "weight decay of the weights", minimum=0)
    architecture_lr: float = setting(0.008, "paper", "learning rate of alpha and the edges (Adam)", minimum=0)
    augmentation: bool = setting(True, "our choice", "nnU-Net's augmentation; false for none")
    seed: int = setting(0, "our choice", "random seed of weights, batches and the two halves of the cases", minimum=0)
    suffix: str = setting(
        "", "our choice", "appended to the name of the new configuration, for searches side by side", part_of_name=True
    )

    @property
    def most_finalists(self) -> int:
        """Topologies that are trained for a while, at most: there may be fewer candidates than places."""
        return min(self.finalists, 1 + self.samples)
