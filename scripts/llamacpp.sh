#!/usr/bin/env bash
# Puts an unmodified llama.cpp into build/llamacpp/host/bin, as programs to call; nothing is installed and root is not needed.
#   scripts/llamacpp.sh debian   Debian unstable's packages, unpacked with the libraries they need (some 20 MB; ggml 0.27, interface 3)
#   scripts/llamacpp.sh pypi     built from the sources that llama-cpp-python carries (20 minutes on 2 cores; interface 2)
set -euo pipefail
cd "$(dirname "$0")/.."
way=${1:-debian}
top=$PWD/build/llamacpp
host=$top/host-$way
mkdir -p "$top"

wrap() {  # name, command...
  local name=$1
  shift
  {
    printf '#!/bin/sh\n# From scripts/llamacpp.sh: the program beside its libraries.\ncd "%s" && exec' "$beside"
    printf ' "%s"' "$@"
    printf ' "$@"\n'
  } >"$host/bin/$name"
  chmod +x "$host/bin/$name"
}

debian() {
  if ! command -v apt-get >/dev/null; then
    echo "llamacpp.sh: no apt-get here; use: scripts/llamacpp.sh pypi" >&2
    exit 1
  fi
  local apt=$top/apt mirror
  mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$host/root" "$host/bin"
  # The mirror that this machine uses already.
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)
  if [ -z "$mirror" ]; then
    echo "llamacpp.sh: apt knows no mirror here; run apt-get update, or use: scripts/llamacpp.sh pypi" >&2
    exit 1
  fi
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror unstable main" >"$apt/sources.list"
  : >"$apt/status"
  local options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State=$apt/state"
    -o "Dir::Cache=$apt/cache" -o "Dir::State::status=$apt/status" -o APT::Install-Recommends=false -o APT::Sandbox::User=)
  apt-get "${options[@]}" update
  apt-get "${options[@]}" -y --download-only install llama.cpp-tools libggml0 >/dev/null
  for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$host/root"; done
  # A newer C library than this machine's, perhaps: the programs are started by the loader that came with it. It takes
  # their place as "the executable", so ggml finds its CPU variants by the current folder instead.
  local lib program name
  lib=$(dirname "$(find "$host/root/usr/lib" -name 'libggml-base.so.0')")
  beside=$(find "$lib/ggml" -maxdepth 1 -name 'backends*')
  for program in "$host"/root/usr/bin/llama-{server,bench} "$host"/root/usr/libexec/*/ggml/test-backend-ops; do
    name=$(basename "$program")
    wrap "$name" "$(find "$host/root/usr" -name 'ld-linux*' -o -name 'ld64.so*' | head -n 1)" --library-path "$lib:$lib/llama" "$program"
  done
}

pypi() {
  local source=$top/pypi python=$top/venv/bin/python
  mkdir -p "$source" "$host/bin"
  [ -x "$python" ] || python3 -m venv "$top/venv"
  if ! compgen -G "$source/llama_cpp_python-*/vendor/llama.cpp/CMakeLists.txt" >/dev/null; then
    "$python" -m pip -q install scikit-build-core
    "$python" -m pip -q download --no-binary :all: --no-deps --no-build-isolation -d "$source" "llama-cpp-python${LLAMA_CPP_PYTHON:-}"
    tar -xzf "$source"/llama_cpp_python-*.tar.gz -C "$source"
  fi
  # Backends as libraries of their own, as in official releases: a program that has its CPU backend built in does not look
  # at GGML_BACKEND_PATH. Compiled for this machine, so that the comparison is a fair one.
  cmake -S "$(echo "$source"/llama_cpp_python-*/vendor/llama.cpp)" -B "$top/pypi-build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DCMAKE_C_FLAGS=-march=native -DCMAKE_CXX_FLAGS=-march=native \
    -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >/dev/null
  cmake --build "$top/pypi-build" --target ggml-cpu llama-server llama-bench test-backend-ops
  beside=$top/pypi-build/bin
  for name in llama-server llama-bench test-backend-ops; do wrap "$name" "$beside/$name"; done
}

case $way in
  debian | pypi) [ -x "$host/bin/llama-server" ] || "$way" ;;
  *) sed -n '2,4p' "$0" >&2; exit 2 ;;
esac
ln -sfn "host-$way" "$top/host"
