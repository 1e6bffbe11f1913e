#!/bin/sh
# nvcc_gate.sh COMMAND…: runs a compilation and fails it when ptxas tells, as mere information, that
# it has undone what the code asks for: C7508 setmaxnreg ignored, C7510 to C7512 and C7520 wgmma
# serialised, C7517 waits put in between.
output=$("$@" 2>&1)
status=$?
if [ -n "$output" ]; then printf '%s\n' "$output"; fi
if [ "$status" -ne 0 ]; then exit "$status"; fi
case "$output" in
  *C7508* | *C751[012]* | *C7517* | *C7520*)
    echo "error: ptxas gave up an optimisation that the kernel is built on (see above)" >&2
    exit 1 ;;
esac
