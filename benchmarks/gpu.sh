#!/usr/bin/env bash
# Everything that only a GPU can tell, in under nine minutes: the kernels' tests on the device, then
# every section of a GPU but `community`. Installs nothing and needs no network, but an environment
# with the extra `dev`; the CSV files go to the folder given.
#
#     benchmarks/gpu.sh OUT
set -euo pipefail
mkdir -p "${1:?where the CSV files go}"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

# Seconds at most, the log's name, the command. What ran is kept, whatever becomes of the rest.
within() {
    local limit=$1 log=$out/$2.txt
    shift 2
    timeout "$limit" "$@" 2>&1 | tee "$log" || echo "$*: failed or ran out of time" | tee -a "$log"
}

measure=(python benchmarks/run.py --side 512 --out "$out")
within 90 tests python -m pytest -v --tb=short -k "on_cuda or 16-cuda" \
    tests/kernels tests/test_precision.py tests/test_cuda_graph.py
within 105 inversion "${measure[@]}" --repeats 1 inversion
within 100 step "${measure[@]}" --repeats 5 step
within 50 edit "${measure[@]}" --repeats 3 edit
within 40 kernels "${measure[@]}" --repeats 5 roofline kernels
within 30 load "${measure[@]}" --repeats 1 load
within 120 compile "${measure[@]}" --repeats 5 compile
