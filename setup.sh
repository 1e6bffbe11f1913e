#!/usr/bin/env bash
# Everything a fresh machine needs: system packages, npm packages, the addon, the compiled TypeScript. In an installed
# package, where npm has done the rest, the addon alone.
# Quick when there is nothing to do. `--quiet` prints only what is missing or goes wrong. `--here` builds for this machine:
# CUDA kernels, which take longer than everything else, only where there is a GPU (or they were built before).
set -euo pipefail
cd "$(dirname "$0")"
quiet="" here=""
for option in "$@"; do
  case "$option" in
    --quiet) quiet=1 ;;
    --here) here=1 ;;
    *) echo "setup: unknown option $option; there are --quiet and --here" >&2; exit 2 ;;
  esac
done
note() { [ -n "$quiet" ] || echo "setup: $*"; }
is_checkout() { [ -f package-lock.json ]; }
export PATH="$PWD/node_modules/.bin:$PWD/../.bin:$PATH"

node -e 'const [a,b]=process.versions.node.split(".").map(Number); if (a<20||(a===20&&b<19)) { console.error("setup: Node 20.19 or later is needed, this is "+process.versions.node); process.exit(1) }'

# --- system packages: compiler, CMake, oneDNN
missing=()
command -v g++ >/dev/null || command -v clang++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || command -v ninja >/dev/null || missing+=(make)
echo '#include <dnnl.hpp>' | c++ -x c++ -fsyntax-only - 2>/dev/null || missing+=(libdnnl-dev)
if [ ${#missing[@]} -gt 0 ]; then
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
    echo "setup: installing ${missing[*]}"
    log=$(mktemp)
    if ! { $as_root apt-get update && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
      tail -20 "$log" >&2
      echo "setup: apt-get could not install ${missing[*]}; install them and run this again" >&2
      exit 1
    fi
  else
    echo "setup: missing: ${missing[*]}. Install them, e.g. with \`sudo apt-get install ${missing[*]}\`, and run this again." >&2
    exit 1
  fi
fi

# --- npm packages: exactly the lock file's, no lifecycle scripts
stamp=node_modules/.siglip2-lock
if is_checkout && ! cmp -s package-lock.json "$stamp" 2>/dev/null; then
  note "npm packages"
  # `install`, not `ci`: the lock file names no registry, and npm 11's `ci` then misses other platforms' optional packages.
  npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json "$stamp"
fi

# --- the addon: CMake sees what changed; a new or vanished nvcc needs a fresh configuration
nvcc=$(command -v nvcc || true)
if [ -f build/CMakeCache.txt ] && [ "$(cat build/.nvcc 2>/dev/null)" != "$nvcc" ]; then rm -rf build; fi
mkdir -p build
echo "$nvcc" > build/.nvcc
has_gpu() { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }
cuda=AUTO kind="with CUDA"
if [ -z "$nvcc" ]; then kind="CPU only: no nvcc on PATH"
elif [ -n "$here" ] && ! has_gpu && ! grep -qs '^SIGLIP2_CUDA:[A-Z]*=AUTO$' build/CMakeCache.txt; then
  cuda=OFF kind="CPU only: no GPU here; \`npm run setup\` adds the CUDA kernels"
fi
note "native addon ($kind)"
log=$(mktemp)
# cmake-js configures only what was never configured.
if [ -f build/CMakeCache.txt ] && ! grep -q "^SIGLIP2_CUDA:[A-Z]*=$cuda\$" build/CMakeCache.txt; then
  cmake -DSIGLIP2_CUDA=$cuda build >"$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }
fi
if ! cmake-js compile --CDSIGLIP2_CUDA=$cuda >"$log" 2>&1; then
  grep -vE "^(info|npm warn)" "$log" | tail -40 >&2
  echo "setup: the addon did not build; the lines above say why" >&2
  exit 1
fi

# --- TypeScript
if is_checkout; then
  note "TypeScript"
  tsc
fi
note "ready"
