#!/usr/bin/env bash
# bench/gpu/run_all.sh: everything that a machine with an NVIDIA GPU is needed for, in under 9
# minutes and without a network: builds in place, tests, compute-sanitizer, benchmark tables.
#
#   bench/gpu/run_all.sh [--out DIR] [--stages build,test,sanitize,bench] [--limit STAGE=SECONDS]...
#                        [--python PYTHON] [--wheels DIR] [--pybind11 DIR] [--archs 90a-real]
#                        [--jobs N] [--ops "OP OP"] [--dry-run]
#
# Needed there: nvcc (13.0 tried), cmake >= 3.25, ninja, g++, and a Python with torch (CUDA), numpy,
# pytest and pybind11. Missing packages are carried as wheels: `pip download -d wheels --no-deps
# pybind11 scipy-openblas32 mpmath` where there is a network, and --wheels wheels here (installed
# below the output folder, nothing else is touched). --pybind11 names the folder of
# pybind11Config.cmake instead. Without scipy-openblas32 the matrix functions do not run; nothing
# else needs it.
#
# Each stage has a time limit and logs in the output folder (build/gpu/results); one that fails does
# not stop the next. summary.txt has a line for each command; the exit status is 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/../.."

all_stages=build,test,sanitize,bench
out=build/gpu/results stages=$all_stages python=python3 wheels= pybind11= archs=90a-real jobs=$(nproc)
ops= dry_run=
declare -A limit=([build]=200 [test]=120 [sanitize]=100 [bench]=110)

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
}
die() {
  printf 'run_all.sh: %s\n' "$1" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  flag=$1
  case $flag in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --out | --stages | --limit | --python | --wheels | --pybind11 | --archs | --jobs | --ops)
      [ $# -ge 2 ] || die "$flag expects a value" ;;
    *) die "unknown argument '$flag' (--help lists them)" ;;
  esac
  value=$2
  shift 2
  case $flag in
    --limit)
      [[ $value =~ ^(build|test|sanitize|bench)=[1-9][0-9]*$ ]] ||
        die "--limit expects STAGE=SECONDS with a stage of $all_stages, got '$value'"
      limit[${value%=*}]=${value#*=} ;;
    --jobs)
      [[ $value =~ ^[1-9][0-9]*$ ]] || die "--jobs expects a number, got '$value'"
      jobs=$value ;;
    *) declare "${flag#--}=$value" ;;
  esac
done
for stage in ${stages//,/ }; do
  [ -n "${limit[$stage]-}" ] || die "unknown stage '$stage', expected some of $all_stages"
done
has_stage() { [[ ,$stages, == *,$1,* ]]; }

failed=0
if [ -z "$dry_run" ]; then
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  : >"$out/summary.txt"
fi
# run STAGE NAME COMMAND...: under what is left of the stage's limit; its log is NAME.log.
stage_now= stage_ends=0
run() {
  local stage=$1 name=$2 status=0 left
  shift 2
  if [ "$stage" != "$stage_now" ]; then
    stage_now=$stage
    stage_ends=$((SECONDS + limit[$stage]))
  fi
  if [ -n "$dry_run" ]; then
    printf '%s (%ss): %s\n' "$stage" "${limit[$stage]}" "$*"
    return 0
  fi
  left=$((stage_ends - SECONDS))
  local from=$SECONDS
  if [ "$left" -gt 0 ]; then
    timeout --kill-after=5 "$left" "$@" >"$out/$name.log" 2>&1 </dev/null || status=$?
  else
    status="no time left"
  fi
  [ "$status" = 124 ] && status="timed out"
  [ "$status" = 0 ] || failed=1
  printf '%-9s %-22s %5ss  %s\n' "$stage" "$name" $((SECONDS - from)) \
    "$([ "$status" = 0 ] && echo ok || echo "FAILED ($status)")" | tee -a "$out/summary.txt"
  if [ "$status" != 0 ] && [ -f "$out/$name.log" ]; then tail -n 15 "$out/$name.log"; fi
  [ "$status" = 0 ]
}

export PYTHONUNBUFFERED=1 PATH="$PATH:/usr/local/cuda/bin"
if [ -n "$wheels" ]; then
  if [ -z "$dry_run" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
      --target "$out/site" "$wheels"/*.whl || die "the wheels of $wheels could not be installed"
  fi
  export PYTHONPATH="$out/site${PYTHONPATH:+:$PYTHONPATH}"
fi

tree=build/gpu/tree
with() { # the source tree's Python with the native core of this build
  printf '%s\n' env "PYTHONPATH=$PWD/$tree/overlay${PYTHONPATH:+:$PYTHONPATH}" "$@"
}
if has_stage build; then
  [ -n "$pybind11" ] || pybind11=$("$python" -m pybind11 --cmakedir 2>/dev/null)
  [ -n "$pybind11$dry_run" ] || die "pybind11 was not found: carry its wheel (--wheels) or name --pybind11"
  run build configure cmake --fresh -G Ninja -S . -B "$tree" -DPIXLEAP_CUDA=ON \
    "-DPIXLEAP_CUDA_ARCHITECTURES=$archs" "-Dpybind11_DIR=$pybind11" \
    "-DPython_EXECUTABLE=$(command -v "$python" || echo "$python")" &&
    run build compile cmake --build "$tree" --target _native --parallel "$jobs" &&
    run build import tools/run_with "$tree" "$python" -c \
      'import pixleap, torch; print(pixleap.info()); print(torch.cuda.get_device_name()); assert pixleap.info()["built_with_cuda"]'
  run build resources "$python" tools/cuda_resources "$tree" --check --tolerance 255
fi

if has_stage test; then
  mapfile -t command < <(with "$python" -m pytest -q -ra -m cuda --durations=10 \
    -p no:cacheprovider "--junitxml=$out/test.xml" tests)
  run test test "${command[@]}"
fi

if has_stage sanitize; then
  # The small cases: a checked kernel runs up to a hundred times slower. Half of the time for each.
  whole=${limit[sanitize]}
  for tool in memcheck racecheck; do
    mapfile -t command < <(with timeout $((whole / 2)) compute-sanitizer --tool $tool \
      --error-exitcode 9 "$python" -m pytest -q -x -m 'cuda and not large' -p no:cacheprovider \
      tests/test_ops.py)
    run sanitize "$tool" "${command[@]}"
  done
fi

# Tables appear one by one, those that matter most first: what the limit cuts off is the end.
# The suites time both types themselves.
suites="cuda attention_steps"
ops_by_weight="attention linear sample_tokens next_scale_update lincomb kv_append layer_norm
  attention_varlen merge_attention speculative_accept jacobi_update selective_scan feature_moments
  pairwise_topk pairwise_count pairwise_kernel_sum random_normal guidance_weights moments
  kv_append_varlen hadamard_projection dynamic_threshold feature_covariance gaussian_accept
  systematic_resample relaxed_accept linear_pack"
if has_stage bench; then
  for dtype in bfloat16 float32; do
    # shellcheck disable=SC2086  # --ops is a list
    mapfile -t command < <(with timeout $((limit[bench] / 2)) "$python" bench/run.py ${ops:-$suites $ops_by_weight} \
      --device cuda --dtype $dtype --save --results "$out/bench_$dtype")
    run bench "bench_$dtype" "${command[@]}"
    suites=
  done
fi

[ -n "$dry_run" ] || printf 'results: %s\n' "$out"
exit $failed
