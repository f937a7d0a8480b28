#!/usr/bin/env bash
# The backend in an unmodified llama.cpp (`make llamacpp` puts it there): ggml's own test of flash attention, answers of a
# long prompt, a server with two slots, and many mixed requests with the backend under AddressSanitizer.
#   scripts/test-llamacpp.sh [ops|demo|serve|soak ...]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
plugin=$root/build/release/integrations/ggml/libggml-sale.so

# Threshold 0: every key is kept, and the operation must be the CPU's to ggml's own tolerance. Keys that are no cache and
# blocks of two rows are served for once, since the test has no others.
ops() {
  local stats=$root/build/llamacpp/ops.jsonl
  rm -f "$stats"
  GGML_BACKEND_PATH=$plugin SALE_GGML_TAU=0 SALE_GGML_ANY_KEYS=1 SALE_GGML_MIN_ROWS=2 SALE_GGML_STATS=$stats \
    build/llamacpp/host/bin/test-backend-ops test -o FLASH_ATTN_EXT -b SALE 2>/dev/null |
    tee build/llamacpp/ops.log | tail -n 4
  grep -q 'Backend SALE.*OK' build/llamacpp/ops.log
  python3 - "$stats" <<'PY'
import json, sys
rows = json.loads(open(sys.argv[1]).readlines()[-1])["rows"]
print(f"rows computed by the library: {rows['dense']}; by ggml's kernel, for masks of finite values: {rows['ggml']}")
assert rows["dense"] > 1000
PY
}

demo() { scripts/llamacpp.py demo --tokens 8k; }
serve() { scripts/llamacpp.py serve; }

# As many requests as a server sees in two hours, one after the other. The host is not instrumented: the sanitizer's
# library is loaded first, and watches the backend and every allocation.
soak() {
  cmake -S . -B build/llamacpp/asan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSALE_SANITIZE=address,undefined \
    -DSALE_TESTS=OFF -DSALE_CUDA=OFF >/dev/null
  cmake --build build/llamacpp/asan --target sale_ggml >/dev/null
  scripts/llamacpp.py soak --plugin build/llamacpp/asan/integrations/ggml/libggml-sale.so \
    --preload "$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ${REQUESTS:+--requests "$REQUESTS"}
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(ops demo serve soak)
for stage in "${stages[@]}"; do
  echo "==== $stage"
  start=$SECONDS
  "$stage"
  echo "==== $stage: $((SECONDS - start)) s"
done
