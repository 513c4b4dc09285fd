"""Label-free proxies of the literature on the same images and widths, beside XTinyU-Net's own sensitivity.

A proxy measures one freshly initialised network and yields named values (one per image, or its few parts); `curve`
turns the values of all widths into one number per width. Larger means better in the literature's sense; the selection
rule only looks at where a curve varies.

Activation patterns are read in front of every nonlinearity (positive or not), which is where LeakyReLU and ReLU agree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from nnunet_nas.complexity import count_macs
from nnunet_nas.precision import as_double, has_double
from nnunet_nas.xtiny.sensitivity import Batches, score_images

_NONLINEARITIES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
_COLUMNS = 2**20

Values = dict[str, float]


@dataclass(frozen=True)
class Scene:
    """What a proxy may look at.

    Attributes:
        load: gives the patches of some cases, (b, c, *spatial), on the CPU.
        cases: identifiers of the images.
        patch_size: voxels, (y, x) or (z, y, x).
        device: where to compute.
        batch_size: patches at once.
        seed: of the network's weights; random vectors of a proxy derive from it.
        side_by_side: whether a CPU may score several batches at a time.
        known: cases that need no score any more.
    """

    load: Batches
    cases: Sequence[str]
    patch_size: tuple[int, ...]
    device: torch.device
    batch_size: int
    seed: int
    side_by_side: bool = True
    known: Collection[str] = ()

    def batches(self) -> Iterator[torch.Tensor]:
        """All patches in batches, on the device."""
        for start in range(0, len(self.cases), self.batch_size):
            yield self.load(self.cases[start : start + self.batch_size]).to(self.device)


class Proxy(ABC):
    """A score of a network at initialisation.

    Attributes:
        per_image: whether it has a value for each image; otherwise it has one `score`, or parts of its own.
        minimum_images: on fewer it says nothing about them.
    """

    per_image = False
    minimum_images = 1

    def ceiling(self, images: int) -> float:
        """The largest score that any network can have on as many images."""
        return math.inf

    @abstractmethod
    def measure(self, network: nn.Module, scene: Scene) -> Iterator[Values]:
        """Yields named values of one network as they become known."""

    def curve(self, values: Sequence[Values]) -> list[float]:
        """One number per width from the values of all widths, widest first."""
        return [candidate["score"] for candidate in values]


class Jacobian(Proxy):
    """XTinyU-Net: mean over images of the norm of d(sum of logits)/d(input), see `sensitivity`."""

    per_image = True

    def measure(self, network: nn.Module, scene: Scene) -> Iterator[Values]:
        """Yields one value per image."""
        yield from score_images(
            network,
            scene.load,
            scene.cases,
            device=scene.device,
            batch_size=scene.batch_size,
            side_by_side=scene.side_by_side,
            known=scene.known,
        )

    def curve(self, values: Sequence[Values]) -> list[float]:
        """Means over the images."""
        return [float(np.mean(list(candidate.values()))) for candidate in values]


class Naswot(Proxy):
    """log |det K|, K_ij = number of nonlinearities on which images i and j agree.

    Source: Mellor et al., Neural Architecture Search without Training, ICML 2021, section 3. All nonlinearities of
    encoder and decoder count. On one image it would count nonlinearities and see nothing of the image.
    """

    minimum_images = 2

    def measure(self, network: nn.Module, scene: Scene) -> Iterator[Values]:
        """Yields `score`."""
        kernel = np.zeros((len(scene.cases), len(scene.cases)))
        for codes in activation_codes(network, scene):
            kernel += agreement(codes)
        yield {"score": float(np.linalg.slogdet(kernel)[1])}


class Swap(Proxy):
    """Number of distinct sample-wise activation patterns: for each activation, its signs over all images.

    Source: Peng et al., SWAP-NAS: Sample-Wise Activation Patterns for Ultra-Fast NAS, ICLR 2024, definition of the
    SWAP-Score without regularisation.
    """

    def ceiling(self, images: int) -> float:
        """As many patterns of signs as there are."""
        return 2.0**images

    def measure(self, network: nn.Module, scene: Scene) -> Iterator[Values]:
        """Yields `score`."""
        distinct: set[bytes] = set()
        for codes in activation_codes(network, scene):
            distinct |= sample_wise_patterns(codes)
        yield {"score": float(len(distinct))}


class Synflow(Proxy):
    """log of the synaptic flow: sum over weights of |theta * dR/d theta| for absolute weights and an input of ones.

    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, NeurIPS
    2020, Eq. 2. Normalisation is taken out, as it would turn the constant input into zeros; double precision and the
    logarithm (our choice) because the flow spans tens of orders of magnitude over the widths. Uses no image.
    """

    def measure(self, network: nn.Module, scene: Scene) -> Iterator[Values]:
        """Yields `score`."""
        device = scene.device if has_double(scene.device) else torch.device("cpu")
        network = without_normalisation(network).to(device).double().requires_grad_(True)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()
        channels = scene.load(scene.cases[:1]).shape[1]
        ones = torch.ones((1, channels, *scene.patch_size), dtype=torch.float64, device=device)
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(network(ones).sum(), parameters, allow_unused=True)
        flow = sum(
            float((parameter.detach() * gradient).sum())
            for parameter, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        )
        yield {"score": math.log(flow) if flow > 0 else -math.inf}


class AzNas(Proxy):
    """AZ-NAS: ranks by expressivity, progressivity, trainability and complexity, joined as sum of log(rank / m).

    Source: Lee and Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024, sections
    3.1-3.2. The paper's primary blocks are a chain of falling resolution; here they are the encoder's stages (our
    choice). expressivity: sum over stages of the entropy of the normalised PCA spectrum of the features; progressivity:
    the smallest increase of that entropy between stages; trainability: mean of 2 - s - 1/s with s the spectral norm of
    the stage's channel Jacobian, estimated with a Rademacher vector; complexity: multiply-accumulates.
    """

    def measure(self, network: nn.Module, scene: Scene) -> Iterator[Values]:
        """Yields the four parts."""
        entropies, norms = encoder_statistics(network, scene)
        channels = scene.load(scene.cases[:1]).shape[1]
        yield {
            "expressivity": float(np.sum(entropies)),
            "progressivity": float(np.min(np.diff(entropies))),
            "trainability": float(np.mean([2 - norm - 1 / max(norm, 1e-12) for norm in norms])),
            "complexity": float(count_macs(network, (1, channels, *scene.patch_size))),
        }

    def curve(self, values: Sequence[Values]) -> list[float]:
        """Sum over the parts of log(rank / m), ranks from 1 (worst) to m (best), ties averaged."""
        total = np.zeros(len(values))
        for part in ("expressivity", "progressivity", "trainability", "complexity"):
            total += np.log(rankdata([candidate[part] for candidate in values]) / len(values))
        return [float(value) for value in total]


PROXIES: dict[str, Proxy] = {
    "jacobian": Jacobian(),
    "naswot": Naswot(),
    "swap": Swap(),
    "az_nas": AzNas(),
    "synflow": Synflow(),
}


def activation_codes(network: nn.Module, scene: Scene) -> list[np.ndarray]:
    """Signs in front of every nonlinearity.

    Args:
        network: prepared; one forward pass per batch, without gradients.
        scene: images.

    Returns:
        per nonlinearity in the order of execution: bits packed along the positions, uint8, (images, bytes).
    """
    rows: dict[nn.Module, list[np.ndarray]] = {}

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        bits = (inputs[0] > 0).flatten(1).cpu().numpy()
        rows.setdefault(module, []).append(np.packbits(bits, axis=1))

    hooks = [
        module.register_forward_pre_hook(record) for module in network.modules() if isinstance(module, _NONLINEARITIES)
    ]
    try:
        with torch.no_grad():
            for images in scene.batches():
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [np.concatenate(codes) for codes in rows.values()]


def agreement(codes: np.ndarray) -> np.ndarray:
    """On how many positions each pair of images agrees.

    Padding bits of the last byte agree for every pair; they add the same at most 7 to all entries.

    Args:
        codes: packed bits, uint8, (images, bytes).

    Returns:
        float64, (images, images).
    """
    kernel = np.zeros((len(codes), len(codes)))
    for start in range(0, codes.shape[1], _COLUMNS // 8):
        signs = np.unpackbits(codes[:, start : start + _COLUMNS // 8], axis=1).astype(np.float32) * 2 - 1
        kernel += (signs @ signs.T + signs.shape[1]) / 2
    return kernel


def sample_wise_patterns(codes: np.ndarray) -> set[bytes]:
    """The distinct columns of a code matrix: each position's signs over all images.

    Args:
        codes: packed bits, uint8, (images, bytes).
    """
    patterns: set[bytes] = set()
    for start in range(0, codes.shape[1], _COLUMNS // 8):
        bits = np.unpackbits(codes[:, start : start + _COLUMNS // 8], axis=1)
        columns = np.ascontiguousarray(np.packbits(bits, axis=0).T)
        patterns |= set(np.unique(columns.view(f"V{columns.shape[1]}")).ravel().tolist())
    return patterns


def without_normalisation(network: nn.Module) -> nn.Module:
    """Replaces every normalisation by the identity, in place; returns the network."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _NormBase | _BatchNorm | nn.GroupNorm | nn.LayerNorm):
                setattr(module, name, nn.Identity())
    return network


def encoder_statistics(network: nn.Module, scene: Scene) -> tuple[list[float], list[float]]:
    """Entropy of each encoder stage's PCA spectrum (nats) and the spectral norm of its channel Jacobian.

    Args:
        network: has nnU-Net's `encoder.stages`, and `encoder.stem` or not.
        scene: images.

    Returns:
        entropies of all stages; spectral norms of all stages but the first.
    """
    encoder: Any = network.encoder
    stages = len(encoder.stages)
    moments = [_Moments() for _ in range(stages)]
    # The first stage has none.
    jacobians = [torch.zeros(())] * stages
    generator = torch.Generator().manual_seed(scene.seed)
    stem = getattr(encoder, "stem", None)
    for images in scene.batches():
        features = images if stem is None else stem(images)
        for index, stage in enumerate(encoder.stages):
            inputs = features.detach().requires_grad_(True)
            features = stage(inputs)
            moments[index].add(features.detach())
            if index > 0:
                jacobians[index] = jacobians[index] + _channel_jacobian(inputs, features, generator)
    norms = [
        float(torch.linalg.matrix_norm(jacobian / moment.count, ord=2))
        for jacobian, moment in zip(jacobians[1:], moments[1:], strict=True)
    ]
    return [moment.spectral_entropy() for moment in moments], norms


class _Moments:
    """Running covariance of channels over all positions of all images."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = torch.zeros(())
        self._products = torch.zeros(())

    def add(self, features: torch.Tensor) -> None:
        rows = as_double(features.flatten(2).transpose(1, 2).flatten(0, 1))
        self.count += len(rows)
        self._sum = self._sum + rows.sum(0).cpu()
        self._products = self._products + (rows.T @ rows).cpu()

    def spectral_entropy(self) -> float:
        mean = self._sum / self.count
        spectrum = torch.linalg.eigvalsh(self._products / self.count - torch.outer(mean, mean)).clamp(min=0)
        share = spectrum / spectrum.sum().clamp(min=1e-300)
        return float(-torch.special.xlogy(share, share).sum())


def _channel_jacobian(inputs: torch.Tensor, outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sum over positions of (gradient at the input) x (random vector at the output), (c_in, c_out)."""
    vector = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
    (gradient,) = torch.autograd.grad(outputs, inputs, vector)
    pool = nn.AdaptiveAvgPool2d if outputs.dim() == 4 else nn.AdaptiveAvgPool3d
    gradient = pool(tuple(outputs.shape[2:]))(gradient)
    return torch.einsum("bip,bop->io", gradient.flatten(2), vector.flatten(2)).cpu().double()
