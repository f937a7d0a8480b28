#!/usr/bin/env bash
# Installs what is missing on a Debian machine, or says exactly what to install and stops.
#   scripts/setup.sh build   what `make demo` needs
#   scripts/setup.sh test    that, and what `make test` needs
#   scripts/setup.sh package what `make package` needs
set -euo pipefail

packages="g++ cmake ninja-build libcli11-dev libfmt-dev nlohmann-json3-dev libpcre2-dev libicu-dev libdnnl-dev libeigen3-dev libstb-dev"
if [ "${1:-build}" = test ]; then
  packages="$packages libgtest-dev clang libclang-rt-14-dev python3 clang-format-19 clang-tidy-19 binutils ccache
    g++-aarch64-linux-gnu qemu-user googletest python3-numpy python3-pytest python3-venv"
fi
if [ "${1:-build}" = package ]; then
  packages="$packages dpkg-dev fakeroot git unzip python3 python3-venv g++-aarch64-linux-gnu qemu-user"
fi

if ! command -v dpkg-query >/dev/null; then
  echo "setup: not a Debian system; the build needs the equivalents of: $packages" >&2
  exit 0
fi
missing=""
for p in $packages; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then
  echo "setup: installing$missing" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "setup: packages are missing. Run this, then try again:" >&2
  echo "  sudo apt-get install -y --no-install-recommends$missing" >&2
  exit 1
fi
