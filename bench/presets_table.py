#!/usr/bin/env python3
"""The table of bench/presets as Markdown: presets_table.py FOLDER NAME VERSION LENGTH..."""
import datetime
import json
import pathlib
import sys

folder, name, version, lengths = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
PRESETS = {"default": "calibration-fp8", "fast": "calibration-fp8-fast"}


def read(file):
    return json.loads((folder / f"{file}.json").read_text())


cudnn = read("cudnn")
dense_ms = {n: cudnn["ms"][str(int(n[:-1]) * 1024)] for n in lengths}


def line(label, cell):
    print(f"| {label} | " + " | ".join(cell(n) for n in lengths) + " |")


def stages(preset, n):
    (row,) = read(f"replay-{preset}-{n}")["rows"]
    parts = " + ".join(f"{1e3 * row[stage]:.2f}" for stage in ("index_s", "select_s", "attend_s"))
    return f"{parts} ms, **{dense_ms[n] / (1e3 * row['total_s']):.2f}×**"


def density(preset, n):
    (row,) = read(f"replay-{preset}-{n}")["rows"]
    return f"{100 * row['density']:.1f} %"


def perplexity(preset, n):
    p = read(f"perplexity-{preset}-{n}")
    return f"{p['sale']:.3f} ({p['percent']:+.2f} %), {100 * p['density']:.1f} %"


def answers(preset, n):
    found = read(f"answers-{preset}-{n}")["answers"]
    return f"{sum(a['sale'].strip().startswith(a['expected'].strip()) for a in found)} of {len(found)}"


print(f"# Presets: {name}\n")
print(f"Printed by `bench/presets`, {version}, {datetime.date.today()}: {cudnn['device']}, PyTorch {cudnn['torch']}, beside cuDNN's SDPA in the")
print("same run. Attention: the 32 query and 16 kv heads of the bundled model's eight layers on held-out text with needles, as one")
print("problem (`sale replay`). Perplexity: the second half of so many tokens of held-out text, with the blocks kept there.\n")
print("| | " + " | ".join(n.upper() for n in lengths) + " |")
print("|---" * (len(lengths) + 1) + "|")
line("cuDNN dense", lambda n: f"{dense_ms[n]:.2f} ms")
for label, preset in PRESETS.items():
    line(f"{label}: density", lambda n: density(preset, n))
    line(f"{label}: index + select + attend, against cuDNN dense", lambda n: stages(preset, n))
    line(f"{label}: answers", lambda n: answers(preset, n))
    line(f"{label}: perplexity, density", lambda n: perplexity(preset, n))
