#!/usr/bin/env bash
# Packages under build/packages, each made from this tree and used once as far as this machine goes. Only `sdist` was ever
# run to its end.
#   scripts/package.sh [wheels|sdist|debian|conan] ...   all of them when none is named
#   SALE_CUDA=ON|OFF   for the x86-64 wheel; without it as CMake finds nvcc
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=$root/build/packages
log=$out/log
export CMAKE_GENERATOR=Ninja CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}
fi

# Tools from PyPI, kept outside the tree by the list's hash.
tools() {
  local list=packaging/requirements.txt
  venv=${XDG_CACHE_HOME:-$HOME/.cache}/sale/packaging-$(sha256sum "$list" | cut -c1-16)
  if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$list"
    touch "$venv/complete"
  fi
  export PATH=$venv/bin:$PATH
}
quietly() { "$@" >>"$log" 2>&1 || { tail -n 40 "$log"; return 1; }; }
# Without a network, where the system lets us take it away.
offline() { if unshare -rn true 2>/dev/null; then unshare -rn "$@"; else "$@"; fi; }

sdist() {
  tools
  rm -rf "$out/sdist"
  quietly python -m build --sdist --no-isolation -o "$out/sdist" .
  echo "sdist: $(basename "$out"/sdist/*.tar.gz), $(stat -c %s "$out"/sdist/*.tar.gz) bytes"
}

# Wheels are built from the source distribution. Nothing is taken from the machine but the C library: the C++ and CUDA
# runtimes are inside. auditwheel gives each the oldest manylinux name that its symbols allow.
wheel() {  # name, flags of CMake, environment for pip...
  local name=$1 flags=$2
  shift 2
  rm -rf "$out/$name"
  CMAKE_ARGS="-DCMAKE_SHARED_LINKER_FLAGS=-static-libstdc++\ -static-libgcc\ -Wl,--exclude-libs,ALL $flags" quietly offline env "$@" \
    pip wheel -q --no-index --no-deps --no-build-isolation -w "$out/$name" "$out"/sdist/sale-*.tar.gz
  quietly auditwheel show "$out/$name"/*.whl
  quietly auditwheel repair -w "$out/wheels" "$out/$name"/*.whl
}
wheels() {
  sdist
  rm -rf "$out/wheels"
  wheel x86_64 "" SALE_CUDA="${SALE_CUDA:-AUTO}"
  wheel aarch64 "-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++" \
    SALE_CUDA=OFF _PYTHON_HOST_PLATFORM=linux-aarch64
  local python file
  for file in "$out"/wheels/*.whl; do
    if unzip -l "$file" | grep -E '\.libs/|lib(stdc|gcc|cudart)'; then
      echo "wheels: $file brings a library beside its own"
      return 1
    fi
    echo "wheels: $(basename "$file"), $(stat -c %s "$file") bytes"
  done
  # Used in a clean environment of every Python that is here.
  for python in /usr/bin/python3 "$HOME"/.pyenv/versions/3.1?.*/bin/python; do
    [ -x "$python" ] || continue
    rm -rf "$out/clean"
    quietly "$python" -m venv "$out/clean"
    quietly "$out/clean/bin/pip" install -q --disable-pip-version-check "$out"/wheels/sale-*x86_64.whl pytest
    (cd "$out" && quietly clean/bin/python -m pytest -q -p no:cacheprovider "$root"/python/tests/test_numpy.py)
    echo "wheels: $("$python" --version): $(tail -n 1 "$log")"
  done
  # The arm64 library under the emulator, by the C program that tests/package has.
  rm -rf "$out/arm64"
  mkdir "$out/arm64"
  quietly unzip -q "$out"/wheels/sale-*aarch64.whl -d "$out/arm64"
  quietly aarch64-linux-gnu-g++ -std=c++20 -Iinclude tests/package/consumer/main.cpp -o "$out/arm64/consumer" \
    -L"$out/arm64/sale/lib" -lsale -Wl,-rpath,"$out/arm64/sale/lib"
  echo "wheels: arm64: $(qemu-aarch64 -L /usr/aarch64-linux-gnu "$out/arm64/consumer")"
}

use() {  # name, prefix
  quietly cmake -S tests/package/consumer -B "$out/use_$1" -DCMAKE_PREFIX_PATH="$2"
  quietly cmake --build "$out/use_$1"
  echo "$1: $("$out/use_$1/consumer")"
}

# One Debian package: the shared library, headers, CMake's configuration, the program and llama.cpp's backend.
debian() {
  rm -rf "$out"/debian* "$out/use_debian"
  quietly cmake -S . -B "$out/debian" -DCMAKE_BUILD_TYPE=Release -DSALE_TESTS=OFF -DSALE_CUDA=OFF -DBUILD_SHARED_LIBS=ON \
    -DCMAKE_INSTALL_PREFIX=/usr -DCMAKE_INSTALL_LIBDIR=lib/x86_64-linux-gnu
  quietly cmake --build "$out/debian"
  (cd "$out/debian" && quietly cpack -G DEB)
  local file
  file=$(echo "$out"/debian/*.deb)
  dpkg-deb --field "$file" Package Version Architecture Depends
  dpkg -x "$file" "$out/debian_root"
  use debian "$out/debian_root/usr"
  LD_LIBRARY_PATH=$out/debian_root/usr/lib/x86_64-linux-gnu "$out/debian_root/usr/bin/sale" info | sed -n 2p
}

# Its headers come from the system here, which has no other source of them.
conan() {
  tools
  export CONAN_HOME=$out/conan
  rm -rf "$CONAN_HOME" "$out/use_conan"
  quietly command conan profile detect
  printf '[platform_requires]\nnlohmann_json/3.11.2\neigen/3.4.0\n' >>"$CONAN_HOME/profiles/default"
  quietly command conan create packaging/conan
  use conan "$(command conan cache path "sale/$(command conan inspect packaging/conan -f json | sed -n 's/ *"version": "\(.*\)".*/\1/p'):$(command conan list 'sale/*:*' -f compact | grep -oE '[0-9a-f]{40}' | head -n 1)")"
}

mkdir -p "$out"
: >"$log"
[ $# -gt 0 ] || set -- wheels debian conan
for part in "$@"; do "$part"; done
