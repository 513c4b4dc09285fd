"""How a search arrived at its cell: the analysis of section 4 of IAC-LTH, on the recorded arrays.

The paper asks how early the finally chosen operations and edges emerge. Here are its quantities: the continuous
genotype and its cosine similarity between epochs (section 4.2, Eqs. 13 to 15), top-k masks and their Hamming similarity
(Eq. 16), the epochs at which final operations enter the top-3, top-2, top-1 of their edge and final edges the two
inputs of their node (section 4.4), and how long each edge takes (section 4.5). Epochs count from 0.

Our choices, where the paper is silent:

- Masks have exactly k operations per edge, and ties go to the operation listed first, as in `discretise`.
- Entries are counted without that help: an operation is in the top-k only if fewer than k others are at least as
  important. All are equal during warm-up, so that nothing has entered anything by then.
- In similarities a pruned operation keeps the share that it had last, and those that are left divide the rest.
  Otherwise they would show the pruning and not how importances move: uniform importances and one operation per edge
  have a cosine of 0.38. Entries are counted among the operations that are left.
- Several searches are averaged over the epochs that all of them have; what their cells have in common stands beside
  what random cells have.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.genotype import EDGES, INPUTS_PER_NODE, OPERATIONS, Genotype, discretise, edges_into
from nnunet_nas.iac.history import CellHistory
from nnunet_nas.iac.sampling import edge_jaccard, random_jaccard, same_operation
from nnunet_nas.methods import Dynamics

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TOP = (1, 2, 3)
CRITERIA = ("top_3", "top_2", "top_1", "inputs")
# Section 4.2 compares the cells after these numbers of epochs.
_PAPER_EPOCHS = (15, 16, 20, 40, 80, 100, 150, 200)


@dataclass(frozen=True)
class EdgeDynamics:
    """How one candidate edge found its operation.

    Attributes:
        source: node that is read.
        target: node that receives.
        operation: the most important one at the end of the search.
        kept: whether the edge is one of the two inputs of its node in the final cell.
        enters: first epoch at which the operation is in the `top_3`, `top_2`, `top_1` of the edge, and at which a kept
            edge is among the two strongest `inputs` of its node; None if never without a tie, or for the inputs of
            an edge that is not kept.
        stays: first epoch from which on that holds until the end, or None.
    """

    source: int
    target: int
    operation: str
    kept: bool
    enters: dict[str, int | None]
    stays: dict[str, int | None]

    @property
    def difficulty(self) -> int | None:
        """Epoch from which the final operation stays the most important one (section 4.5); None if it ends in a tie."""
        return self.stays["top_1"]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "difficulty": self.difficulty}


@dataclass(frozen=True, eq=False)
class Analysis:
    """The dynamics of a whole search.

    Attributes:
        warmup_epochs: epochs that trained cell weights only.
        genotype: the cell to which the last epoch leads.
        importance: continuous genotypes, (t, 98).
        cosine: similarity of the continuous genotypes of two epochs, (t, t).
        hamming: likewise of the masks `top_1`, `top_2`, `top_3` and of the discrete cells, `cell`.
        edges: all 14 candidate edges.
    """

    warmup_epochs: int
    genotype: Genotype
    importance: Floats
    cosine: Floats
    hamming: dict[str, Floats]
    edges: tuple[EdgeDynamics, ...]

    def __len__(self) -> int:
        """Epochs of the search."""
        return len(self.cosine)

    def to_final(self) -> dict[str, Floats]:
        """Similarity of every epoch to the last one: `cosine`, `top_1`, `top_2`, `top_3`, `cell`, (t,) each."""
        return {"cosine": self.cosine[-1], **{name: matrix[-1] for name, matrix in self.hamming.items()}}

    def medians(self) -> dict[str, float | None]:
        """Median epoch at which the kept edges enter each of the criteria (Figure 6); None if one never does."""
        entries = {name: [edge.enters[name] for edge in self.edges if edge.kept] for name in CRITERIA}
        return {name: _median(values) for name, values in entries.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: similarities to the last epoch, and among the epochs that the paper compares; all edges."""
        last = len(self) - 1
        picked = sorted({*(count - 1 for count in _PAPER_EPOCHS if count - 1 < last), last})
        cells = np.ix_(picked, picked)
        return {
            "epochs": len(self),
            "warmup_epochs": self.warmup_epochs,
            "genotype": self.genotype.to_json(),
            "median_entry": self.medians(),
            "to_final": {name: values.tolist() for name, values in self.to_final().items()},
            "between": {
                "epochs": picked,
                "cosine": self.cosine[cells].tolist(),
                **{name: matrix[cells].tolist() for name, matrix in self.hamming.items()},
            },
            "edges": [edge.to_json() for edge in self.edges],
        }


def dynamics(history: CellHistory) -> Dynamics:
    """The dynamics of a search; an edge's row says when its final operation came first.

    Raises:
        DataProblem: no epoch has finished.
    """
    from nnunet_nas.iac.drawing.dynamics import draw_dynamics

    analysis = analyse(history)
    rows = [
        [
            f"{edge.source}->{edge.target}",
            edge.operation,
            "kept" if edge.kept else "",
            *("-" if epoch is None else str(epoch) for epoch in (*(edge.enters[c] for c in CRITERIA), edge.difficulty)),
        ]
        for edge in analysis.edges
    ]
    return Dynamics(
        content=analysis.to_json(),
        headline=f"{len(analysis)} epochs, {analysis.warmup_epochs} of them warm-up; first epoch in:",
        header=["edge", "operation", "", *CRITERIA, "stays top_1"],
        rows=rows,
        words=3,
        draw=partial(draw_dynamics, analysis),
    )


def analyse(history: CellHistory) -> Analysis:
    """The analysis of section 4 for the epochs so far; the last one counts as final.

    Raises:
        DataProblem: no epoch has finished.
    """
    if len(history) == 0:
        raise DataProblem("nothing to analyse: the search has not finished an epoch yet")
    shares = unpruned(history.probabilities, history.active)
    importance = importances(shares, history.weights)
    genotype = discretise(history.probabilities[-1], history.weights[-1])
    masks = {f"top_{k}": top_masks(shares, np.ones_like(history.active), k) for k in TOP}
    masks["cell"] = cell_masks(history.probabilities, history.weights)
    return Analysis(
        warmup_epochs=int(history.warmup.sum()),
        genotype=genotype,
        importance=importance,
        cosine=cosine_similarity(importance),
        hamming={name: hamming_similarity(mask.reshape(len(history), -1)) for name, mask in masks.items()},
        edges=tuple(_edge_dynamics(history, row, genotype) for row in range(len(EDGES))),
    )


def unpruned(probabilities: Floats, active: Mask) -> Floats:
    """Shares of all operations, as if none had been pruned; see the module.

    Args:
        probabilities: of the operations, 0 where pruned, (t, 14, 7).
        active: operations that were not pruned, (t, 14, 7).

    Returns:
        (t, 14, 7), sums over the last axis are 1.
    """
    shares = np.empty_like(probabilities)
    last = np.zeros(probabilities.shape[1:])
    for epoch, (values, left) in enumerate(zip(probabilities, active, strict=True)):
        kept = np.where(left, 0.0, last)
        last = shares[epoch] = np.where(left, values * (1 - kept.sum(axis=1, keepdims=True)), kept)
    return shares


def importances(probabilities: Floats, weights: Floats) -> Floats:
    """The continuous genotype I = p w of every epoch (Eqs. 13 and 14).

    Args:
        probabilities: of the operations, (t, 14, 7).
        weights: of the edges into their node, (t, 14).

    Returns:
        one vector per epoch, edge by edge, (t, 98).
    """
    return (probabilities * weights[:, :, np.newaxis]).reshape(len(probabilities), -1)


def cosine_similarity(vectors: Floats) -> Floats:
    """Cosine of the angle between every two rows (Eq. 15).

    Args:
        vectors: (t, n), no row all zero; importances never are, they sum to 1 per node.

    Returns:
        (t, t), exactly 1 on the diagonal.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def hamming_similarity(masks: Mask) -> Floats:
    """Share of the entries in which every two rows agree (Eq. 16).

    Args:
        masks: (t, n).

    Returns:
        (t, t), 1 on the diagonal.
    """
    ones = masks.astype(np.float64)
    return (ones @ ones.T + (1 - ones) @ (1 - ones).T) / masks.shape[1]


def top_masks(probabilities: Floats, active: Mask, k: int) -> Mask:
    """The k most important operations of every edge (section 4.2); the edge's weight does not change their order.

    Args:
        probabilities: of the operations, (t, 14, 7).
        active: operations that were not pruned, (t, 14, 7).
        k: operations per edge; fewer where fewer are active.

    Returns:
        (t, 14, 7); ties go to the operation listed first.
    """
    order = np.argsort(np.where(active, -probabilities, np.inf), axis=-1, kind="stable")
    masks = np.zeros_like(active)
    np.put_along_axis(masks, order[..., :k], True, axis=-1)
    return masks & active


def cell_masks(probabilities: Floats, weights: Floats) -> Mask:
    """The discrete cell to which every epoch would lead (sections 3.4 and 4.2).

    Args:
        probabilities: of the operations, (t, 14, 7).
        weights: of the edges into their node, (t, 14).

    Returns:
        (t, 14, 7), eight ones per epoch.
    """
    masks = np.zeros(probabilities.shape, bool)
    for epoch in range(len(probabilities)):
        for edge in discretise(probabilities[epoch], weights[epoch]).edges:
            masks[epoch, edge.row, OPERATIONS.index(edge.operation)] = True
    return masks


def ranks(values: Floats) -> NDArray[np.int64]:
    """How many others along the last axis are at least as large: 0 for a clear winner, ties count against everyone.

    Args:
        values: (..., n).

    Returns:
        (..., n).
    """
    return (values[..., np.newaxis, :] >= values[..., :, np.newaxis]).sum(axis=-1, dtype=np.int64) - 1


def first_epoch(holds: Mask) -> int | None:
    """The first epoch at which something holds, (t,); None if it never does."""
    return int(np.argmax(holds)) if holds.any() else None


def settled_epoch(holds: Mask) -> int | None:
    """The first epoch from which on something holds until the end, (t,); None if it does not hold at the end."""
    if not holds[-1]:
        return None
    return len(holds) - int(np.argmin(holds[::-1])) if not holds.all() else 0


def averaged(histories: Sequence[CellHistory], names: Sequence[str]) -> Dynamics:
    """Several searches together, as the paper reports the seeds of one search (section 6.2).

    Raises:
        DataProblem: one of them has not finished an epoch.
    """
    from nnunet_nas.iac.drawing.dynamics import draw_averages

    analyses = [analyse(history) for history in histories]
    average = average_of(analyses)
    medians = [analysis.medians() for analysis in analyses]
    rows = [
        [name, str(len(analysis)), *(_number(found[criterion]) for criterion in CRITERIA)]
        for name, analysis, found in zip(names, analyses, medians, strict=True)
    ]
    rows.append(["mean", f"{np.mean(average.epochs):.1f}", *(_number(average.entries[name]) for name in CRITERIA)])
    return Dynamics(
        content={"searches": list(names), **average.to_json()},
        headline=(
            f"{len(names)} searches; every two cells share {average.jaccard:.2f} of their edges (random cells: "
            f"{average.random_jaccard:.2f}), and have the same operation on {average.same_operation:.2f} of the shared "
            f"ones (random: {1 / len(OPERATIONS):.2f}); median epoch of the kept edges' first entry:"
        ),
        header=["search", "epochs", *CRITERIA],
        rows=rows,
        words=1,
        draw=partial(draw_averages, average),
    )


@dataclass(frozen=True, eq=False)
class Average:
    """What several searches have in common.

    Attributes:
        epochs: of each of them.
        to_final: `Analysis.to_final` over the epochs that all have, mean and standard deviation, (2, t) each.
        entries: mean of the medians at which kept edges enter the criteria; None where one search has none.
        genotypes: their cells.
        jaccard: mean share of edges that two cells share, of those that either has.
        same_operation: mean share of the shared edges with the same operation.
        random_jaccard: the former, of random cells.
    """

    epochs: list[int]
    to_final: dict[str, Floats]
    entries: dict[str, float | None]
    genotypes: list[Genotype]
    jaccard: float
    same_operation: float
    random_jaccard: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        curves = {name: {"mean": both[0].tolist(), "sd": both[1].tolist()} for name, both in self.to_final.items()}
        return {**vars(self), "to_final": curves, "genotypes": [cell.to_json() for cell in self.genotypes]}


def average_of(analyses: Sequence[Analysis]) -> Average:
    """Averages of two analyses at least."""
    shortest = min(map(len, analyses))
    curves = [analysis.to_final() for analysis in analyses]
    to_final = {
        name: np.stack([f(np.stack([curve[name][:shortest] for curve in curves]), axis=0) for f in (np.mean, _spread)])
        for name in curves[0]
    }
    entries = {name: [analysis.medians()[name] for analysis in analyses] for name in CRITERIA}
    pairs = list(itertools.combinations([analysis.genotype for analysis in analyses], 2))
    return Average(
        epochs=[len(analysis) for analysis in analyses],
        to_final=to_final,
        entries={name: _mean_of_known(values) for name, values in entries.items()},
        genotypes=[analysis.genotype for analysis in analyses],
        jaccard=float(np.mean([edge_jaccard(*pair) for pair in pairs])),
        same_operation=float(np.mean([same_operation(*pair) for pair in pairs])),
        random_jaccard=random_jaccard(),
    )


def _spread(values: Floats, axis: int) -> Floats:
    spread: Floats = np.std(values, axis=axis, ddof=1)
    return spread


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _edge_dynamics(history: CellHistory, row: int, genotype: Genotype) -> EdgeDynamics:
    source, target = EDGES[row]
    operation = int(np.argmax(history.probabilities[-1, row]))
    kept = any(edge.row == row for edge in genotype.edges)
    rank = ranks(history.probabilities[:, row])[:, operation]
    holds = {f"top_{k}": rank < k for k in TOP}
    into = edges_into(target)
    strongest = ranks(history.weights[:, into])[:, row - into.start] < INPUTS_PER_NODE
    holds["inputs"] = strongest & kept
    return EdgeDynamics(
        source=source,
        target=target,
        operation=OPERATIONS[operation],
        kept=kept,
        enters={name: first_epoch(holds[name]) for name in CRITERIA},
        stays={name: settled_epoch(holds[name]) for name in CRITERIA},
    )


def _median(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if len(known) == len(values) else None
