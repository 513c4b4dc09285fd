"""Topologies from architecture codes as MONAI publishes them, in its own order of edges and operations.

A file holds a dictionary, of torch or JSON: `arch_code_a`, (layers, E) of 0 and 1, the edges; `arch_code_c`, numbers
of operations (layers, E), or 0 and 1 (layers, E, N); `node_a`, (layers + 1, D) of 0 and 1, the nodes, which follows
from the edges. MONAI's axes are x, y, z where nnU-Net's are z, y, x, so its 3x3x1 and then 1x1x3 spans y and x first.

Geometry and channels are the plan's, stems, steps between levels and upsampling ours: what is taken over is the
topology, and MONAI's convolution at the full resolution (`final_conv`). Trained weights cannot be.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_nas.architecture import NetworkSpec, import_arguments
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.dints.network import FEWEST_STAGES
from nnunet_nas.dints.operations import SKIP
from nnunet_nas.dints.refit import on_levels
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.space import Space
from nnunet_nas.dints.topology import Topology, activated
from nnunet_nas.errors import DataProblem
from nnunet_nas.files import read_json

# By MONAI's numbers: skip_connect, conv_3x3x3, conv_3x3x1, conv_3x1x3, conv_1x3x3; in 2-D skip_connect, conv_3x3.
_OPERATIONS = {2: (SKIP, "conv"), 3: (SKIP, "conv", "yx_z", "zx_y", "zy_x")}
_EDGES, _CHOICES, _NODES = ("arch_code_a", "code_a"), ("arch_code_c", "code_c", "arch_code_ops"), "node_a"
_MOST_LAYERS = 100
_MEND = "give a file with arch_code_a and arch_code_c, as MONAI's searches and bundles have them"


def read_code(path: Path) -> dict[str, Any]:
    """The dictionary of a file, read without running code that may be in it.

    Raises:
        DataProblem: missing, broken, or no dictionary.
    """
    if path.suffix != ".json":
        return read_checkpoint(path, _MEND, arrays=True)
    content = read_json(path, _MEND)
    if not isinstance(content, dict):
        raise DataProblem(f"{path} holds a {type(content).__name__} and no dictionary: {_MEND}")
    return content


def topology_of(content: dict[str, Any], dimensions: int) -> Topology:
    """The topology of a code.

    Args:
        content: as `read_code` gives it; a pair under `code` stands for edges and operations.
        dimensions: of the images, 2 or 3.

    Raises:
        DataProblem: not of this form, of other dimensions, or infeasible.
    """
    if isinstance(content.get("code"), (list, tuple)) and len(content["code"]) == 2:
        content = {**content, _EDGES[0]: content["code"][0], _CHOICES[0]: content["code"][1]}
    edges, choices = _numbers(content, _EDGES), _numbers(content, _CHOICES)
    if edges.ndim != 2 or not 1 <= len(edges) <= _MOST_LAYERS or (edges.shape[1] + 2) % 3 or edges.shape[1] < 4:
        raise DataProblem(f"{_EDGES[0]} has shape {edges.shape}, not (layers, 3 levels - 2): {_MEND}")
    names = _OPERATIONS[dimensions]
    if choices.ndim == 3 and choices.shape[:2] == edges.shape:
        if not (choices.sum(-1)[edges == 1] == 1).all():
            raise DataProblem(f"{_CHOICES[0]} must have one operation for every edge: {_MEND}")
        choices = choices.argmax(-1)
    if choices.shape != edges.shape:
        raise DataProblem(f"{_CHOICES[0]} has shape {choices.shape}, {_EDGES[0]} {edges.shape}: {_MEND}")
    if not np.isin(edges, (0, 1)).all() or not np.isin(choices[edges == 1], range(len(names))).all():
        raise DataProblem(
            f"{_EDGES[0]} must be of 0 and 1 and {_CHOICES[0]} of numbers below {len(names)} in {dimensions}-D: {_MEND}"
        )
    levels = (edges.shape[1] + 2) // 3
    selected = edges == 1
    _require_nodes(content, selected, levels)
    chosen = np.where(selected, choices, 0).astype(int)
    return Topology.from_arrays(selected, [[names[number] for number in row] for row in chosen], levels)


def import_topology(
    content: dict[str, Any], base: NetworkSpec, *, first_level: int | None
) -> tuple[NetworkSpec, list[str]]:
    """The network of a code in a configuration's geometry, and what was fitted, in words.

    Args:
        content: as `read_code` gives it.
        base: of the configuration.
        first_level: stage that is the code's finest level; None: 1, MONAI's `use_downsample`, or 0 in 2-D.

    Raises:
        DataProblem: it does not fit.
    """
    dimensions = len(base.patch_size)
    first = (dimensions == 3) * 1 if first_level is None else first_level
    topology = topology_of(content, dimensions)
    stages, available = first + topology.levels, import_arguments(base.architecture).get("n_stages", 0)
    if not FEWEST_STAGES <= stages <= available:
        raise DataProblem(
            f"the code has {topology.levels} levels, with stage {first} as the finest one the last is stage "
            f"{stages - 1} of the plan, which has {available} stages and needs {FEWEST_STAGES}: give another "
            f"-first_level, or choose another configuration"
        )
    settings = DiNTSSettings(first_level=first, num_levels=topology.levels, final_conv=True)
    space = Space(base.architecture, settings)
    space.require_divisible(base.patch_size)
    fitted, notes = on_levels(topology, space.levels[first:])
    return replace(base, architecture=space.network(fitted.to_json())), notes


def _numbers(content: dict[str, Any], keys: tuple[str, ...]) -> np.ndarray:
    key = next((key for key in keys if key in content), None)
    if key is None:
        raise DataProblem(f"the code has no {keys[0]}, only {', '.join(map(str, content)) or 'nothing'}: {_MEND}")
    try:
        found = np.asarray(content[key], dtype=float)
    except (TypeError, ValueError) as error:
        raise DataProblem(f"{key} is not an array of numbers: {_MEND}") from error
    if not np.isfinite(found).all():
        raise DataProblem(f"{key} has entries that are no numbers: {_MEND}")
    return found


def _require_nodes(content: dict[str, Any], selected: np.ndarray, levels: int) -> None:
    """Refuses nodes that are not those which the edges join: one of both was changed."""
    if _NODES not in content:
        return
    sources, destinations = activated(selected, levels)
    expected = np.concatenate((sources[:1], destinations))
    given = _numbers(content, (_NODES,))
    if given.shape != expected.shape or not np.array_equal(given > 0, expected):
        raise DataProblem(f"{_NODES} is not what the edges of {_EDGES[0]} join: {_MEND}")
