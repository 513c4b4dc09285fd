"""Broken files: every command must refuse them in one line, change nothing and run nothing.

Each kind starts from files that are right and breaks them by a random change: another type, a huge number, a missing
key, deep nesting, a name of something that would run, a cut file. A failure is exit code 1 (an error that nobody
foresaw), a file that a refusal changed, or something that ran.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Campaign

_STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "0", "00", "\u0660",
    "\x1b[31m", "../../x", "a__b", "subprocess.Popen", "os.system", [], {}, [None], {"": None}, [[[]]], "x" * 5000,
)  # fmt: skip
_DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "bright": 1}, "file_ending": ".nii.gz"}
_CASES = ("case_00", "case_01", "case_02")


def broken(content: Any, rng: random.Random) -> Any:
    """A copy with one to three random changes somewhere in it."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return rng.choice(_STRANGE)
        holder, key = rng.choice(places)
        action = rng.randrange(5)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[str(rng.choice(_STRANGE))] = holder.pop(key)
        elif action == 2:
            holder[key] = _nested(rng.choice((30, 60, 200)), rng.choice(_STRANGE))
        else:
            holder[key] = copy.deepcopy(rng.choice(_STRANGE))
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def _nested(depth: int, core: Any) -> Any:
    for _ in range(depth):
        core = [core]
    return core


def text_of(content: Any, rng: random.Random) -> str:
    """JSON of it; sometimes cut, sometimes with a number of thousands of digits, sometimes very deep."""
    text = json.dumps(content, indent=4)
    choice = rng.randrange(40)
    if choice == 0:
        return text[: rng.randrange(len(text))]
    if choice == 1:
        return text.replace("2", "1" * 5000, 1)
    return "[" * 100_000 if choice == 2 else text


def plans(campaign: Campaign, seed: int) -> None:
    """A broken plans file beside a whole one: listed, counted, extended, searched on.

    There are no cases: a selection or a proof that the plans would let begin ends there. Of the commands that take
    longer each seed calls one.
    """
    from fake_dataset import default_plans

    rng = random.Random(seed)
    path = _dataset(campaign.root) / "nnUNetPlans.json"
    content = default_plans()
    content["configurations"]["2d_found"] = {
        "inherits_from": "2d",
        "nas": {"method": "xtiny", "base_digest": "sha256:0"},
    }
    path.write_text(text_of(broken(content, rng), rng))
    calls = (
        ("ls",),
        ("ls", "-d", "11"),
        ("info", "-d", "11", "-c", "2d"),
        ("set_search", "-d", "11", "-c", "2d", "-m", "iac_lth", "num_epochs=5"),
        ("add_skip", "-d", "11", "-c", "2d", "-m", "attention"),
        ("transfer", "-d", "11", "-c", "2d", "-from", "11:2d_found"),
    )
    others = (
        ("add_encoder", "-d", "11", "-c", "2d", "-m", "mobilenetv3_large"),
        ("add_width", "-d", "11", "-c", "2d", "-width", "24"),
        ("import_dints", "-d", "11", "-c", "2d", "-code", str(_code(campaign.root))),
        ("select_tiny", "-d", "11", "-c", "2d", "-device", "cpu"),
        ("prove_tiny", "-d", "11", "-c", "2d", "-f", "0", "-widths", "16", "-device", "cpu"),
    )
    for words in (*calls, others[seed % len(others)]):
        campaign.command(*words, unchanged=path, seed=seed)


def settings(campaign: Campaign, seed: int) -> None:
    """Settings that mean nothing, in the plans and on the command line."""
    from nnunet_nas.methods import settings_class, with_settings
    from nnunet_nas.settings import parse_assignments, read_settings

    rng = random.Random(seed)
    method = rng.choice(with_settings())
    keys = [*settings_class(method).__dataclass_fields__, "unknown"]
    values = {rng.choice(keys): copy.deepcopy(rng.choice(_STRANGE)) for _ in range(rng.randint(1, 3))}
    content: Any = {method: values}
    given = {"nas_settings": broken(content, rng) if rng.random() < 0.5 else content}
    campaign.call(lambda: read_settings(settings_class(method), given), seed)
    words = [f"{key}={value}" for key, value in values.items()]
    campaign.call(lambda: parse_assignments(settings_class(method), words), seed)


def genotypes(campaign: Campaign, seed: int) -> None:
    """Cells that cannot be; what is accepted must be written as it was read."""
    from nnunet_nas.iac.genotype import Genotype

    right = {
        "2": {"0": "identity", "1": "sep_conv_3"}, "3": {"0": "dil_conv_5", "2": "identity"},
        "4": {"1": "avg_pool_3", "3": "max_pool_3"}, "5": {"2": "sep_conv_5", "4": "dil_conv_3"},
    }  # fmt: skip
    given = broken(right, random.Random(seed))

    def read() -> None:
        assert Genotype.from_json(given).to_json() == given, f"accepted as something else: {given}"

    campaign.call(read, seed)


def topologies(campaign: Campaign, seed: int) -> None:
    """Topologies that cannot be; what is accepted must be written as it was read."""
    from nnunet_nas.dints.topology import Topology

    right = {"levels": 2, "layers": [{"0->0": "conv", "0->1": "skip"}, {"0->0": "conv", "1->0": "conv"}]}
    given = broken(right, random.Random(seed))

    def read() -> None:
        assert Topology.from_json(given).to_json() == given, f"accepted as something else: {given}"

    campaign.call(read, seed)


def summaries(campaign: Campaign, seed: int) -> None:
    """A broken summary, or a broken neighbour of it, compared with a whole one."""
    rng, kind = random.Random(seed), random.Random(seed).choice(("summary.json", "dataset.json", "plans.json"))
    dice = iter(np.random.default_rng(seed).uniform(0, 1, 6).tolist())
    folders = [campaign.root / "summaries" / name for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        cases = [
            {
                "reference_file": f"labels/{case}.nii.gz",
                "prediction_file": f"out/{case}.nii.gz",
                "metrics": {"1": {"Dice": next(dice), "IoU": 0.5, "TP": 1, "FP": 1, "FN": 1, "n_ref": 2, "n_pred": 2}},
            }
            for case in _CASES
        ]
        (folder / "summary.json").write_text(json.dumps({"metric_per_case": cases, "mean": {}, "foreground_mean": {}}))
        (folder / "dataset.json").write_text(json.dumps(_DESCRIPTION))
        (folder / "plans.json").write_text((_dataset(campaign.root) / "whole.json").read_text())
    path = folders[1] / kind
    path.write_text(text_of(broken(json.loads(path.read_text()), rng), rng))
    campaign.command("compare", "-m", *map(str, folders), seed=seed)


def histories(campaign: Campaign, seed: int) -> None:
    """Histories of other shapes, types and values, and cut ones, shown by `dynamics`."""
    rng = np.random.default_rng(seed)
    path = campaign.root / "search_history.npz"
    epochs, cells = 3, bool(rng.integers(2))
    arrays: dict[str, Any] = {name: np.ones(epochs) for name in ("train_loss", "val_loss", "dice", "seconds")}
    if cells:
        arrays |= {"probabilities": np.full((epochs, 14, 7), 1 / 7), "weights": np.full((epochs, 14), 0.5)}
        arrays |= {"active": np.ones((epochs, 14, 7), bool), "js": np.ones((epochs, 14)), "tau": np.ones((epochs, 14))}
        arrays |= {"warmup": np.zeros(epochs, bool)}
    else:
        series = "warmup gap log_feasible nll pattern_entropy operation_entropy expected_mib selected_mib budget_mib"
        arrays |= {name: np.zeros(epochs) for name in series.split()}
        arrays |= {"edge_logits": np.zeros((epochs, 2, 4)), "operations": np.full((epochs, 2, 4, 3), 1 / 3)}
        arrays |= {"selected": np.ones((epochs, 2, 4))}
    arrays["layout"] = np.int64(1)
    for name in rng.choice(list(arrays), rng.integers(0, 3), replace=False):
        array = np.atleast_1d(arrays[name])
        shapes = [array.reshape(-1), array[..., :1], array[:0], array[..., None], np.array(rng.choice([0.0, np.inf]))]
        values = [array * np.nan, array * 1e300, -array.astype(float), array.astype(str), np.float32(array)]
        arrays[name] = [*shapes, *values][rng.integers(10)]
    np.savez_compressed(path, **arrays)
    if rng.random() < 0.2:
        path.write_bytes(path.read_bytes()[: int(rng.integers(0, path.stat().st_size))])
    campaign.command("dynamics", str(path), "--json", seed=seed)
    campaign.command("dynamics", str(path), seed=seed)


def checkpoints(campaign: Campaign, seed: int) -> None:
    """Checkpoints that are cut, changed by one to three bytes, or of other content; none of them may run anything."""
    import torch

    from nnunet_nas.checkpoints import read_checkpoint

    rng, path = random.Random(seed), campaign.root / "checkpoint.pth"
    proof = campaign.root / "ran"
    content = {"network_weights": {"a": torch.zeros(4)}, "logging": [np.float64(1)], "init_args": _Program(proof)}
    if rng.random() < 0.5:
        content["init_args"] = rng.choice([None, {}, [1], "text"])
    torch.save(rng.choice([content, content, [1], None, torch.zeros(2)]), path)
    data = bytearray(path.read_bytes())
    first = data.index(pickle.PROTO + b"\x02")  # of the pickle in the archive; tensors and the directory come after it
    for place in rng.choice(([], [len(data)], [len(data)], [data.index(b"PK", first)] * rng.randint(1, 3))):
        data[rng.randrange(first if place < len(data) else 0, place)] = rng.randrange(256)
    path.write_bytes(bytes(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))]))
    campaign.call(lambda: read_checkpoint(path, "train again", ["network_weights", "init_args"]), seed)
    if proof.exists():
        campaign.fail(seed, "the checkpoint ran code")
        proof.rmdir()


class _Program:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


KINDS = {kind.__name__: kind for kind in (plans, settings, genotypes, topologies, summaries, histories, checkpoints)}


def _dataset(root: Path) -> Path:
    """A data set with nnU-Net's description and a whole plans file; its images are not needed."""
    from fake_dataset import DATASET, default_plans

    folder = root / "nnUNet_preprocessed" / DATASET
    if not folder.exists():
        folder.mkdir(parents=True)
        whole = {**default_plans(), "plans_name": "whole"}
        (folder / "whole.json").write_text(json.dumps(whole, indent=4))
        (folder / "dataset.json").write_text(json.dumps(_DESCRIPTION))
    return folder


def _code(root: Path) -> Path:
    """A topology of two levels and two layers as MONAI publishes it."""
    path = root / "code.json"
    path.write_text(json.dumps({"arch_code_a": [[1] * 4] * 2, "arch_code_c": [[1] * 4] * 2}))
    return path
