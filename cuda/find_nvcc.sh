#!/bin/sh
# Prints the path of the nvcc to build with, or nothing and status 1: CUDACXX, PATH, CUDA_HOME, /usr/local/cuda, the active
# conda environment, the wheels of the active Python environment, then the one that `npm run setup -- --cuda` brought.
# `--home` prints where that one belongs.
version=13.0.88
cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
[ -n "$cache" ] || cache=$(cd "$(dirname "$0")/.." && pwd)/node_modules/.cache
home=$cache/siglip2/nvcc-$version
if [ "${1:-}" = --home ]; then
  echo "$home"
  exit
fi
# CUDACXX and CMake's own rule: a name is looked up on PATH.
for nvcc in "$(command -v "${CUDACXX:-nvcc}")" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" /usr/local/cuda/bin/nvcc \
  "${CONDA_PREFIX:+$CONDA_PREFIX/bin/nvcc}" \
  "${VIRTUAL_ENV:-/nonexistent}"/lib/python3*/site-packages/nvidia/cu1[3-9]/bin/nvcc \
  "$home"/lib/python3*/site-packages/nvidia/cu1[3-9]/bin/nvcc; do
  if [ -n "$nvcc" ] && [ -x "$nvcc" ]; then
    echo "$nvcc"
    exit
  fi
done
exit 1
