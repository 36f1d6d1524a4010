#!/usr/bin/env bash
# Everything that only a GPU can show, in one command of at most nine minutes: scripts/gpu_check.sh [FOLDER]
#
# Runs the tests marked gpu, the benchmarks and a short Fashion-MNIST table (5 seeds, bfloat16), and leaves JSON and
# Markdown in FOLDER (default outputs/gpu_check). A step that fails or runs out of its time is named in README.md there
# and makes the exit code 1; the others still run. Without a CUDA device it says so and exits with 3.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-outputs/gpu_check}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no CUDA device on this machine: nothing was checked" >&2
    exit 3
fi

mkdir -p "$out"
failed=0
summary="$out/README.md"
{
    echo "# Checks on a GPU"
    echo
    "$python" -c 'import torch; print(torch.cuda.get_device_name(), "- torch", torch.__version__, "- CUDA", torch.version.cuda)'
    echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo
    echo "| step | result | seconds |"
    echo "|---|---|---|"
} >"$summary"

# step NAME SECONDS COMMAND...: run it within the time, its output in NAME.log, one line in the summary.
step() {
    local name=$1 limit=$2 begin=$SECONDS code=0
    shift 2
    echo "== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    local result="passed"
    [ "$code" -eq 124 ] && result="**out of time** after $limit s"
    [ "$code" -ne 0 ] && [ "$code" -ne 124 ] && result="**failed** (exit code $code)"
    [ "$code" -ne 0 ] && failed=1 && tail -n 15 "$out/$name.log"
    echo "| [$name]($name.log) | $result | $((SECONDS - begin)) |" | tee -a "$summary"
}

# bench NAME SECONDS ARGUMENTS...: a benchmark, its JSON and Markdown beside the log.
bench() {
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$python" -m scripts.benchmark "$@" --json "$out/$name.json" --markdown "$out/$name.md"
}

rows=table1/baseline,table1/dropout,table1/spatial_dropout,table1/dropblock
table=(train.py -m "experiment=$rows" data=fashion_mnist model=resnet18 model.width=8 data.train_subset=2000)
table+=(epochs=5 seed=1,2,3,4,5 recipe.precision=bfloat16 device=cuda progress=false "output_root=$out/runs")

# 140 + 75 + 45 + 45 + 45 + 170 + 15 s: below nine minutes.
step tests 140 "$python" -m pytest -m gpu -n 0 -p no:cacheprovider --junitxml "$out/tests.xml" tests
bench op 75 op --device cuda --rounds 5 --least-ms 5
bench step 45 step --device cuda --dtype bfloat16 --batch 64 --rounds 9
bench loop 45 loop --device cuda --precision bfloat16 --rounds 3
bench loader 45 loader --device cuda --rounds 2 --images 600
step table 170 "$python" "${table[@]}"
sweeps=("$out"/runs/sweeps/*/)
step report 15 "$python" scripts/report.py "${sweeps[0]}" --out "$out/table"

cat "$summary"
exit "$failed"
