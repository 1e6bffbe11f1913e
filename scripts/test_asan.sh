#!/usr/bin/env bash
# The CPU device under AddressSanitizer: op tables, tensors, files, Workers and exits. The addon is built for it in
# build/asan, and Node gets the sanitizer's library first. Leaks are not looked for: Node itself ends with many.
set -euo pipefail
cd "$(dirname "$0")/.."
npm run --silent build:asan
runtime=$(c++ -print-file-name=libasan.so)
# Node's arrays come from new and go with free.
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=1
export SIGLIP2_BINARY=build/asan/Release/siglip2.node NODE_OPTIONS=--experimental-vm-modules
LD_PRELOAD=$runtime node node_modules/jest/bin/jest.js --maxWorkers=2 dist/test/ops.test.js dist/test/tensor.test.js \
  dist/test/load_file.test.js dist/test/exit.test.js dist/test/workers.test.js dist/test/cores.test.js
