#!/usr/bin/env bash
# Searched skip cells for a data set that nnU-Net has planned and preprocessed: the commands that a user types, in order.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: examples/iac.sh DATASET CONFIGURATION FOLD [DEVICE] [BACKBONE_TRAINER]

Backbone, IAC-LTH search, retrofit of the found cells (the residual start and the paper's),
prediction of imagesTs with all three, and a paired comparison where labelsTs has the labels.
nnU-Net's three environment variables must be set, the data set preprocessed. Steps that are
finished are left out. With the default settings the search alone takes up to 1.5 (2-D) or 4 days
(3-D) on two CPU cores, by timings of small configurations (examples/iac.md); on a GPU it was not
measured. nnunet_nas set_search shows and changes the settings.
USAGE
}

[ $# -ge 3 ] || { usage >&2; exit 2; }
dataset=$1 configuration=$2 fold=$3 device=${4:-cuda} backbone=${5:-nnUNetTrainer}
# Trainers of one's own stay visible.
nnUNet_extTrainer=$(nnunet_nas ext_path)${nnUNet_extTrainer:+:$nnUNet_extTrainer}
export nnUNet_extTrainer
name=$(basename "$(ls -d "$nnUNet_preprocessed/Dataset$(printf %03d "$dataset")"_*)")
results=$nnUNet_results/$name
out=$nnUNet_results/../iac_example/$name/$configuration
mkdir -p "$out"

# train CONFIGURATION TRAINER: starts, goes on, or does nothing if the final checkpoint is there.
train() {
    local folder=$results/$2__nnUNetPlans__$1/fold_$fold resume=
    if [ -f "$folder/checkpoint_final.pth" ]; then return; fi
    if [ -f "$folder/checkpoint_latest.pth" ]; then resume=--c; fi
    nnUNetv2_train "$dataset" "$1" "$fold" -tr "$2" -device "$device" $resume
}

# predict CONFIGURATION TRAINER: predicts and scores the held-out images.
predict() {
    [ ! -f "$out/$1/summary.json" ] || return 0
    nnUNetv2_predict -i "$nnUNet_raw/$name/imagesTs" -o "$out/$1" -d "$dataset" -c "$1" -f "$fold" -tr "$2" \
        -device "$device"
    nnUNetv2_evaluate_folder "$nnUNet_raw/$name/labelsTs" "$out/$1" -djfile "$out/$1/dataset.json" \
        -pfile "$out/$1/plans.json" -np 2
}

train "$configuration" "$backbone"
train "$configuration" nnUNetTrainerIACLTHSearch
tag=; [ "$fold" = 0 ] || tag=_f$fold
found=${configuration}_iaclth$tag
for cells in "${found}_residual" "$found"; do
    train "$cells" nnUNetTrainerIACRetrofit
done

predict "$configuration" "$backbone"
for cells in "${found}_residual" "$found"; do
    predict "$cells" nnUNetTrainerIACRetrofit
done
nnunet_nas compare -m "$out/$configuration" "$out/$found" "$out/${found}_residual" -o "$out/comparison"
