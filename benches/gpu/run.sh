#!/bin/sh
# What a GPU host is to say, from files copied to it: nothing is built, nothing
# fetched. Copy the binaries `sstep` and `sstep-bench` (built with --features cuda),
# this folder, benches/peers and examples/tapes, with their places to each other kept;
# NVRTC, and cuDNN and cuBLASLt if they are to be used, must be where the loader finds
# them (docs/cuda.md).
#
#   run.sh [--sstep PATH] [--bench PATH] [--python PATH] [--tapes DIR] [--device cuda:0]
#          [--out DIR] [--quick] [--dry-run]
#
# 1. Holds every tape, strategy and type against the untiled run on the CPU, runs
#    compute-sanitizer once where there is one, and holds the driver's own figure of
#    memory against the cap and what the program reports beside it: check_device.py.
# 2. Measures steps beside PyTorch's, if --python (default: python3) has one that sees
#    the device: side_by_side.py.
# Reports are Markdown in --out (default: standard output). Exit code 1 if anything
# differs by more than rounding or a plan of ours did not run. `--device cpu` checks the
# scripts of 1 themselves, `--dry-run` prints the commands of 2 and runs nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
sstep=sstep bench=sstep-bench python=python3 tapes=$here/../../examples/tapes
device=cuda:0 out='' quick='' dry=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"
        exit 0
        ;;
    --quick) quick=--quick ;;
    --dry-run) dry=--dry-run ;;
    --sstep | --bench | --python | --tapes | --device | --out)
        [ $# -gt 1 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
        case "$1" in
        --sstep) sstep=$2 ;;
        --bench) bench=$2 ;;
        --python) python=$2 ;;
        --tapes) tapes=$2 ;;
        --device) device=$2 ;;
        --out) out=$2 ;;
        esac
        shift
        ;;
    *)
        echo "run.sh: unknown argument $1; see run.sh --help" >&2
        exit 2
        ;;
    esac
    shift
done
to() { [ -z "$out" ] || { mkdir -p "$out" && printf -- '--out %s/%s' "$out" "$1"; }; }

if [ -n "$dry" ]; then
    # Both scripts are read in full, and the second one's commands are made.
    python3 "$here/check_device.py" --help >/dev/null
    exec python3 "$here/side_by_side.py" --bench "$bench" --python "$python" --device "$device" --dry-run
fi
status=0
# shellcheck disable=SC2046,SC2086 # words on purpose
python3 "$here/check_device.py" --sstep "$sstep" --tapes "$tapes" --device "$device" $quick $(to parity.md) || status=1
if [ "$device" = cpu ]; then exit $status; fi
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    # shellcheck disable=SC2046 # words on purpose
    python3 "$here/side_by_side.py" --bench "$bench" --python "$python" --device "$device" $(to side-by-side.md) || status=1
else
    echo "run.sh: not beside PyTorch, for $python has none that sees a device" >&2
fi
exit $status
