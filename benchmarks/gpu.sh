#!/usr/bin/env bash
# Everything that only a GPU can tell: what the tests check on CUDA, then every section of a GPU but
# `community`. Installs nothing and needs no network, but an environment with the extra `dev`; the
# logs and CSV files go to the folder given.
#
#     benchmarks/gpu.sh OUT [SECTION ...]
#
# A section ends within five minutes, so that they can be run apart. What ran is kept, whatever
# becomes of the rest. The exit code is 1 if a section failed or ran out of time, 2 if nothing ran.
set -uo pipefail

sections=(checks self-check kernels-tests inversion step edit kernels load compile)
usage="usage: benchmarks/gpu.sh OUT [SECTION ...], sections: ${sections[*]}"
[ $# -ge 1 ] || { echo "$usage" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) && cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
shift
for name in "$@"; do
    printf '%s\n' "${sections[@]}" | grep -qxF -- "$name" || { echo "got $name; $usage" >&2; exit 2; }
done

measure=(python benchmarks/run.py --side 512 --out "$out")
tests=(python -m pytest -v --tb=short --cuda)
parts=8

# Kernels that were never compiled, and what was imported before: a user's first load.
self_check='import time, nti; nti.load_model(execution="eager", backend="reference")'
self_check+='; started = time.perf_counter(); nti.load_model()'
self_check+='; print(f"loading with the self-check: {time.perf_counter() - started:.1f} s")'

# Seconds at most, the log's name, the command.
within() {
    local limit=$1 log=$out/$2.txt
    shift 2
    timeout "$limit" "$@" 2>&1 | tee "$log" && return
    echo "$*: failed or ran out of time" | tee -a "$log"
    return 1
}

# Compiling the kernels takes longer than running them, and a process compiles on one core.
kernels_tests() {
    local part pids=() failed=0
    for part in $(seq "$parts"); do
        within 280 "kernels-tests-$part" "${tests[@]}" --part "$part/$parts" tests/kernels \
            > /dev/null &
        pids+=($!)
    done
    for part in $(seq "$parts"); do
        wait "${pids[part - 1]}" || failed=1
        tail -n 3 "$out/kernels-tests-$part.txt"
    done
    return "$failed"
}

run() {
    case $1 in
        checks) within 280 checks "${tests[@]}" --ignore tests/kernels tests ;;
        self-check) within 60 self-check python -c "$self_check" ;;
        kernels-tests) kernels_tests ;;
        inversion) within 280 inversion "${measure[@]}" --repeats 1 inversion ;;
        step) within 280 step "${measure[@]}" --repeats 5 step ;;
        edit) within 120 edit "${measure[@]}" --repeats 3 edit ;;
        kernels) within 120 kernels "${measure[@]}" --repeats 5 roofline kernels ;;
        load) within 60 load "${measure[@]}" --repeats 1 load ;;
        compile) within 280 compile "${measure[@]}" --repeats 5 compile ;;
    esac
}

[ $# -ge 1 ] || set -- "${sections[@]}"
failed=()
for name in "$@"; do
    run "$name" || failed+=("$name")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
