#!/bin/sh
# What backends.py measures beside torch: ONNX Runtime and OpenVINO, with what exports and quantises.
#
#     tests/bench/backends_setup.sh FOLDER [PYTHON]
#
# An environment of its own in FOLDER that sees PYTHON's packages (default: python, which runs
# Diptych), so that torch is the same one in every column. Versions are those of
# tests/bench/peers/backends.txt. Needs 1 GB; what is there already is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: backends_setup.sh FOLDER [PYTHON]}
python=${2:-python}
if [ ! -e "$folder/complete" ]; then
    "$python" -m venv --without-pip "$folder"
    inner=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))' \
        > "$inner/shared.pth"
    "$python" -c 'import torch; print(torch.__version__)'
    "$folder/bin/python" -m pip install --no-deps -r "$here/peers/backends.txt"
    touch "$folder/complete"
fi
echo "now: $folder/bin/python $here/backends.py"
