#!/usr/bin/env python3
"""Whether docs/add-a-backend.md is true: a toy CPU backend is added to a copy of the sources in the files that the page
names, all of them and no other; the copy is built and judged by `sale check` against the oracle.

    tests/package/toy.py FOLDER      what is made there is made anew; FOLDER/build/test is built

The toy's lanes are plain loops, in another width and register tile than any real backend's."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

MADE = {
    "src/cpu/toy/simd.hpp": """\
// A toy: sixteen lanes are eight pairs, one at a time.
#pragma once

namespace sale {
namespace {
constexpr int register_floats = 2;
constexpr int tile_rows = 2, tile_panels = 1;
}  // namespace
}  // namespace sale

#include "cpu/common/half.hpp"
#include "cpu/common/lanes.hpp"

namespace sale {
namespace {

using by_lane::from_bf16, by_lane::look_up, by_lane::max_lane, by_lane::narrow, by_lane::transpose_16x16;

SALE_INLINE f32x16 fused(const f32x16& a, const f32x16& b, const f32x16& c) {
  f32x16 r;
  SALE_EACH r.p[i] = a.p[i] * b.p[i] + c.p[i];
  return r;
}
SALE_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
  f32x16 r;
  SALE_EACH r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
  return r;
}
SALE_INLINE i32x16 max(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
  return r;
}
SALE_INLINE bool any_not_below(const f32x16& a, const f32x16& b) {
  float x[16], y[16];
  store(x, a), store(y, b);
  bool any = false;
  for (int i = 0; i < 16; ++i) any = any || !(x[i] < y[i]);
  return any;
}
SALE_INLINE f32x16 from_f16(const uint16_t* from) {
  float v[16];
  for (int i = 0; i < 16; ++i) v[i] = half_to_float(from[i]);
  return load(v);
}

struct DotI8 {
  using Acc = i32x16;
  using Word = uint32_t;
  static constexpr int32_t a_bias = 0;
  SALE_INLINE Acc zero() { return splat(int32_t{0}); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    int32_t sums[16];
    store(sums, acc);
    for (int i = 0; i < 16; ++i)
      for (int t = 0; t < 32; t += 8) sums[i] += static_cast<int8_t>(a >> t) * static_cast<int8_t>(b[i] >> t);
    Acc r;
    std::memcpy(&r, sums, sizeof sums);
    return r;
  }
};

}  // namespace
}  // namespace sale
""",
    "src/cpu/toy/kernels.cpp": """\
#include "cpu/common/kernels.hpp"

constinit const sale::Kernels sale::toy::kernels = sale::lane_kernels;
""",
    "src/cpu/toy/backend.cpp": """\
#include "cpu/common/tables.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine& m) { return m.toy ? "" : "this CPU is no toy"; }
const Kernels& kernels(const Machine&) { return toy::kernels; }
}  // namespace

const Backend toy_backend = cpu_backend("toy", "a toy", why_not_machine, cpu_why_not_layer, kernels);

}  // namespace sale
""",
}
CHANGED = {  # a text that occurs once, and what stands there afterwards
    "src/core/machine.hpp": [("  bool avx2 = false;", "  bool toy = false;\n  bool avx2 = false;")],
    "src/core/machine.cpp": [("    detect(r);\n", "    detect(r);\n    r.toy = true;\n"),
                             ('  if (named("avx2"))', '  if (named("toy")) m.toy = false;\n  if (named("avx2"))')],
    "src/cpu/common/simd.hpp": [("#if defined(__AVX512F__)", '#if defined(SALE_TOY)\n#include "cpu/toy/simd.hpp"\n#elif defined(__AVX512F__)')],
    "src/cpu/common/tables.hpp": [("namespace avx2 {\n", "namespace toy {\nextern const Kernels kernels;\n}\nnamespace avx2 {\n")],
    "src/core/backend.hpp": [("extern const Backend portable_backend,", "extern const Backend toy_backend, portable_backend,")],
    "src/core/backends.cpp": [("&portable_backend}", "&portable_backend, &toy_backend}")],
    "src/CMakeLists.txt": [("sale_kernels(portable FILES kernels)", "sale_kernels(portable FILES kernels)\nsale_kernels(toy FILES kernels FLAGS -DSALE_TOY)"),
                           ("  core/plan.cpp core/status.cpp", "  cpu/toy/backend.cpp core/plan.cpp core/status.cpp"),
                           ("  cpu/portable/backend.cpp cpu/neon/backend.cpp", "  cpu/toy/backend.cpp cpu/portable/backend.cpp cpu/neon/backend.cpp")],
    "scripts/test.sh": [("-path '*avx2*'", "-path '*cpu/toy*' -o -path '*avx2*'")],
}  # fmt: skip
TABLE = "docs/support.md"  # printed by the program, once it is built

LINES = [
    "q=1000 k=1000 d=64 qheads=4 kvheads=2 tau=0.02", "q=700 k=1500 d=128 type=bf16 tau=0.05 data=real-like estimator=int4",
    "q=513 k=513 d=96 type=f16 estimator=int8:32 tau=0.01 data=outlier", "q=300 k=900 d=32 compute=int8 tau=0.03 batch=2 index=1",
    "q=400 k=400 d=48 tau=0", "q=600 k=600 d=64 compensate=1 tau=0.05", "q=256 k=256 d=16 data=nan-k tau=0.1",
]  # fmt: skip


def named_on_the_page() -> set[str]:
    """Files of the table for a CPU's instruction set `x`, the toy's name in its place."""
    page = (ROOT / "docs/add-a-backend.md").read_text()
    part = page[page.index("## A CPU instruction set") :]
    found: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", part[: part.index("\n**Tests.**")], re.M):
        folder = None
        for name in re.findall(r"`([^`]+)`", row):
            folder = os.path.dirname(name) or folder  # `src/core/machine.hpp`, `machine.cpp`
            found.add(f"{folder}/{os.path.basename(name)}".replace("/x/", "/toy/"))
    return found


def differing(copy: pathlib.Path, files: list[str]) -> set[str]:
    return {f for f in files if not (ROOT / f).exists() or (copy / f).read_bytes() != (ROOT / f).read_bytes()}


def run(*command, **how) -> str:
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
    if done.returncode:
        sys.exit(f"toy: {' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def write(to: pathlib.Path, text: str) -> None:
    if not to.exists() or to.read_text() != text:  # what did not change is not built again
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text)


def main(copy: pathlib.Path) -> None:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    files = [f for f in listed.split("\0") if f and not f.startswith(("bench/results/", "models/")) and (ROOT / f).is_file()]
    for f in files:
        if f in CHANGED or f == TABLE:
            continue
        (copy / f).parent.mkdir(parents=True, exist_ok=True)
        if not (copy / f).exists() or (copy / f).read_bytes() != (ROOT / f).read_bytes():
            shutil.copy(ROOT / f, copy / f)
    for f, edits in CHANGED.items():
        text = (ROOT / f).read_text()
        for old, new in edits:
            if text.count(old) != 1:
                sys.exit(f"toy: {f} has {old!r} {text.count(old)} times; tests/package/toy.py wants it once")
            text = text.replace(old, new)
        write(copy / f, text)
    for f, text in MADE.items():
        write(copy / f, text)

    build = copy / "build/test"
    run("cmake", "-S", copy, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DSALE_WERROR=ON", "-DSALE_CUDA=OFF",
        "-DSALE_TESTS=OFF", "-DSALE_GGML=OFF", "-DSALE_INSTALL=OFF")  # fmt: skip
    run("cmake", "--build", build, "--target", "sale_program")
    sale = build / "cli/sale"
    table, page = run(sale, "info", "--table").strip(), (ROOT / TABLE).read_text()
    before = page[: page.index("| backend |")]
    after = page[page.index("Cells: head dimensions that run") :].partition("\n")[2]
    write(copy / TABLE, before + table + "\n" + after)

    touched, named = differing(copy, [*files, *MADE]), named_on_the_page()
    if touched != named:
        sys.exit(f"toy: docs/add-a-backend.md and what a backend touches differ: not on the page {sorted(touched - named)}, "
                 f"on the page alone {sorted(named - touched)}")  # fmt: skip

    for line in LINES:
        told = run(sale, "check", *line.split(), "backend=toy")
        if "toy" not in told:
            sys.exit(f"toy: sale check {line}: was not judged\n{told}")
    hidden = subprocess.run([sale, "check", "d=64", "backend=toy"], env={**os.environ, "SALE_HIDE": "toy"}, capture_output=True, text=True)
    if hidden.returncode != 3 or "this CPU is no toy" not in hidden.stderr:
        sys.exit(f"toy: hidden, exit {hidden.returncode}: {hidden.stderr}")
    run("bash", "scripts/test.sh", "symbols", cwd=copy)
    print(f"toy: {len(named)} files, as the page says; {len(LINES)} problem lines as the oracle")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]).resolve())
