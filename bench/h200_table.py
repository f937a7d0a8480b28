#!/usr/bin/env python3
"""What bench/h200 measured, as the page it saves.   usage: h200_table.py FOLDER NAME VERSION LENGTH..."""
import datetime
import json
import pathlib
import sys

import markdown

folder, name, version, lengths = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]


def read(file):
    return json.loads((folder / f"{file}.json").read_text())


def one(file):
    (row,) = read(file)["rows"]
    return row


cudnn = read("cudnn")
dense_ms = {n: cudnn["ms"][str(int(n[:-1]) * 1024)] for n in lengths}
FORMS = ["exact", "exact, compensated", "low-bit", "low-bit, compensated"]


def table(title, rows):
    markdown.table(title, lengths, rows)


def share(file):
    def cell(n):
        row = one(f"{file}-{n}")
        ms = 1e3 * (row["index_s"] + row["select_s"])
        return (f"{1e3 * row['index_s']:.3f} + {1e3 * row['select_s']:.3f} ms, {100 * ms / dense_ms[n]:.1f} % "
                f"(keeps {100 * row['density']:.0f} %)")
    return cell


def per_block(file):
    def cell(n):
        row = one(f"{file}-{n}")
        ratio = row["dense_s"] * row["density"] / row["attend_s"]
        return f"{1e3 * row['attend_s']:.2f} ms at {100 * row['density']:.1f} %, {100 * ratio:.0f} %"
    return cell


def replayed(form, what):
    def cell(n):
        (row,) = [r for r in read(f"replay-{n}")["rows"] if r["attention"] == form]
        return what(row, n)
    return cell


def stages(row, n):
    total = 1e3 * row["total_s"]
    return (f"{1e3 * row['index_s']:.2f} + {1e3 * row['select_s']:.2f} + {1e3 * row['attend_s']:.2f} ms, "
            f"**{dense_ms[n] / total:.2f}×**")


def right(file, key):
    def cell(n):
        answers = read(f"{file}-{n}")["answers"]
        return f"{sum(a[key].strip().startswith(a['expected'].strip()) for a in answers)} of {len(answers)}"
    return cell


print(f"# Hopper figures: {name}\n")
print(f"Printed by `bench/h200`, {version}, {datetime.date.today()}: {cudnn['device']}, PyTorch {cudnn['torch']}. bf16, causal, 32 query and")
print("8 kv heads of 128 on random data, beside cuDNN's SDPA in the same run; real attention: the 32 query and 16 kv heads of the bundled")
print("model's eight layers on held-out text with needles, as one problem (`sale replay`), thresholds of its")
print("faster preset. Medians; stages between events of one stream.")
table("Kernels", [
    ("cuDNN dense", lambda n: f"{dense_ms[n]:.2f} ms"),
    ("dense path / cuDNN", lambda n: f"{1e3 * one(f'all-{n}')['dense_s']:.2f} ms, {1e3 * one(f'all-{n}')['dense_s'] / dense_ms[n]:.3f}"),
    ("index + select, FP8 rank 128, of cuDNN", share("all")),
    ("index + select, FP8 rank 28, of cuDNN", share("projected")),
    ("attend, random lists: a kept block's rate, of the dense path's", per_block("lists")),
    ("… with compensation", per_block("compensated")),
    ("… low-bit", per_block("low")),
])
rows = [("density", replayed("exact", lambda r, n: f"{100 * r['density']:.1f} %"))]
rows += [(f"{f}: index + select + attend, against cuDNN dense", replayed(f, stages)) for f in FORMS]
rows += [(f"{f}: L1 error of the output", replayed(f, lambda r, n: f"{100 * r['relative_l1']:.1f} %")) for f in FORMS]
table("Real attention", rows)
long = [(f.stem[5:], one(f.stem)) for f in sorted(folder.glob("long-*.json"))]
print("\n## Longer\n\n| | " + " | ".join(n.upper() for n, _ in long) + " |")
print("|---" * (len(long) + 1) + "|")
for label, cell in [
    ("dense path", lambda r: f"{1e3 * r['dense_s']:.0f} ms"),
    ("index + select, FP8 rank 28", lambda r: f"{1e3 * (r['index_s'] + r['select_s']):.0f} ms"),
    ("workspace, key index included", lambda r: f"{r['workspace_bytes'] / 2**20:.0f} MiB"),
]:
    print(f"| {label} | " + " | ".join(cell(r) for _, r in long) + " |")


def perplexity(form):
    def cell(n):
        p = read(f"perplexity-{form}-{n}")
        return f"{p['sale']:.3f} ({p['percent']:+.2f} %)"
    return cell


table("What the model makes of it", [
    ("answers, dense", right("answers-exact", "dense")),
    *[(f"answers, {form}", right(f"answers-{form}", "sale")) for form in ("exact", "compensated", "low-bit")],
    ("held-out perplexity, dense", lambda n: f"{read(f'perplexity-exact-{n}')['dense']:.3f}"),
    *[(f"… {form}", perplexity(form)) for form in ("exact", "compensated", "low-bit")],
])
