#!/bin/sh
# The libraries that search.py compares with, pinned, each set in an environment of its own:
#   sh tests/bench/search_peers.sh ENVS
# leaves ENVS/peers (hnswlib, usearch) and ENVS/autofaiss (which wants numpy 1); needs `uv`.
set -eu
envs=${1:?where to put the environments}
uv venv "$envs/peers"
uv pip install --python "$envs/peers/bin/python" hnswlib==0.8.0 usearch==2.26.6 numpy==2.4.6
uv venv "$envs/autofaiss"
uv pip install --python "$envs/autofaiss/bin/python" \
    autofaiss==2.18.0 faiss-cpu==1.15.1 numpy==1.26.4 'pyarrow<21' setuptools
