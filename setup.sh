#!/usr/bin/env bash
# Everything a fresh machine needs: system packages, npm packages, the addon, the compiled TypeScript. In an installed
# package, where npm has done the rest, the addon alone.
# Quick when there is nothing to do. `--quiet` prints only what is missing or goes wrong. `--here` builds for this machine:
# CUDA kernels, which take longer than everything else, only where there is a GPU (or they were built before). `--cuda`
# builds them in any case, and brings a compiler for them where there is none (status 3 where that cannot be had).
set -euo pipefail
cd "$(dirname "$0")"
quiet="" here="" want_cuda=""
for option in "$@"; do
  case "$option" in
    --quiet) quiet=1 ;;
    --here) here=1 ;;
    --cuda) want_cuda=1 ;;
    *) echo "setup: unknown option $option; there are --quiet, --here and --cuda" >&2; exit 2 ;;
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
# By apt-get, where this user may; says what went wrong and returns 1 otherwise.
install() {
  local as_root="" log
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  if ! command -v apt-get >/dev/null || ! $as_root true 2>/dev/null; then
    echo "setup: missing: $*. Install them, e.g. with \`sudo apt-get install $*\`, and run this again." >&2
    return 1
  fi
  echo "setup: installing $*"
  log=$(mktemp)
  if ! { $as_root apt-get update && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "setup: apt-get could not install $*; install them and run this again" >&2
    return 1
  fi
}
if [ ${#missing[@]} -gt 0 ]; then install "${missing[@]}" || exit 1; fi

# --- npm packages: exactly the lock file's, no lifecycle scripts
stamp=node_modules/.siglip2-lock
if is_checkout && ! cmp -s package-lock.json "$stamp" 2>/dev/null; then
  note "npm packages"
  # `install`, not `ci`: the lock file names no registry, and npm 11's `ci` then misses other platforms' optional packages.
  npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json "$stamp"
fi

# --- nvcc, where it is asked for and there is none: NVIDIA's wheels, in an environment of their own under the cache folder
find_nvcc() { sh cuda/find_nvcc.sh || true; }
no_nvcc() {
  echo "setup: no nvcc: $1" >&2
  exit 3
}
bring_nvcc() {
  local home part log
  home=$(sh cuda/find_nvcc.sh --home)
  part=$home.part.$$
  log=$(mktemp)
  python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv ||
    no_nvcc "without python3 and its venv none can be brought; an nvcc of CUDA 13 on PATH or in CUDACXX serves as well"
  echo "setup: bringing nvcc 13.0 (five wheels, about 270 MB, once) into $home"
  # shellcheck disable=SC2064  # the name as it is now
  trap "rm -rf '$part'" EXIT
  if ! mkdir -p "$(dirname "$home")" 2>"$log" || ! python3 -m venv "$part" >"$log" 2>&1; then
    tail -3 "$log" >&2
    no_nvcc "$part could not be made (the lines above say why); XDG_CACHE_HOME names another place"
  fi
  for wheel in cuda-nvcc==13.0.88 nvvm==13.0.88 cuda-crt==13.0.88 cuda-runtime==13.0.96 cuda-cccl==13.0.85; do
    echo "setup:   nvidia-$wheel"
    if ! "$part/bin/python" -m pip install --quiet --retries 2 --timeout 60 --disable-pip-version-check --no-deps --only-binary :all: "nvidia-$wheel" >"$log" 2>&1; then
      tail -2 "$log" >&2
      no_nvcc "pip could not install nvidia-$wheel (the lines above are its own); an nvcc of CUDA 13 on PATH or in CUDACXX serves as well"
    fi
  done
  mv -T "$part" "$home" 2>/dev/null || [ -d "$home" ] || no_nvcc "$home could not be written"
  trap - EXIT
  rm -rf "$part"
}
nvcc=$(find_nvcc)
if [ -n "$want_cuda" ] && [ -z "$nvcc" ]; then
  bring_nvcc
  nvcc=$(find_nvcc)
  [ -n "$nvcc" ] || no_nvcc "what pip installed has no nvcc in $(sh cuda/find_nvcc.sh --home)"
fi

# --- the addon: CMake sees what changed; a new or vanished nvcc needs a fresh configuration
if [ -f build/CMakeCache.txt ] && [ "$(cat build/.nvcc 2>/dev/null)" != "$nvcc" ]; then rm -rf build; fi
mkdir -p build
echo "$nvcc" > build/.nvcc
has_gpu() { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }
cuda=AUTO
if [ -n "$nvcc" ] && [ -n "$here" ] && [ -z "$want_cuda" ] && ! has_gpu && ! grep -qs '^SIGLIP2_CUDA:[A-Z]*=AUTO$' build/CMakeCache.txt; then
  cuda=OFF
fi
if [ -z "$nvcc" ] || [ "$cuda" = OFF ]; then note "native addon"
else note "native addon, with CUDA kernels by $nvcc (minutes when they are new)"
fi
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
# What was built is the addon's to say.
built=$(node -p 'require("./build/Release/siglip2.node").buildInfo().cuda') || {
  echo "setup: the addon was built but does not load; the lines above say why" >&2
  exit 1
}
if [ "$built" = cuda ]; then note "built: CPU and CUDA kernels"
elif [ -n "$nvcc" ] && [ "$cuda" = AUTO ]; then
  echo "setup: built for the CPU only: CMake could not use $nvcc; build/CMakeFiles/CheckCUDA/CMakeFiles/CMakeError.log says why" >&2
  [ -z "$want_cuda" ] || exit 1
elif [ -n "$nvcc" ]; then note "built for the CPU only: no GPU here; \`npm run setup\` adds the CUDA kernels"
else note "built for the CPU only: no nvcc here; \`npm run setup -- --cuda\` brings one"
fi

# --- TypeScript
if is_checkout; then
  note "TypeScript"
  npm run --silent build:ts
fi
note "ready"
