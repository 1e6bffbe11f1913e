#!/usr/bin/env bash
# Asks PyTorch, NumPy, SciPy and Pillow again for what the tests compare with (test/oracle.ts).
#   scripts/goldens.sh PYTHON [jest's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "goldens: which Python? It needs torch, numpy, scipy and Pillow" >&2; exit 2; }
python=$1
shift
"$python" -c 'import numpy, PIL, scipy, torch' || { echo "goldens: $python lacks one of torch, numpy, scipy, Pillow" >&2; exit 2; }
npm run --silent build:ts
if [ $# = 0 ]; then
  mapfile -t tests < <(grep -rlE 'oracle.js|makeCheckpoints' dist/test --include='*.test.js')
  set -- "${tests[@]}"
fi
SIGLIP2_RECORD=$python NODE_OPTIONS=--experimental-vm-modules npx jest "$@"
