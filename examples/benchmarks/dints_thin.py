"""What cells from half resolution on cost thin structures: shells of one voxel, short trainings.

    python examples/benchmarks/dints_thin.py -o thin.csv

Volumes of noise with shells of one voxel and solid balls of the same brightness, which are background. Each network
is trained for 120 steps by SGD (rate 0.05, momentum 0.9, which so few steps need) and judged by the Dice of shells in 8
volumes that it has not seen. Arms: nnU-Net's own network; three layers of all edges, each a convolution, from half
resolution on (`half`), also with a convolution at the full resolution before the head (`half_final`, as in MONAI); the
same that begin at the full resolution (`full`, `full_final`). Starts and volumes differ between seeds. A run that is in
the table is not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chance import append, missing, rows_of
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, one_hot

from nnunet_nas.cli.common import format_table
from nnunet_nas.dints.network import DiNTSNet
from nnunet_nas.dints.topology import Topology, edges

SIDE, STAGES, FEATURES, LAYERS = 32, 4, (8, 16, 32, 64), 3
STEPS, BATCH, JUDGED, RATE, MOMENTUM = 120, 2, 8, 0.05, 0.9
LAYERS_KWARGS: dict[str, Any] = {
    "conv_op": nn.Conv3d,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}
PLAN: dict[str, Any] = {
    "n_stages": STAGES,
    "features_per_stage": FEATURES,
    "kernel_sizes": [[3, 3, 3]] * STAGES,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * (STAGES - 1)],
    "num_classes": 2,
    "deep_supervision": True,
    **LAYERS_KWARGS,
}
ARMS = ("nnU-Net", "half", "half_final", "full", "full_final")


def volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image (z, y, x) and label of one volume: three shells of one voxel, two balls."""
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1)
    label, bright = np.zeros((SIDE,) * 3, np.int64), np.zeros((SIDE,) * 3)
    for number in range(5):
        centre, radius, axes = rng.uniform(6, SIDE - 6, 3), rng.uniform(4, 10), rng.uniform(0.8, 1.25, 3)
        distance = np.sqrt((((grid - centre) * axes) ** 2).sum(-1))
        if number < 2:
            bright[distance < radius / 2] = 1
        else:
            shell = np.abs(distance - radius) < 0.5
            label[shell], bright[shell] = 1, 1
    image = ndimage.gaussian_filter(bright, 0.5) + rng.normal(0, 0.3, label.shape)
    return (image - image.mean()) / image.std(), label


def batch_of(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Images (b, 1, z, y, x) and labels (b, z, y, x)."""
    images, labels = zip(*(volume(rng) for _ in range(size)), strict=True)
    return torch.from_numpy(np.stack(images)).float()[:, None], torch.from_numpy(np.stack(labels))


def loss_of(outputs: list[Tensor], label: Tensor) -> Tensor:
    """Cross entropy and soft Dice at all outputs, weighted as nnU-Net does."""
    weights = np.array([0.5**number for number in range(len(outputs))])
    weights[-1] *= len(outputs) == 1
    total = torch.zeros(())
    for output, weight in zip(outputs, weights / weights.sum(), strict=True):
        target = interpolate(label[:, None].float(), output.shape[2:], mode="nearest")[:, 0].long()
        probability, truth = output.softmax(1)[:, 1], one_hot(target, 2)[..., 1]
        dice = (2 * (probability * truth).sum() + 1e-5) / (probability.sum() + truth.sum() + 1e-5)
        total = total + float(weight) * (cross_entropy(output, target) - dice)
    return total


def every_edge(levels: int) -> dict[str, Any]:
    """All edges of all layers, each with a plain convolution: no draw that happens to leave out the finest level."""
    return Topology(levels, (dict.fromkeys(edges(levels), "conv"),) * LAYERS).to_json()


def network_of(arm: str, seed: int) -> nn.Module:
    """With nnU-Net's initialisation."""
    torch.manual_seed(seed)
    if arm == "nnU-Net":
        counts = {"n_conv_per_stage": [2] * STAGES, "n_conv_per_stage_decoder": [2] * (STAGES - 1)}
        network: nn.Module = PlainConvUNet(input_channels=1, **PLAN, **counts)
        return network.apply(PlainConvUNet.initialize)
    first = 0 if arm.startswith("full") else 1
    topology = every_edge(STAGES - first)
    final = arm.endswith("final")
    found = DiNTSNet(input_channels=1, topology=topology, first_level=first, final_conv=final, **PLAN)
    return found.apply(DiNTSNet.initialize)


def train(arm: str, seed: int) -> dict[str, Any]:
    """Dice of unseen volumes after the last step."""
    started, rng = time.process_time(), np.random.default_rng([seed, 1])
    network = network_of(arm, seed)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=MOMENTUM, nesterov=True, weight_decay=3e-5)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS) ** 0.9
        images, labels = batch_of(rng, BATCH)
        loss = loss_of(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
    images, labels = batch_of(np.random.default_rng(10**6), JUDGED)
    with torch.inference_mode():
        predicted = network.eval()(images)[0].argmax(1)
    dice = [float(2 * (a & b).sum() / (a.sum() + b.sum())) for a, b in zip(predicted == 1, labels == 1, strict=True)]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    cpu = round(time.process_time() - started, 1)
    return {"dice": round(float(np.mean(dice)), 4), "parameters": parameters, "cpu_seconds": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="output", type=Path, required=True)
    parser.add_argument("-seeds", type=int, default=3)
    parser.add_argument("-arms", nargs="+", default=list(ARMS), choices=ARMS)
    args = parser.parse_args()
    for key in missing(args.output, ({"arm": arm, "seed": seed} for seed in range(args.seeds) for arm in args.arms)):
        row = train(key["arm"], key["seed"])
        append(args.output, {**key, **row})
        print(*key.values(), row["dice"], row["cpu_seconds"], flush=True)
    table = []
    for arm in args.arms:
        own = [row for row in rows_of(args.output) if row["arm"] == arm]
        dice = [float(row["dice"]) for row in own]
        table.append([arm, f"{np.mean(dice):.3f}", " ".join(f"{value:.3f}" for value in dice)])
    print(format_table(["arm", "Dice of shells", "by seed"], table))


if __name__ == "__main__":
    main()
