#!/usr/bin/env bash
# Packs Node, the addon (CUDA and cuda-host), its libraries, compiled tests and benches into one archive that runs on a
# GPU machine without Node and without a network: build/bundle/siglip2-bundle.tar.xz, to be unpacked anywhere; then
# ./siglip2/run.sh test | test:cuda | bench:cuda. Needs nvcc; nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
most=$((64 << 20))  # bytes

nvcc=$(sh cuda/find_nvcc.sh) || { echo "bundle: there is no nvcc, so the CUDA kernels cannot be built; \`npm run setup -- --cuda\` brings one" >&2; exit 1; }
npm run --silent build
npm run --silent build:cuda-host
mkdir -p build/conformance
# shellcheck disable=SC2054  # the commas are nvcc's
cuda_flags=(-std=c++20 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a)
newer() { [ ! -e "$1" ] || [ -n "$(find cuda test/native -newer "$1" -name '*.c*' -print -quit)" ]; }
if newer build/conformance/device; then
  "$nvcc" "${cuda_flags[@]}" -cudart static -L "$(dirname "$(realpath "$nvcc")")/../lib" test/native/conformance.cu -o build/conformance/device
fi
if newer build/conformance/host; then
  c++ -std=c++20 -O1 -x c++ -DSIGLIP2_CUDA_HOST -fno-strict-aliasing -w -Wno-psabi test/native/conformance.cu cuda/host/*.cpp \
    -static-libstdc++ -static-libgcc -o build/conformance/host
fi

root=build/bundle/siglip2
rm -rf "$root"
mkdir -p "$root"/{bin,lib/fallback,conformance,app/build/Release,app/build/cuda-host/Release}
cp scripts/run.sh "$root/run.sh"
cp "$(node -p process.execPath)" "$root/bin/node"
strip "$root/bin/node"
cp build/conformance/{host,device} scripts/compare_conformance.mjs "$root/conformance"
mv "$root/conformance/compare_conformance.mjs" "$root/conformance/compare.mjs"
cp build/Release/siglip2.node "$root/app/build/Release"
cp build/cuda-host/Release/siglip2.node "$root/app/build/cuda-host/Release"
strip "$root"/app/build/{,cuda-host/}Release/siglip2.node "$root"/conformance/{host,device}
cp package.json jest.config.js "$root/app"
cp -r dist "$root/app/dist"
find "$root/app/dist" \( -name '*.d.ts' -o -name '*.map' -o -name '*.tsbuildinfo' \) -delete
mkdir -p "$root/app/bench/peers"
cp -r bench/peers/pytorch "$root/app/bench/peers/pytorch"
find "$root/app/bench" \( -name '*.ts' -o -name __pycache__ \) -prune -exec rm -r {} +
node scripts/bundle_modules.mjs "$root/app" jest @jest/globals bindings tinybench zod

# What the addon and Node need beside the C library; libstdc++ and libgcc only where the machine has none.
ldd build/Release/siglip2.node build/cuda-host/Release/siglip2.node "$root/bin/node" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  while read -r library; do
    case "$(basename "$library")" in
      libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | ld-linux*) ;;
      libstdc++* | libgcc_s*) cp -L "$library" "$root/lib/fallback" ;;
      *) cp -L "$library" "$root/lib" ;;
    esac
  done

archive=build/bundle/siglip2-bundle.tar.xz
tar -C build/bundle --owner=0 --group=0 --sort=name -cf - siglip2 | xz -6 -T2 >"$archive.part"
mv "$archive.part" "$archive"
size=$(stat -c %s "$archive")
echo "bundle: $archive, $(awk "BEGIN { printf \"%.1f\", $size / 1048576 }") MiB"
[ "$size" -le "$most" ] || { echo "bundle: that is more than 64 MiB" >&2; exit 1; }
