"""Whose code a file may name: modules of networks in plans, classes of objects in checkpoints.

Plans and checkpoints are handed on between people. Plans name classes by their dotted path, which nnU-Net imports and
calls with arguments from the same file; `nonlin: subprocess.Popen` would run a program. So what plans name must be a
module of torch, of nnU-Net's networks or of this package, or of a package that the user trusts by name.
"""

from __future__ import annotations

import os
import pydoc
from typing import Any

from nnunet_nas.errors import DataProblem

# Comma-separated packages or modules whose classes plans and checkpoints may name, besides those below.
VARIABLE = "NNUNET_NAS_TRUST"
NETWORKS = ("torch.nn", "dynamic_network_architectures", "nnunet_nas")


def trusted_by_user(name: str) -> bool:
    """Whether a dotted name is in a package that the environment variable names."""
    return _within(name, tuple(part.strip() for part in os.environ.get(VARIABLE, "").split(",") if part.strip()))


def locate_class(name: Any, what: str, *, moved: bool = False) -> Any:
    """The class of a network or of a part of one that plans name by its dotted path.

    Args:
        name: of the class, as it stands in the plans.
        what: the key that it stands under, for the message.
        moved: give None for a class of ours that is not there: nnU-Net looks for it elsewhere in the same packages.

    Raises:
        DataProblem: a package that is not trusted, no such class, or one that is no `torch.nn.Module`.
    """
    if not isinstance(name, str):
        raise DataProblem(f"{what} must be the dotted name of a class, not {name!r}: correct the configuration")
    ours = _within(name, NETWORKS)
    if not ours and not trusted_by_user(name):
        raise DataProblem(
            f"{what}: {name} is not of {', '.join(NETWORKS)} and was not imported: if you trust it, export "
            f"{VARIABLE}={name.partition('.')[0]}; otherwise correct the configuration"
        )
    found: Any = pydoc.locate(name)
    if found is None and ours and moved:
        return None
    if found is None:
        raise DataProblem(f"{what}: {name} cannot be imported: correct the configuration")
    if ours and not (_is_module_class(found) and _within(found.__module__, NETWORKS)):
        raise DataProblem(f"{what}: {name} is not a class of networks or their parts: correct the configuration")
    return found


def _is_module_class(found: Any) -> bool:
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module)


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
