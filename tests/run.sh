#!/usr/bin/env bash
# Installs the package with its test tools into a virtual environment and runs linters, type checker and all tests.
#   bash tests/run.sh                        everything (under 12 minutes on two cores)
#   bash tests/run.sh -m "not integration"   without the tests that run nnU-Net's own commands (under 90 seconds)
# Further arguments go to pytest. VENV names the environment (default .venv; one that exists is used as it is).
# NNUNET_NAS_TEST_DATA names a folder of raw data sets for the tests that need real data; without it they skip.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --editable '.[test]'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
# Two workers: CI has two cores.
"$venv/bin/python" -m pytest -n 2 --dist worksteal "$@"
