#!/usr/bin/env bash
# Formats C++ and CUDA as .clang-format says; --check fails where something is to be done. Where the npm package has no binary
# for this machine it says so and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
case "$(uname -sm)" in
  "Linux x86_64") tool=node_modules/clang-format/bin/linux_x64/clang-format ;;
  "Darwin "*) tool=node_modules/clang-format/bin/darwin_x64/clang-format ;;
  *) echo "clang-format: the package has none for $(uname -sm); left out" >&2; exit 0 ;;
esac
files=$(find native cuda test/native -name '*.cc' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
if [ "${1:-}" = --check ]; then
  # shellcheck disable=SC2086
  "$tool" --dry-run --Werror $files || { echo "clang-format: run \`npm run fix\`" >&2; exit 1; }
else
  # shellcheck disable=SC2086
  "$tool" -i $files
fi
