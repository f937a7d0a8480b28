#!/usr/bin/env python3
"""What bench/ada measured, as the page it saves.   usage: ada_table.py FOLDER NAME VERSION LENGTH..."""
import datetime
import json
import pathlib
import sys

from markdown import table

folder, name, version, lengths = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
dense = json.loads((folder / "dense.json").read_text())
flash = {n: dense["ms"][str(int(n[:-1]) * 1024)] for n in lengths}
rows = {(c, n): json.loads((folder / f"{c}-{n}.json").read_text())["rows"][0] for c in ("exact", "int8", "f16") for n in lengths}


def ms(compute, *stages):
    return lambda n: f"{1e3 * sum(rows[compute, n][s] for s in stages):.3f}"


def share(n):
    return f"{1e5 * (rows['exact', n]['index_s'] + rows['exact', n]['select_s']) / flash[n]:.1f} %"


def times(compute, *stages):
    return lambda n: f"{flash[n] / (1e3 * sum(rows[compute, n][s] for s in stages)):.2f}×"


print(f"# The paper's latency table: {name}\n")
print(f"Printed by `bench/ada`, {version}, {datetime.date.today()}: {dense['device']} (compute capability {dense['capability']}), PyTorch")
print(f"{dense['torch']}. One layer's attention, bf16, causal, 32 query and 8 kv heads of 128 on random data; INT4 over all coordinates, backend")
print("`sm80`. FlashAttention-2 is PyTorch's, in the same run. Medians, in ms; stages between events of one stream.")
if not dense["capability"].startswith("8."):
    print(f"\n**Not the hardware that this backend is for**: compute capability {dense['capability']} has no 4-bit tensor cores, their products are emulated,")
    print("and selection's time says nothing of a chip that has them. What this run shows is that the backend and this script work.")
table("Latency, ms", lengths, [
    ("FlashAttention-2 (PyTorch)", lambda n: f"{flash[n]:.3f}"),
    ("dense path of `sm80`", ms("exact", "dense_s")),
    ("quantization (key index)", ms("exact", "index_s")),
    ("selection", ms("exact", "select_s")),
    ("computation, exact", ms("exact", "attend_s")),
    ("computation, low-bit (INT8 Q·K)", ms("int8", "attend_s")),
    ("computation, low-bit (INT8 Q·K, P·V in f16 with f16 sums)", ms("f16", "attend_s")),
    ("blocks kept", lambda n: f"{100 * rows['exact', n]['density']:.1f} %"),
])
table("Against FlashAttention-2", lengths, [
    ("quantization + selection, share of dense", share),
    ("computation pass alone, exact", times("exact", "attend_s")),
    ("computation pass alone, low-bit", times("int8", "attend_s")),
    ("computation pass alone, low-bit, f16 sums", times("f16", "attend_s")),
    ("total, exact", times("exact", "index_s", "select_s", "attend_s")),
    ("total, low-bit", times("int8", "index_s", "select_s", "attend_s")),
    ("total, low-bit, f16 sums", times("f16", "index_s", "select_s", "attend_s")),
])
