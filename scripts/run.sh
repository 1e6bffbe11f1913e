#!/bin/sh
# Inside the bundle: runs tests and benchmarks on a machine with no Node, no compiler and no network.
#   ./run.sh test        the CPU's tests, then the CUDA kernels on the CPU (cuda-host)
#   ./run.sh test:cuda   on a GPU: every PTX wrapper against the host runtime, the op tables, ops at real sizes and a
#                        training run of 200 steps against the CPU
#   ./run.sh bench:cuda  on a GPU: our kernels and PyTorch's in turns; JSON lines into $OUT, or the working folder
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(pwd)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$here/app"

# The host's own libstdc++ comes first where there is one: its CUDA libraries may need a newer one than ours.
libraries=$here/lib
ldconfig -p 2>/dev/null | grep -q 'libstdc++\.so\.6' || libraries=$libraries:$here/lib/fallback
LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
# cuBLASLt of a Python wheel, if PyTorch brought one.
if [ -z "${SIGLIP2_CUDA_LIB_PATH:-}" ] && command -v python3 >/dev/null; then
  SIGLIP2_CUDA_LIB_PATH=$(python3 -c '
import glob, os, site, sys
folders = set(sys.path) | set(site.getsitepackages())
found = {os.path.dirname(f) for d in folders if d for f in glob.glob(os.path.join(d, "nvidia", "*", "lib", "libcublasLt.so.1*"))}
print(":".join(sorted(found, reverse=True)))' 2>/dev/null || true)
  export SIGLIP2_CUDA_LIB_PATH
fi

run_jest() {
  NODE_OPTIONS=--experimental-vm-modules "$here/bin/node" node_modules/jest/bin/jest.js --cacheDirectory="$scratch/jest" "$@"
}
device_tests="dist/test/ops.test.js dist/test/device.test.js dist/test/record.test.js dist/test/cuda_host_training.test.js"

case "${1:-}" in
  test)
    run_jest dist/test/ops.test.js dist/test/device.test.js dist/test/record.test.js dist/test/tensor.test.js dist/test/tape.test.js \
      dist/test/init.test.js
    SIGLIP2_BINARY=build/cuda-host/Release/siglip2.node SIGLIP2_TEST_DEVICE=cuda run_jest $device_tests
    ;;
  test:cuda)
    "$here/conformance/host" >"$scratch/host"
    "$here/conformance/device" >"$scratch/device"
    "$here/bin/node" "$here/conformance/compare.mjs" "$scratch/host" "$scratch/device"
    SIGLIP2_TEST_DEVICE=cuda SIGLIP2_TRAINING_STEPS=200 run_jest $device_tests dist/test/devices_agree.test.js
    ;;
  bench:cuda)
    "$here/bin/node" dist/bench/main.js cuda --json "$out/cuda.jsonl"
    ;;
  *)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
