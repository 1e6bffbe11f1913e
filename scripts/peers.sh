#!/usr/bin/env bash
# Proves, both ways, that checkpoints mean the same here and in the field's own code: transformers 4 and 5, open_clip,
# onnxruntime, big_vision's arrays, clip_benchmark. Makes a Python environment with pinned versions under the cache folder
# (about 3 GB, minutes, once), then prints a table. Arguments go to the driver (--run DIR, --write-docs).
set -euo pipefail
cd "$(dirname "$0")/.."
first=(torch==2.15.0 transformers==5.24.0 open_clip_torch==3.3.0 timm==1.0.31 onnxruntime==1.32.0 safetensors sentencepiece protobuf
  pillow==12.3.0 clip-benchmark==1.6.2 scipy numpy==2.2.6)  # clip_benchmark makes scalars of arrays, which later ones refuse
second=(transformers==4.57.6)
python=$(command -v "${PYTHON:-python3}") || { echo "peers: no python3; install it, or set PYTHON" >&2; exit 2; }
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  { echo "peers: $python is not Python 3.10 or later with venv; install python3-venv, or set PYTHON" >&2; exit 2; }
cache=${XDG_CACHE_HOME:-${HOME:-$PWD/node_modules}/.cache}/siglip2
home=$cache/peers-$(printf '%s ' "${first[@]}" "${second[@]}" | sha256sum | cut -c1-12)
if [ ! -e "$home/ready" ]; then
  echo "peers: bringing ${first[*]} and ${second[*]} into $home, once"
  rm -rf "$home"
  mkdir -p "$home"
  "$python" -m venv "$home/venv"
  "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${first[@]}"
  # The other major beside it: torch is shared.
  "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check --target "$home/transformers4" "${second[@]}" 'numpy<3'
  rm -rf "$home"/transformers4/numpy* "$home"/transformers4/torch*
  touch "$home/ready"
fi
bash setup.sh --quiet --here
SIGLIP2_PEERS=$home SIGLIP2_PYTHON=$home/venv/bin/python node dist/test/peers/main.js "$@"
SIGLIP2_PYTHON=$home/venv/bin/python NODE_OPTIONS=--experimental-vm-modules npx jest --testPathIgnorePatterns /node_modules/ --silent dist/test/peers
