"""Two stability tests of IAC-LTH on simulated searches: what they settle where the data prefer nothing, and something.

    python examples/benchmarks/iac_stability.py -seeds 6

On every edge the loss falls by d along the coefficient of one operation, in units of its noise from batch to batch, and
along the others not at all. Alpha follows the gradients by Adam with the search's rate and annealing; the two tests
prune by the package's own rules. A default epoch has 250 batches: with b batches per epoch, d stands for
d * sqrt(b / 250) there.
"""

import argparse

import numpy as np

from nnunet_nas.cli.common import format_table
from nnunet_nas.iac.evidence import level
from nnunet_nas.iac.genotype import EDGES, OPERATIONS
from nnunet_nas.iac.pruning import StabilityPruning
from nnunet_nas.iac.relaxation import cosine_power
from nnunet_nas.iac.settings import IACLTHSettings

SHAPE = (len(EDGES), len(OPERATIONS))
BEST = 2


def shares(alpha: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Softmax over what is active."""
    exponentials = np.where(active, np.exp(alpha - alpha.max(axis=1, keepdims=True)), 0)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def search(test: str, preference: float, batches: int, epochs: int, seed: int) -> tuple[int, int, int]:
    """One simulated search: epochs, settled edges, and edges whose most probable operation is the preferred one."""
    settings, rng = IACLTHSettings(num_epochs=epochs), np.random.default_rng(seed)
    most = settings.num_epochs - settings.warmup_epochs
    threshold = level(settings.error_rate, most) if test == "evidence" else None
    state = StabilityPruning.start(tau0=settings.tau0, gamma=settings.gamma, k=settings.outlier_k, threshold=threshold)
    mean = np.zeros(SHAPE)
    mean[:, BEST] = -preference
    alpha, first, second, step = np.zeros(SHAPE), 0.0, 0.0, 0
    for epoch in range(settings.warmup_epochs, settings.num_epochs):
        rate, total = cosine_power(epoch, settings.num_epochs, start=settings.architecture_lr), np.zeros(SHAPE)
        for _ in range(batches):
            step += 1
            share = shares(alpha, state.active)
            slopes = rng.normal(size=SHAPE) + mean
            gradient = share * (slopes - (share * slopes).sum(axis=1, keepdims=True))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            alpha -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            total += np.divide(gradient, share, out=np.zeros(SHAPE), where=share > 0)
        state.update(shares(alpha, state.active), np.full(len(EDGES), 0.5), total / batches)
        if state.settled or (threshold is not None and state.epochs_to_go(most) == 0):
            break
    settled = state.active.sum(axis=1) == 1
    chosen = shares(alpha, state.active).argmax(axis=1)
    return epoch + 1, int(settled.sum()), int((chosen == BEST).sum())


def main() -> None:
    """Prints one row per test and preference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-seeds", type=int, default=6, help="simulated searches of each kind")
    parser.add_argument("-batches", type=int, default=25, help="per epoch")
    parser.add_argument("-epochs", type=int, default=IACLTHSettings().num_epochs, help="at most")
    args = parser.parse_args()
    rows = []
    for preference in (0.0, 0.03, 0.1, 0.3, 1.0):
        for test in ("paper", "evidence"):
            found = np.array([search(test, preference, args.batches, args.epochs, seed) for seed in range(args.seeds)])
            epochs = f"{found[:, 0].min()} to {found[:, 0].max()}"
            rows.append([str(preference), test, epochs, f"{found[:, 1].mean():.1f}", f"{found[:, 2].mean():.1f}"])
    print(format_table(["d", "test", "epochs", "edges settled of 14", "preferred one chosen"], rows, left=3))


if __name__ == "__main__":
    main()
