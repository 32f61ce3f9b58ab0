#!/bin/sh
# What a GPU host is to say, from files copied to it: nothing is built, nothing
# fetched. Copy the binary `sstep` (built with --features cuda), this folder and
# examples/tapes; NVRTC must be where the loader finds it (docs/cuda.md).
#
#   run.sh [--sstep PATH] [--tapes DIR] [--device cuda:0] [--out FILE.md] [--quick]
#
# Holds every tape, strategy and type against the untiled run on the CPU, runs
# compute-sanitizer once where there is one, holds the driver's own figure of
# memory against the cap, and writes what it found as Markdown. Exit code 1 if
# anything differs by more than rounding. `--device cpu` checks the script itself.
set -eu

case "${1:-}" in
-h | --help)
    sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"
    exit 0
    ;;
esac
exec python3 "$(dirname "$0")/check_device.py" "$@"
