#!/bin/sh
# What serve_peers.py compares with: infinity and clip-retrieval in environments of their own, and
# one ViT-B/32 of random weights in the layouts that the three servers read.
#
#     tests/bench/peers_setup.sh FOLDER [PYTHON]
#
# Versions are those of tests/bench/peers/*.txt. Packages come from wherever pip or uv is set up to
# take them; the model is made here and nothing is downloaded for it. PYTHON runs Diptych
# (default: python). Needs 6 GB; what is there already is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: peers_setup.sh FOLDER [PYTHON]}
python=${2:-python}
mkdir -p "$folder"
for peer in infinity clip-retrieval; do
    environment=$folder/$peer
    if [ -e "$environment/complete" ]; then
        continue
    elif command -v uv >/dev/null; then
        uv venv --allow-existing --python 3.11 "$environment"
        uv pip install --no-deps --python "$environment/bin/python" -r "$here/peers/$peer.txt"
    else
        python3.11 -m venv "$environment"
        "$environment/bin/pip" install --no-deps -r "$here/peers/$peer.txt"
    fi
    touch "$environment/complete"
done
if [ ! -e "$folder/model/complete" ]; then
    "$python" "$here/peers_model.py" "$folder/model"
    touch "$folder/model/complete"
fi
echo "now: $python $here/serve_peers.py --peers $folder"
