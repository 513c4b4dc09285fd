#!/usr/bin/env bash
# A searched topology for a data set that nnU-Net has planned and preprocessed: the commands that a user types, in order.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: examples/dints.sh DATASET CONFIGURATION FOLD [DEVICE] [TRAINER]

DiNTS search, training of the found network, of the configuration itself and of the control, nnU-Net's
own network made as wide as the found one's training memory allows, with the same trainer, prediction of
imagesTs with all of them, and paired comparisons where labelsTs has the labels.
nnU-Net's three environment variables must be set, the data set preprocessed. Steps that are
finished are left out. With the default settings this takes 16 to 75 days on two CPU cores, by
timings of single steps (examples/dints.md), and the control's training comes on top; on a GPU it was
not measured. The search's log begins
with an estimate for the machine that it runs on. nnunet_nas set_search -m dints shows and changes
the settings.
USAGE
}

[ $# -ge 3 ] || { usage >&2; exit 2; }
dataset=$1 configuration=$2 fold=$3 device=${4:-cuda} trainer=${5:-nnUNetTrainer}
# Trainers of one's own stay visible; only the search needs ours.
searching=$(nnunet_nas ext_path)${nnUNet_extTrainer:+:$nnUNet_extTrainer}
name=$(basename "$(ls -d "$nnUNet_preprocessed/Dataset$(printf %03d "$dataset")"_*)")
results=$nnUNet_results/$name
out=$nnUNet_results/../dints_example/$name/$configuration
mkdir -p "$out"

# train CONFIGURATION TRAINER: starts, goes on, or does nothing if the final checkpoint is there.
train() {
    local folder=$results/$2__nnUNetPlans__$1/fold_$fold resume=
    if [ -f "$folder/checkpoint_final.pth" ]; then return; fi
    if [ -f "$folder/checkpoint_latest.pth" ]; then resume=--c; fi
    nnUNetv2_train "$dataset" "$1" "$fold" -tr "$2" -device "$device" $resume
}

# predict CONFIGURATION: predicts and scores the held-out images.
predict() {
    [ ! -f "$out/$1/summary.json" ] || return 0
    nnUNetv2_predict -i "$nnUNet_raw/$name/imagesTs" -o "$out/$1" -d "$dataset" -c "$1" -f "$fold" -tr "$trainer" \
        -device "$device"
    nnUNetv2_evaluate_folder "$nnUNet_raw/$name/labelsTs" "$out/$1" -djfile "$out/$1/dataset.json" \
        -pfile "$out/$1/plans.json" -np 2
}

nnUNet_extTrainer=$searching train "$configuration" nnUNetTrainerDiNTSSearch
tag=; [ "$fold" = 0 ] || tag=_f$fold
found=${configuration}_dints$tag
# What it has to beat; the configuration itself where that needs as much memory.
control=$(nnunet_nas add_width -d "$dataset" -c "$configuration" -as "$found" --json |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["configuration"])')
networks=("$configuration" "$found")
[ "$control" = "$configuration" ] || networks+=("$control")
for network in "${networks[@]}"; do
    train "$network" "$trainer"
    predict "$network"
done
nnunet_nas info -d "$dataset" -c "${networks[@]}"
nnunet_nas compare -m "$out/$control" "$out/$found"
[ "$control" = "$configuration" ] || nnunet_nas compare -m "$out/$configuration" "$out/$found" "$out/$control"
