"""Writes a trained configuration as a folder that predicts without torch and nnU-Net, checked against nnU-Net first.

The folder holds one ONNX file per fold, recipe.json (the whole pipeline), predict.pyz (the runtime), README.txt and
verification.json. Real cases are predicted by nnU-Net and by the export; an export that does not agree is refused.
-tr, -p, -c and -d name a model as nnU-Net does; -m names its folder.

examples:
  nnunet_nas export -d 4 -c 2d_xtiny8 -f 0 -o hippocampus_tiny
  nnunet_nas export -d 4 -c 2d_iaclth -tr nnUNetTrainerIACRetrofit -f 0 1 2 3 4 -o hippocampus -i images
  nnunet_nas export -m nnUNetTrainer__nnUNetPlans__2d -f all -o model --unverified
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nnunet_nas.cli.common import quiet_output
from nnunet_nas.commands import DEFAULT_PLANS, STOCK_TRAINER
from nnunet_nas.environment import find_preprocessed_dataset, folder_from_environment
from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError

SUMMARY = "a trained configuration without torch, checked against nnU-Net"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    parser.add_argument("-d", metavar="DATASET", help="data set: number or name")
    parser.add_argument("-c", metavar="CONFIGURATION", help="trained configuration")
    parser.add_argument("-p", default=DEFAULT_PLANS, metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-tr", default=STOCK_TRAINER, metavar="TRAINER", help="trainer (default: %(default)s)")
    parser.add_argument("-m", type=Path, metavar="FOLDER", help="TRAINER__PLANS__CONFIGURATION, instead of these")
    parser.add_argument("-f", nargs="+", default=(), metavar="FOLD", help="folds, or all (default: all that are there)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint (%(default)s)")
    parser.add_argument("-o", required=True, type=Path, metavar="FOLDER", help="folder to write; new, or empty")
    parser.add_argument("-pp_pkl_file", type=Path, metavar="FILE", help="nnU-Net's postprocessing.pkl to carry along")
    parser.add_argument("-i", type=Path, metavar="FOLDER", help="images to verify with (default: imagesTs or imagesTr)")
    parser.add_argument(
        "-n", type=_positive, default=2, metavar="N", help="cases to verify with (default: %(default)s)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="verify without mirroring (quicker)")
    parser.add_argument("--unverified", action="store_true", help="write it even if nobody could check it")
    parser.add_argument("--json", action="store_true", help="print verification.json")


def run(args: argparse.Namespace) -> int:
    """Exports, verifies, and prints the outcome and the next command."""
    with quiet_output():
        from nnunet_nas.export.folder import ExportSettings, export

        model = _model_folder(args)
        settings = ExportSettings(
            model=model,
            folds=tuple(args.f),
            checkpoint=args.chk,
            output=args.o,
            postprocessing=args.pp_pkl_file,
            images=args.i or _raw_images(model.parent.name),
            cases=args.n,
            mirroring=not args.disable_tta,
            unverified=args.unverified,
        )
        _mention_postprocessing(settings.model, settings.postprocessing)
        verification = export(settings, lambda text: print(text, file=sys.stderr))
    if args.json:
        print(json.dumps(None if verification is None else verification.to_json(), indent=4))
    else:
        print(f"{args.o}: {'NOT VERIFIED' if verification is None else verification.sentence()}")
    print(f"next: python {args.o / 'predict.pyz'} -i INPUT_FOLDER -o OUTPUT_FOLDER", file=sys.stderr)
    return 0


def _model_folder(args: argparse.Namespace) -> Path:
    if args.m is not None:
        if not args.m.is_dir():
            raise DataProblem(f"-m {args.m} is not a folder: give TRAINER__PLANS__CONFIGURATION in nnUNet_results")
        return Path(args.m).resolve()
    if args.d is None or args.c is None:
        raise UsageError("name a model with -d and -c (and -tr, -p), or its folder with -m")
    dataset = find_preprocessed_dataset(args.d).name
    return folder_from_environment("nnUNet_results") / dataset / f"{args.tr}__{args.p}__{args.c}"


def _mention_postprocessing(model: Path, chosen: Path | None) -> None:
    """nnU-Net does not apply what `nnUNetv2_find_best_configuration` found unless told to; neither does an export."""
    for found in sorted(model.glob("crossval_results_folds_*/postprocessing.pkl")) if chosen is None else ():
        print(f"not applied: {found} (-pp_pkl_file carries it along)", file=sys.stderr)


def _raw_images(dataset: str) -> Path | None:
    """Images of the data set that nobody trained on, or else its training images; None where there are none."""
    try:
        raw = folder_from_environment("nnUNet_raw") / dataset
    except EnvironmentProblem:
        return None
    return next((raw / name for name in ("imagesTs", "imagesTr") if (raw / name).is_dir()), None)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)
