"""Settings of the searches for cells; the paper's values are the defaults, where `source` says so.

Paper: IAC-LTH. `source` says where a default comes from: "paper"; "predecessor" (PC-DARTS and DARTS, which the paper
follows); "our choice" where all of them are silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_nas.settings import setting


@dataclass(frozen=True)
class CellSettings:
    """What both searches share."""

    num_epochs: int = setting(200, "paper", "epochs", minimum=1)
    warmup_epochs: int = setting(15, "paper", "epochs that train cell weights only", minimum=0)
    num_iterations_per_epoch: int = setting(250, "our choice", "training iterations per epoch (nnU-Net's)", minimum=1)
    num_val_iterations_per_epoch: int = setting(
        10, "our choice", "validation iterations per epoch, for the picture only; 0 skips them", minimum=0
    )
    search_batch_size: int | None = setting(
        None, "our choice", "samples per step while searching; none: the plan's", minimum=1
    )
    recompute: Literal["auto", "always", "never"] = setting(
        "auto",
        "our choice",
        "cells are computed again in the backward pass instead of kept, which changes no number: less memory, more "
        "time; auto: where the GPU is too small otherwise",
    )
    backbone_trainer: str | None = setting(
        None, "our choice", "trainer of the backbone; none: nnUNetTrainer, or else the only one that is there"
    )
    backbone_checkpoint: str = setting(
        "checkpoint_final.pth",
        "our choice",
        "checkpoint of the backbone: a file name in its fold's folder, or a path; the paper takes the best (6.3)",
    )
    augmentation: bool = setting(True, "paper", "nnU-Net's augmentation; false is the paper's no-augmentation regime")
    seed: int = setting(0, "our choice", "random seed of weights, batches and the split of IAC", minimum=0)
    partial_channels: int = setting(
        4,
        "predecessor",
        "K: one K-th of the channels, four at least, goes through mixed operations (PC-DARTS)",
        minimum=1,
    )
    minimum_width: int = setting(4, "our choice", "least channels of a cell, rounded up to a multiple of K", minimum=1)
    width_divisor: int = setting(4, "our choice", "a cell has the skip's channels divided by this (4c = C)", minimum=1)
    norm: Literal["backbone", "instance", "batch"] = setting(
        "backbone", "our choice", "normalisation in the cells; PC-DARTS has batch, the paper does not say"
    )
    weights_lr: float = setting(0.01, "paper", "initial learning rate of the cell weights (SGD)", minimum=0)
    architecture_lr: float = setting(0.001, "paper", "initial learning rate of alpha and beta (Adam)", minimum=0)
    eta_min: float = setting(
        0.0, "our choice", "final learning rate of both, as a share of the initial", minimum=0, maximum=1
    )
    annealing_power: float = setting(10.0, "our choice", "p of cosine power annealing; 1 is plain cosine", minimum=1)
    trial_iterations: int = setting(
        250,
        "our choice",
        "iterations of training in the trial of the found cell against the plain skip; 0: no trial",
        minimum=0,
    )
    trial_batches: int = setting(50, "our choice", "batches of other cases that the trial compares on", minimum=2)
    suffix: str = setting(
        "", "our choice", "appended to the name of the new configuration, for searches side by side", part_of_name=True
    )
    edge_nonlinearity: Literal["elu", "identity", "softplus"] = setting(
        "elu", "our choice", "phi, applied to beta before the softmax over the edges into a node"
    )


@dataclass(frozen=True)
class IACSettings(CellSettings):
    """`nas_settings.iac`: bilevel search of fixed length (section 3.3)."""

    method: ClassVar[str] = "iac"


@dataclass(frozen=True)
class IACLTHSettings(CellSettings):
    """`nas_settings.iac_lth`: one-level search with stability tests and pruning (section 5)."""

    method: ClassVar[str] = "iac_lth"

    num_epochs: int = setting(
        100,
        "our choice",
        "epochs at most, over which rates are annealed; the paper: 200, of which its searches took 43 to 57",
        minimum=1,
    )
    stability: Literal["evidence", "paper"] = setting(
        "evidence",
        "our choice",
        "evidence: prunes what the slopes of the loss say is worse than the edge's leader; paper: what is left where "
        "alpha moves little",
    )
    error_rate: float = setting(
        0.05,
        "our choice",
        "evidence: probability that noise alone prunes anything in a whole search",
        minimum=0,
        maximum=1,
    )
    tau0: float = setting(
        1e-10, "our choice", "paper's test: initial threshold of the Jensen-Shannon divergence, nats", minimum=0
    )
    gamma: float = setting(1.5, "our choice", "paper's test: factor on the threshold after each failed test", minimum=1)
    gradual_epochs: int | None = setting(
        None,
        "our choice",
        "operations per edge also fall evenly to one over so many epochs after warm-up; none: the stability test alone",
        minimum=6,
    )
    outlier_k: float = setting(
        1.0, "our choice", "paper's test: prunes operations below mean - k * standard deviation", minimum=0
    )
