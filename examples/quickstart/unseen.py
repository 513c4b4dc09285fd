"""Links the unseen cases to be predicted and their labels into two folders; prints how many and where from.

Unseen are the cases of imagesTs that have a label in labelsTs; without any, the validation cases of fold 0. Of too many
an evenly spaced part is taken, so that no single scanner or subject at the start of the list decides.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

Case = tuple[list[Path], Path]


def held_out_cases(raw: Path, ending: str) -> dict[str, Case]:
    """Cases of imagesTs with a label: name -> (channels, label)."""
    cases = {}
    for label in sorted((raw / "labelsTs").glob(f"*{ending}")):
        name = label.name[: -len(ending)]
        channels = sorted((raw / "imagesTs").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))
        if channels:
            cases[name] = (channels, label)
    return cases


def validation_cases(raw: Path, preprocessed: Path) -> dict[str, Case]:
    """Validation cases of fold 0; the splits are made as nnU-Net makes them if there are none yet."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    training = get_filenames_of_train_images_and_targets(str(raw))
    splits = preprocessed / "splits_final.json"
    folds = json.loads(splits.read_text()) if splits.exists() else generate_crossval_split(sorted(training))
    return {
        name: ([Path(image) for image in training[name]["images"]], Path(training[name]["label"]))
        for name in sorted(folds[0]["val"])
    }


def spaced(names: list[str], limit: int) -> list[str]:
    """At most `limit` names, evenly spaced; 0: all."""
    if limit == 0 or len(names) <= limit:
        return names
    return [names[index * len(names) // limit] for index in range(limit)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path, help="raw data set")
    parser.add_argument("preprocessed", type=Path, help="preprocessed data set")
    parser.add_argument("output", type=Path, help="gets the folders images and labels")
    parser.add_argument("-limit", type=int, default=0, help="cases at most; 0: all")
    args = parser.parse_args()
    ending = json.loads((args.raw / "dataset.json").read_text())["file_ending"]
    source, cases = "imagesTs", held_out_cases(args.raw.resolve(), ending)
    if not cases:
        with contextlib.redirect_stdout(sys.stderr):
            source, cases = (
                "validation cases of fold 0, which select_tiny may have seen unlabelled",
                validation_cases(args.raw.resolve(), args.preprocessed),
            )
    chosen = spaced(sorted(cases), args.limit)
    for folder in ("images", "labels"):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
        for old in (args.output / folder).iterdir():
            old.unlink()
    for name in chosen:
        channels, label = cases[name]
        for channel, image in enumerate(channels):
            (args.output / "images" / f"{name}_{channel:04d}{ending}").symlink_to(image)
        (args.output / "labels" / f"{name}{ending}").symlink_to(label)
    print(f"{len(chosen)} of {len(cases)} unseen cases ({source})")


if __name__ == "__main__":
    main()
