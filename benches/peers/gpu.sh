#!/usr/bin/env bash
# Compares `mdm` on a GPU with PyTorch CUDA: builds mdm, times both in one run, prints one table.
#
# usage: bash benches/peers/gpu.sh [--install] [options of gpu.py, see --help]
#
# PyTorch is taken from $PYTHON (python3 otherwise). With --install it is installed into target/peers first; nothing is
# installed otherwise. With --mdm FILE that command is measured and nothing is built.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "error: $python is not there; name a Python with PyTorch in PYTHON" >&2
    exit 1
fi
install=no build=yes arguments=()
for argument in "$@"; do
    case $argument in
        --install) install=yes ;;
        --mdm | --mdm=*) build=no arguments+=("$argument") ;;
        -h | --help) build=no arguments+=("$argument") ;;
        *) arguments+=("$argument") ;;
    esac
done
if [ "$install" = yes ]; then
    "$python" -m venv target/peers
    python=target/peers/bin/python
    "$python" -m pip install -q numpy "$(grep '^torch' benches/peers/requirements.txt)"
fi
if [ "$build" = yes ]; then
    cargo build --release --locked -p mdm-cli
fi
exec "$python" benches/peers/gpu.py "${arguments[@]+"${arguments[@]}"}"
