#!/usr/bin/env bash
# Everything that only a GPU can tell, in under nine minutes: the kernels' tests on the device, then
# every section but `community`. Installs nothing and needs no network, but an environment with the
# extra `dev`; the CSV files go to the folder given.
#
#     benchmarks/gpu.sh OUT
set -euo pipefail
out=${1:?where the CSV files go}
cd "$(dirname "$0")/.."
mkdir -p "$out"
timeout 95 python -m pytest -v --tb=short tests/kernels tests/test_precision.py tests/test_cuda_graph.py \
    -k "on_cuda or 16-cuda" | tee "$out/tests.txt" || echo "tests: failed or ran out of time" | tee -a "$out/tests.txt"
for sections in inversion "roofline kernels" step edit load; do
    log=$out/${sections##* }.txt
    # shellcheck disable=SC2086  # two sections are two arguments
    timeout 70 python benchmarks/run.py $sections --side 512 --repeats 5 --out "$out" \
        | tee "$log" || echo "$sections: failed or ran out of time" | tee -a "$log"
done
timeout 90 python benchmarks/run.py compile --side 512 --repeats 5 --out "$out" \
    | tee "$out/compile.txt" || echo "compile: failed or ran out of time" | tee -a "$out/compile.txt"
