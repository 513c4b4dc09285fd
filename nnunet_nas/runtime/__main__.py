"""`python predict.pyz -i IN -o OUT`: predicts a folder of images with the exported model beside it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from nnunet_nas.errors import DataProblem, EnvironmentProblem, NasError, printable
from nnunet_nas.runtime.predictor import DEFAULT_STEP, Predictor


def run() -> None:
    """The archive's entry point."""
    sys.exit(main())


def main() -> int:
    """Predicts, and says on standard error what is done."""
    args = _parser().parse_args()
    try:
        return _run(args)
    except NasError as error:
        print(printable(f"predict: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: --continue_prediction goes on with what is missing", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    predictor = Predictor(args.m, step=args.step_size, mirroring=not args.disable_tta, threads=args.threads)
    if predictor.recipe.unverified:
        print(printable(f"WARNING: not verified against nnU-Net: {predictor.recipe.unverified}"), file=sys.stderr)
    started = time.perf_counter()
    failed = 0
    cases = predictor.cases(args.i)
    _require_writable(args.o)
    for number, case in enumerate(cases, start=1):
        output = args.o / f"{case.name}{predictor.recipe.file_ending}"
        if args.continue_prediction and output.is_file():
            continue
        try:
            predictor.predict(case.files, output)
        except DataProblem as error:
            # One bad image must not cost the others.
            print(printable(f"predict: {error}"), file=sys.stderr)
            failed += 1
            continue
        print(printable(f"{number}/{len(cases)} {output} ({time.perf_counter() - started:.1f} s)"), file=sys.stderr)
    return DataProblem.exit_code if failed else 0


def _require_writable(folder: Path) -> None:
    """Makes the output folder, or says so before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EnvironmentProblem(f"-o {folder} cannot be written ({error.strerror}): choose another folder") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="predict.pyz", description=__doc__)
    parser.add_argument("-i", required=True, type=Path, metavar="FOLDER", help="images, named CASE_0000.ENDING")
    parser.add_argument("-o", required=True, type=Path, metavar="FOLDER", help="segmentations go there")
    parser.add_argument("-m", type=Path, default=_own_folder(), metavar="FOLDER", help="exported model (default: here)")
    parser.add_argument("-step_size", type=float, default=DEFAULT_STEP, help="of the sliding window (%(default)s)")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument("--continue_prediction", action="store_true", help="leave out cases that are there already")
    parser.add_argument("-threads", type=_positive, metavar="N", help="of ONNX Runtime (default: all cores)")
    return parser


def _own_folder() -> Path:
    """Where predict.pyz lies: the archive's folder; the present one when run from an installed package."""
    archive = Path(sys.argv[0])
    return archive.resolve().parent if archive.suffix == ".pyz" else Path()


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


if __name__ == "__main__":
    run()
