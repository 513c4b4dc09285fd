"""What exact decoding and closed-form losses save over enumerating connection patterns, beside MONAI in one run.

    python examples/benchmarks/dints.py decode           the most probable feasible topology, L = 12
    python examples/benchmarks/dints.py decode -levels 4 8 --no-monai                  ours alone
    python examples/benchmarks/dints.py losses           entropies and topology loss with their gradients
    python examples/benchmarks/dints.py supernet -size 48 -features 2                  see dints_supernet.py

MONAI (https://monai.io, `pip install monai`) enumerates the 2^E - 1 patterns of a layer; its decoding at D = 4 takes
about a minute and 1.2 GB, once, and at D = 5 would need 72 GiB. The logits are random with a spread of one nat. Before
anything is timed, values and gradients of the losses are compared; after decoding, that MONAI's topology is not the
more probable one. Either ends with an error. Seconds are minimum and median of alternating repetitions; CPU seconds are
those of all threads together: their ratio stands where other work shares the machine (set OMP_WAIT_POLICY=PASSIVE, so
that waiting threads do not count). MiB are the growth of the process's peak of resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from timing import Times, alternate
from torch import Tensor

from nnunet_nas.cli.common import format_table
from nnunet_nas.dints.decoding import decode, negative_log_likelihood
from nnunet_nas.dints.probabilities import log_activation, log_feasible, pattern_entropy, topology_loss

# Beyond this MONAI does not fit: its graph is a dense matrix with a row per pattern and layer.
MONAI_LEVELS = 4
TOLERANCE = 1e-9
# What MONAI adds to probabilities before it takes their logarithm.
EPSILON = 1e-5


def random_logits(layers: int, levels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(layers, 3 * levels - 2))


def monai_search(layers: int, levels: int):
    """MONAI's search space without a word, as narrow as it gets, in double precision."""
    from monai.networks.nets.dints import TopologySearch

    with contextlib.redirect_stdout(io.StringIO()):
        return TopologySearch(channel_mul=1 / 32, num_blocks=layers, num_depths=levels, spatial_dims=2).double()


def peak_mib() -> float:
    """Peak of this process's resident memory; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def ratios(result: dict[str, object]) -> dict[str, float]:
    """How many times longer MONAI takes, by the median wall clock and by the least CPU time."""
    return {
        "ratio": result["monai_median_seconds"] / result["ours_median_seconds"],
        "cpu_ratio": result["monai_cpu_seconds"] / result["ours_cpu_seconds"],
    }


def measure_decoding(levels: int, layers: int, repeats: int, *, monai: bool) -> dict[str, object]:
    """Ours for several seeds; MONAI's once, for the first of them."""
    times, before = Times(), peak_mib()
    for seed in range(repeats):
        logits = random_logits(layers, levels, seed)
        times.add(partial(decode, logits, levels))
    result = {"levels": levels, **times.columns("ours"), "ours_mib": peak_mib() - before}
    if not monai:
        return result
    logits = random_logits(layers, levels, 0)
    search = monai_search(layers, levels)
    search.log_alpha_a.data = torch.from_numpy(logits)
    found, before = [], peak_mib()
    times = Times()
    times.add(lambda: found.append(search.decode()[1] > 0))
    result |= {**times.columns("monai"), "monai_mib": peak_mib() - before}
    ours = decode(logits, levels)
    excess = negative_log_likelihood(logits, found[0]) - ours.nll
    if excess < -TOLERANCE:
        sys.exit(f"D = {levels}: MONAI's topology is more probable than ours by {-excess:.1e} nats")
    result |= {"same_topology": bool((ours.selected == found[0]).all()), "monai_excess_nats": max(excess, 0.0)}
    return result | ratios(result)


def our_losses(logits: Tensor, levels: int) -> Tensor:
    """Entropies of the patterns and topology loss."""
    return pattern_entropy(logits).sum() + topology_loss(logits, levels)


def monai_losses(search, epsilon: float) -> Tensor:
    """The same by MONAI; entropies as in its search script, summed over patterns."""
    eta, _ = search.get_prob_a(child=True)
    return -(eta * torch.log(eta + epsilon)).sum() + search.get_topology_entropy(eta)


def our_losses_with_epsilon(logits: Tensor, levels: int) -> Tensor:
    """Ours with what `get_topology_entropy` adds to the probabilities, to compare the two."""
    inputs = log_activation(logits, levels, end="destination")[:-1].exp()
    outputs = log_activation(logits, levels, end="source")[1:].exp()
    topology = inputs * (outputs + EPSILON).log() + (1 - inputs) * (1 - outputs + EPSILON).log()
    return pattern_entropy(logits).sum() - topology.sum()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def difference(logits: Tensor, levels: int, search) -> float:
    """Largest relative difference of the losses' values and gradients."""
    ours, theirs = our_losses_with_epsilon(logits, levels), monai_losses(search, 0.0)
    gradients = gradient(ours, logits), gradient(theirs, search.log_alpha_a)
    pairs = [(ours.detach(), theirs.detach()), gradients]
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def measure_losses(levels: int, layers: int, repeats: int, *, monai: bool) -> dict[str, object]:
    """One step of the architecture's losses, forward and backward."""
    logits = torch.from_numpy(random_logits(layers, levels, 0)).requires_grad_()
    result: dict[str, object] = {"levels": levels}
    runs = {
        "ours": lambda: gradient(our_losses(logits, levels), logits),
        "feasible": lambda: gradient(log_feasible(logits, levels), logits),
    }
    if monai:
        search = monai_search(layers, levels)
        search.log_alpha_a.data = logits.detach().clone()
        error = difference(logits, levels, search)
        if not error < TOLERANCE:
            sys.exit(f"D = {levels}: losses differ by {error:.1e}: the timings would compare different things")
        result["largest_relative_difference"] = error
        runs["monai"] = lambda: gradient(monai_losses(search, EPSILON), search.log_alpha_a)
    for name, measured in alternate(runs, repeats).items():
        result |= measured.columns(name)
    return result | ratios(result) if monai else result


def print_rows(args: argparse.Namespace, title: str, rows: list[dict[str, object]], columns: dict[str, tuple]) -> None:
    """JSON, or a table with a dash where a version was not run."""
    if args.json:
        print(json.dumps(rows, indent=4))
        return
    print(f"{title}, L = {args.layers}, {torch.get_num_threads()} threads, torch {torch.__version__}, float64")
    table = [
        [
            f"{row['levels']}",
            *(f"{row[key] * scale:{form}}" if key in row else "-" for key, scale, form in columns.values()),
        ]
        for row in rows
    ]
    print(format_table(["D", *columns], table))


def of_levels(measure: Callable[..., dict[str, object]], args: argparse.Namespace) -> list[dict[str, object]]:
    """A measurement for every number of levels asked for, beside MONAI where MONAI can."""
    return [
        measure(levels, args.layers, args.repeats, monai=args.monai and levels <= MONAI_LEVELS)
        for levels in args.levels
    ]


def decoding(args: argparse.Namespace) -> None:
    rows = of_levels(measure_decoding, args)
    columns = {
        "ours ms": ("ours_seconds", 1e3, ".1f"),
        "median": ("ours_median_seconds", 1e3, ".1f"),
        "CPU ms": ("ours_cpu_seconds", 1e3, ".1f"),
        "MiB": ("ours_mib", 1, ".0f"),
        "MONAI s": ("monai_seconds", 1, ".1f"),
        "CPU s": ("monai_cpu_seconds", 1, ".1f"),
        "MiB ": ("monai_mib", 1, ".0f"),
        "ratio": ("ratio", 1, ".0f"),
        "ratio CPU": ("cpu_ratio", 1, ".0f"),
        "same": ("same_topology", 1, "d"),
        "excess nats": ("monai_excess_nats", 1, ".0e"),
    }
    print_rows(args, "decoding", rows, columns)


def losses(args: argparse.Namespace) -> None:
    rows = of_levels(measure_losses, args)
    columns = {
        "ours ms": ("ours_seconds", 1e3, ".1f"),
        "median": ("ours_median_seconds", 1e3, ".1f"),
        "MONAI ms": ("monai_seconds", 1e3, ".1f"),
        "median ": ("monai_median_seconds", 1e3, ".1f"),
        "ratio": ("ratio", 1, ".0f"),
        "ratio CPU": ("cpu_ratio", 1, ".0f"),
        "difference": ("largest_relative_difference", 1, ".0e"),
        "P(feasible) ms": ("feasible_seconds", 1e3, ".1f"),
        "median  ": ("feasible_median_seconds", 1e3, ".1f"),
    }
    print_rows(args, "entropies and topology loss with gradients", rows, columns)


def supernet(args: argparse.Namespace) -> None:
    # MONAI's networks take seconds to import: only here.
    from dints_supernet import measure

    rows = measure(args.size, args.features, args.repeats, torch.device(args.device))
    if args.json:
        print(json.dumps([vars(row) for row in rows], indent=4))
        return
    theirs = {row.step: row for row in rows if row.name == "MONAI"}
    print(f"{args.size}^3 voxels, {args.features} features, {args.device}, torch {torch.__version__}, float32")
    table = [
        [
            row.step,
            row.name,
            f"{row.seconds:.2f}",
            f"{theirs[row.step].seconds / row.seconds:.2f}",
            f"{theirs[row.step].cpu_seconds / row.cpu_seconds:.2f}",
            f"{row.saved_mib:.1f}",
            f"{row.saved_mib / theirs[row.step].saved_mib:.0%}",
            "-" if row.peak_mib is None else f"{row.peak_mib:.0f}",
        ]
        for row in rows
    ]
    header = ["step", "supernet", "s", "times MONAI's speed", "CPU s", "saved MiB", "of MONAI's", "peak MiB"]
    print(format_table(header, table, left=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, repeats, text in (
        ("decode", decoding, 10, "the most probable feasible topology"),
        ("losses", losses, 20, "entropies, topology loss and P(feasible), forward and backward"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("-levels", nargs="+", type=int, default=[4, 5, 6, 7, 8], metavar="D")
        command.add_argument("-layers", type=int, default=12)
        command.add_argument("-repeats", type=int, default=repeats, help="of ours in decode, of both in losses")
        command.add_argument("--no-monai", dest="monai", action="store_false", help="ours alone")
        command.add_argument("--json", action="store_true")
        command.set_defaults(run=run)
    command = commands.add_parser("supernet", help="a step of the weights and of the architecture, 12 layers")
    command.add_argument("-size", type=int, default=48, help="voxels per side of the patch")
    command.add_argument("-features", type=int, default=2, help="channels at full resolution")
    command.add_argument("-repeats", type=int, default=3)
    command.add_argument("-device", default="cpu")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=supernet)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
