#!/bin/sh
# What serve_peers.py and embed_peers.py compare with: infinity, clip-retrieval and rclip in
# environments of their own, and one ViT-B/32 of random weights in the layouts that they read.
#
#     tests/bench/peers_setup.sh FOLDER [PYTHON]
#
# Versions are those of tests/bench/peers/*.txt. Packages come from wherever pip or uv is set up to
# take them; the model is made here and nothing is downloaded for it. PYTHON runs Diptych
# (default: python). Needs 6 GB; what is there already is kept. PEERS="clip-retrieval rclip" makes
# only those; SHARE_TORCH=1 lets them use PYTHON's torch, which saves 2.5 GB and minutes each.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: peers_setup.sh FOLDER [PYTHON]}
python=${2:-python}
mkdir -p "$folder"
for peer in ${PEERS:-infinity clip-retrieval rclip}; do
    environment=$folder/$peer
    wanted=$here/peers/$peer.txt
    if [ -e "$environment/complete" ]; then
        continue
    elif [ -n "${SHARE_TORCH:-}" ] && grep -q '^torch==' "$wanted"; then
        version=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))')
        grep -q "^torch==${version%%+*}$" "$wanted" || { echo "$python has torch $version"; exit 1; }
        "$python" -m venv --clear --without-pip "$environment"
        inner=$("$environment/bin/python" -c 'import sysconfig as s; print(s.get_path("purelib"))')
        # behind its own packages on the path, so that only what it lacks comes from there
        "$python" -c 'import pip, pathlib; print(pathlib.Path(pip.__file__).parents[1])' \
            > "$inner/shared.pth"
        grep -Ev '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' "$wanted" \
            > "$environment/wanted.txt"
        "$environment/bin/python" -m pip install --no-deps --ignore-installed \
            -r "$environment/wanted.txt"
    elif command -v uv >/dev/null; then
        uv venv --allow-existing --python 3.11 "$environment"
        uv pip install --no-deps --python "$environment/bin/python" -r "$wanted"
    else
        python3.11 -m venv "$environment"
        "$environment/bin/pip" install --no-deps -r "$wanted"
    fi
    touch "$environment/complete"
done
if [ ! -e "$folder/model/complete" ]; then
    "$python" "$here/peers_model.py" "$folder/model"
    touch "$folder/model/complete"
fi
if [ -e "$folder/rclip/complete" ] && [ ! -e "$folder/embed-model/complete" ]; then
    sh "$here/backends_setup.sh" "$folder/backends" "$python"
    "$folder/backends/bin/python" "$here/embed_peers_model.py" "$folder/embed-model"
    touch "$folder/embed-model/complete"
fi
echo "now: $python $here/serve_peers.py --peers $folder"
echo " or: $python $here/embed_peers.py --peers $folder"
