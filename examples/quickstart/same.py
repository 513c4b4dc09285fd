"""Prints in how many pixels two folders of segmentations agree, and how large an export is."""

import argparse
from pathlib import Path

from nnunet_nas.runtime.images import reader
from nnunet_nas.runtime.recipe import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("first", type=Path, help="of nnUNetv2_predict")
    parser.add_argument("second", type=Path, help="of predict.pyz")
    args = parser.parse_args()
    recipe = read_recipe(args.export)
    source = reader(recipe.reader)
    files = sorted(args.second.glob(f"*{recipe.file_ending}"))
    same = pixels = 0
    for file in files:
        ours, theirs = (source.read([folder / file.name]).array for folder in (args.second, args.first))
        same += int((ours == theirs).sum())
        pixels += ours.size
    size = sum(path.stat().st_size for path in args.export.iterdir()) / 1024
    print(
        f"Without torch, {recipe.model['configuration']} as {args.export} ({size:.0f} KiB): "
        f"{same:,} of {pixels:,} pixels of {len(files)} images as nnUNetv2_predict has them."
    )


if __name__ == "__main__":
    main()
