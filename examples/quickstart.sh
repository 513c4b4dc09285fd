#!/usr/bin/env bash
# The main job from nothing to a table, within 15 minutes on two CPU cores. For `-h`, see usage below.
# Written for bash 3.2, which macOS still ships.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: examples/quickstart.sh [--workdir DIR] [--splits FILE] [RAW_DATASET]

Installs nnunet_nas into a virtual environment of its own and goes the whole way:
data set, nnUNetv2_plan_and_preprocess, nnunet_nas select_tiny, nnUNetv2_train of the base
and of the selected width, nnUNetv2_predict on unseen cases, a table of Dice, parameters
and seconds, nnunet_nas export and the same predictions without torch. Uses the GPU if torch finds one, else the CPU.

  RAW_DATASET      folder in nnU-Net's raw format, DatasetXXX_Name; only read.
                   Default: a synthetic data set that is drawn for the occasion.
  --workdir DIR    where everything goes (default: quickstart_run in the checkout)
  --splits FILE    splits of your own, used as splits_final.json; fold 0 is trained
  -h, --help       this text

Both trainings get the same time and end when it is over; what is left of 15 minutes when they
begin decides how much it is, so that a busy machine does less and does not take longer.
A second run goes on after the last finished step. QUICKSTART_VENV=DIR uses a virtual
environment that has nnU-Net instead of creating one; nothing is installed into it.
The trainings are far too short for a result: they show how the commands work together.
USAGE
}

fail() {
    echo "quickstart: $1" >&2
    exit "${2:-1}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
helpers=$root/examples/quickstart
work=$root/quickstart_run
raw= splits=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --workdir) [ $# -ge 2 ] || fail "--workdir needs a folder" 2; work=$2; shift ;;
        --splits) [ $# -ge 2 ] || fail "--splits needs a file" 2; splits=$2; shift ;;
        -*) fail "unknown option $1; -h shows the options" 2 ;;
        *) [ -z "$raw" ] || fail "one data set at a time, not $raw and $1" 2; raw=$1 ;;
    esac
    shift
done
if [ -n "$raw" ]; then
    [ -f "$raw/dataset.json" ] || fail "$raw has no dataset.json: give a data set in nnU-Net's raw format" 4
    raw=$(cd "$raw" && pwd)
fi
dataset=$(basename "${raw:-Dataset999_Phantom}")
case $dataset in
    Dataset[0-9][0-9][0-9]_?*) ;;
    *) fail "$dataset is not named DatasetXXX_Name, as nnU-Net wants its data sets" 4 ;;
esac
number=$((10#$(echo "$dataset" | cut -c 8-10)))
[ -z "$splits" ] || [ -f "$splits" ] || fail "--splits $splits is not a file" 4

mkdir -p "$work"
work=$(cd "$work" && pwd)
here=$work/$dataset
mkdir -p "$work/nnUNet_raw" "$work/nnUNet_preprocessed" "$work/nnUNet_results"
mkdir -p "$here/steps" "$here/logs" "$work/steps" "$work/logs"
export nnUNet_raw=$work/nnUNet_raw nnUNet_preprocessed=$work/nnUNet_preprocessed nnUNet_results=$work/nnUNet_results
export nnUNet_extTrainer=$helpers/trainer
preprocessed=$nnUNet_preprocessed/$dataset

# Commands of a step run where bash ignores `set -e`: their functions chain with &&.
# step NAME "what it does" COMMAND...: runs the command with its output in a log, once; a finished step is skipped and
# its seconds are kept in steps/NAME. $state says whose steps: the data set's, or everybody's (installation).
state=$here
step() {
    local name=$1 what=$2 log=$state/logs/$1.log start=$SECONDS status=0
    shift 2
    if [ -f "$state/steps/$name" ]; then
        printf '[%4d s] %s: done before\n' "$SECONDS" "$what"
        return
    fi
    printf '[%4d s] %s ... ' "$SECONDS" "$what"
    echo "$ $*" >"$log"
    "$@" >>"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        printf 'failed\n'
        tail -n 20 "$log" >&2
        fail "$what failed; all of its output is in $log" "$status"
    fi
    printf '%d s\n' $((SECONDS - start))
    echo $((SECONDS - start)) >"$state/steps/$name"
}

# to FILE COMMAND...: standard output into FILE, which is there only once the command has succeeded.
to() {
    local file=$1
    shift
    "$@" >"$file.part" && mv "$file.part" "$file"
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.10 or newer is needed: install it so that python3 starts it" 3
}

imports="import nnunetv2.run.run_training, nnunetv2.inference.predict_from_raw_data, timm"

nas() { "$python" -m nnunet_nas.cli.main "$@"; }

# Imports all that nnU-Net's commands import, so that a start that is timed later finds nothing cold.
find_device() {
    "$python" -W ignore -c "import torch; $imports; print('cuda' if torch.cuda.is_available() else 'cpu')" | tail -n 1
}

link_dataset() {
    local other
    for other in "$nnUNet_raw/Dataset$(printf %03d "$number")"_*; do
        if [ "$other" = "$nnUNet_raw/$dataset" ] && [ "$(readlink "$other")" = "$raw" ]; then return; fi
        if [ -e "$other" ]; then
            fail "$other is there already and has the same number: choose another --workdir" 4
        fi
    done
    ln -s "$raw" "$nnUNet_raw/$dataset"
}

draw_dataset() {
    # The folder appears only when it is complete.
    [ -d "$nnUNet_raw/$dataset" ] || nas phantom -d "$number"
}

choose_images() {
    "$python" -c 'import json, sys; print(min(int(sys.argv[2]), json.load(open(sys.argv[1]))["numTraining"]))' \
        "$nnUNet_raw/$dataset/dataset.json" "$1"
}

select_width() {
    to "$here/selection.json" nas select_tiny -rule paper -d "$number" -c 2d -n "$(choose_images "$1")" -device "$device" --json
}

selected_configuration() {
    "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["selected"]["configuration"])' \
        "$here/selection.json"
}

# Seconds to the end: 15 minutes, less some for what is not foreseen.
left() { echo $((870 - SECONDS)); }

# Starts nnU-Net as its commands do: what this takes now is what each of them will take.
start_nnunet() { "$python" -c "$imports"; }

seconds_of() { cat "$here/steps/$1"; }

divide_time() {
    to "$here/training_seconds.txt" "$python" "$helpers/budget.py" training \
        -left "$(left)" -start "$(seconds_of start)"
}

report_of() { echo "$nnUNet_results/$dataset/nnUNetTrainerQuickstart__nnUNetPlans__$1/fold_0/quickstart.json"; }

count_cases() {
    to "$here/cases.txt" "$python" "$helpers/budget.py" cases -left "$(left)" -start "$(seconds_of start)" \
        -limit "$unseen_limit" -reports "$(report_of 2d)" "$(report_of "$selected")"
}

link_unseen() {
    to "$here/unseen.txt" "$python" "$helpers/unseen.py" \
        "$nnUNet_raw/$dataset" "$preprocessed" "$here/unseen" -limit "$(cat "$here/cases.txt")"
}

evaluate() {
    nnUNetv2_evaluate_folder "$here/unseen/labels" "$here/predictions/$1" \
        -djfile "$here/predictions/$1/dataset.json" -pfile "$here/predictions/$1/plans.json" -np 1
}

export_selected() {
    rm -rf "$here/export" && nas export -d "$number" -c "$selected" -f 0 -tr nnUNetTrainerQuickstart \
        -i "$here/unseen/images" -n 1 --disable_tta -o "$here/export"
}

# A folder in which torch and nnU-Net cannot be imported goes first in the path.
predict_without_torch() {
    local package
    for package in torch nnunetv2; do
        mkdir -p "$here/blocked/$package" && echo 'raise ImportError("blocked")' >"$here/blocked/$package/__init__.py"
    done
    PYTHONPATH=$here/blocked "$python" "$here/export/predict.pyz" --disable_tta \
        -i "$here/unseen/images" -o "$here/predictions/export"
}

if [ -n "${QUICKSTART_VENV:-}" ]; then
    venv=$QUICKSTART_VENV
    [ -x "$venv/bin/python" ] || fail "QUICKSTART_VENV=$venv is not a virtual environment" 3
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
else
    venv=$work/venv
fi
python=$venv/bin/python
export PATH=$venv/bin:$PATH
if [ -z "${QUICKSTART_VENV:-}" ]; then
    system_python=$(find_python)
    state=$work
    step venv "create a virtual environment in $venv" "$system_python" -m venv --clear "$venv"
    step install "install nnunet_nas, nnU-Net and torch (a few GB, minutes)" \
        "$python" -m pip install --disable-pip-version-check -e "$root[export]"
    state=$here
fi

if [ -n "$raw" ]; then
    link_dataset
else
    step data "draw a synthetic data set" draw_dataset
fi
device=$(find_device)
if [ "$device" = cpu ]; then
    # One process and few cases: starting a worker costs as long as what it would save.
    workers=2 images=8 unseen_limit=20
    export nnUNet_n_proc_DA=${nnUNet_n_proc_DA:-0}
    # nnU-Net uses a thread per core; where other programs use the cores too, threads that wait by spinning make a
    # narrow network ten times slower.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
else
    workers=4 images=64 unseen_limit=0
    export nnUNet_n_proc_DA=${nnUNet_n_proc_DA:-4}
fi
# Compiling a network takes longer than these trainings.
export nnUNet_compile=f
echo "         device: $device"

# The planner takes its number of threads from the same variable and refuses 0.
step preprocess "nnUNetv2_plan_and_preprocess -c 2d" \
    env nnUNet_n_proc_DA="$workers" nnUNetv2_plan_and_preprocess -d "$number" -c 2d -np "$workers" -npfp "$workers" --verify_dataset_integrity
if [ -n "$splits" ] && ! cmp -s "$splits" "$preprocessed/splits_final.json"; then
    [ ! -f "$preprocessed/splits_final.json" ] || fail "$here was begun with other splits: choose another --workdir" 4
    cp "$splits" "$preprocessed/splits_final.json"
fi
step select "nnunet_nas select_tiny -rule paper with up to $images images" select_width "$images"
selected=$(selected_configuration)
echo "         selected: $selected"

step start "time a start of nnU-Net" start_nnunet
step time "divide the time that is left" divide_time
QUICKSTART_SECONDS=$(cat "$here/training_seconds.txt")
export QUICKSTART_SECONDS
echo "         each training ends after $QUICKSTART_SECONDS s"
for configuration in 2d "$selected"; do
    step "train_$configuration" "nnUNetv2_train $number $configuration 0" \
        nnUNetv2_train "$number" "$configuration" 0 -tr nnUNetTrainerQuickstart -device "$device"
done

step cases "count the cases that can be predicted in time" count_cases
step unseen "find the unseen cases" link_unseen
echo "         predicting $(cat "$here/unseen.txt")"
for configuration in 2d "$selected"; do
    step "predict_$configuration" "nnUNetv2_predict with $configuration" \
        nnUNetv2_predict -i "$here/unseen/images" -o "$here/predictions/$configuration" -d "$number" \
        -c "$configuration" -f 0 -tr nnUNetTrainerQuickstart -device "$device" -npp 0 -nps 0 --disable_tta
    step "evaluate_$configuration" "nnUNetv2_evaluate_folder of $configuration" evaluate "$configuration"
done
if "$python" -c 'import onnx, onnxscript, onnxruntime' 2>/dev/null; then
    step export "nnunet_nas export of $selected, compared with nnU-Net" export_selected
    step predict_export "predict.pyz without torch" predict_without_torch
    step same "compare with nnUNetv2_predict" to "$here/same.txt" "$python" "$helpers/same.py" \
        "$here/export" "$here/predictions/$selected" "$here/predictions/export"
else
    echo "nnunet_nas export is left out: $venv has not the packages of nnunet-nas[export]" >"$here/same.txt"
fi
step info "nnunet_nas info" to "$here/info.json" nas info -d "$number" -c 2d "$selected" --json

echo
to "$here/table.txt" "$python" "$helpers/table.py" "$here" "$nnUNet_results/$dataset" 2d "$selected"
cat "$here/table.txt"
echo
cat "$here/same.txt"
cat <<NOTE

This was a demonstration: so few iterations say that the commands work, not which width is better. nnU-Net's final
validation was left out. For a result, train with nnU-Net's own trainer (1000 epochs):
  export nnUNet_raw=$nnUNet_raw nnUNet_preprocessed=$nnUNet_preprocessed nnUNet_results=$nnUNet_results
  nnUNetv2_train $number $selected 0
Total: $SECONDS s. Everything is in $work.
NOTE
if [ "$SECONDS" -gt 900 ]; then
    echo "That is longer than 15 minutes, although the trainings were cut short: the steps above say where the time went."
fi
