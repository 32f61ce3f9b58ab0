#!/bin/sh
# Puts NVRTC, which compiles the CUDA kernels, under target/nvrtc for the tests:
# the library of the PyPI wheel needs no GPU and no driver. Prints why if it cannot
# be had; the tests that need it then say that they were skipped.
set -eu

version=13.0.88
cd "$(dirname "$0")/.."
dir=${CARGO_TARGET_DIR:-target}/nvrtc
if [ -e "$dir/$version" ]; then exit 0; fi
if ! command -v python3 >/dev/null 2>&1; then
    echo "nvrtc: skipped, for there is no python3 to fetch its wheel with" >&2
    exit 0
fi
mkdir -p "$dir"
if python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
    --target "$dir" "nvidia-cuda-nvrtc==$version" >"$dir/log" 2>&1; then
    touch "$dir/$version"
else
    echo "nvrtc: skipped, for pip could not install nvidia-cuda-nvrtc $version:" \
        "$(tail -n 1 "$dir/log")" >&2
fi
