#!/usr/bin/env bash
# Toolkits that do not serve: with SALE_CUDA=AUTO the library is configured without GPU backends and a line says why; with
# ON that line ends the configuration. The compilers are stand-ins.
#   tests/package/nvcc.sh FOLDER
set -euo pipefail
source=$(cd "$(dirname "$0")/../.." && pwd)
folder=$1
rm -rf "$folder"

# name, what the compiler does (a shell script), what is said about it
expect() {
  local name=$1 log=$folder/$1.log mode
  mkdir -p "$folder/$name/bin"
  printf '#!/bin/sh\n%s\n' "$2" >"$folder/$name/bin/nvcc"
  chmod +x "$folder/$name/bin/nvcc"
  for mode in AUTO ON; do
    if cmake -S "$source" -B "$folder/$name/$mode" -G Ninja -DSALE_TESTS=OFF -DSALE_CLI=OFF -DSALE_CUDA=$mode \
      -DSALE_NVCC="$folder/$name/bin/nvcc" >"$log" 2>&1; then
      [ $mode = AUTO ] || { echo "nvcc, $name: SALE_CUDA=ON was configured"; return 1; }
    elif [ $mode = AUTO ]; then
      echo "nvcc, $name: SALE_CUDA=AUTO was not configured"
      cat "$log"
      return 1
    fi
    if ! tr -s '\n ' ' ' <"$log" | grep -qF -- "$3"; then
      echo "nvcc, $name, SALE_CUDA=$mode: '$3' is not said"
      cat "$log"
      return 1
    fi
  done
}

expect old 'echo "Cuda compilation tools, release 11.5, V11.5.119"' 'is of CUDA 11.5; 12.4 or later is needed'
expect silent 'exit 1' '--version does not say what it is'
expect broken 'case "$*" in *--version*) echo "release 12.8, V12.8.1" ;; *) echo "fatal error: unsupported GNU version" >&2; exit 1 ;; esac' \
  'does not compile: fatal error: unsupported GNU version'
echo "nvcc: 3 toolkits that do not serve, each refused in its words"
