#!/usr/bin/env python3
"""The dense path (threshold 0) beside PyTorch's scaled_dot_product_attention on the same cores: bf16, causal, 4 heads of 128.

The two take turns, ROUNDS times, so that a busy neighbour slows both; best and median of all samples are printed as a
Markdown table. Without torch only SALE's rows are printed, and a line that says so.

usage: dense_path.py SALE BACKEND THREADS TOKENS [TOKENS ...]      (ROUNDS from the environment, 4)
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import torch
except ImportError:
    torch = None

sale, backend, threads, lengths = sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(n) for n in sys.argv[4:]]
rounds = int(os.environ.get("ROUNDS", "4"))


def sale_seconds(tokens):
    line = f"qheads=4 kvheads=4 q={tokens} k={tokens} d=128 type=bf16 tau=0 data=normal threads={threads}"
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([sale, "bench", "--quiet", "--backend", backend, "--repeats", "3", "--json", file.name, line],
                       check=True, stdout=subprocess.DEVNULL)
        (row,) = json.load(open(file.name))["rows"]
    return row["dense_samples_s"]


def torch_seconds(tokens):
    q, k, v = (torch.randn(1, 4, tokens, 128, dtype=torch.bfloat16) for _ in range(3))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first is a warm-up


contenders = {f"SALE {backend}": sale_seconds}
if torch is not None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    contenders[f"PyTorch {torch.__version__}"] = torch_seconds

print("| what | tokens | best ms | median ms | GFLOP/s (best) |\n|---|---|---|---|---|")
for n in lengths:
    samples = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            samples[name] += run(n)
    for name, s in samples.items():
        flops = 4 * 4 * 128 * n * n / 2
        print(f"| {name} | {n} | {1e3 * min(s):.0f} | {1e3 * statistics.median(s):.0f} | {flops / min(s) / 1e9:.0f} |", flush=True)
if torch is None:
    print("\nPyTorch is not installed for this Python: no comparison.")
