#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on this CPU: bf16, causal, 4 heads of 128. One Markdown row per length.

usage: torch_sdpa.py THREADS TOKENS [TOKENS ...]
"""
import statistics
import sys
import time

import torch

threads, lengths = int(sys.argv[1]), [int(n) for n in sys.argv[2:]]
torch.set_num_threads(threads)
torch.manual_seed(1)
for n in lengths:
    q, k, v = (torch.randn(1, 4, n, 128, dtype=torch.bfloat16) for _ in range(3))
    seconds = []
    for i in range(4):
        start = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        if i > 0:  # the first is a warm-up
            seconds.append(time.perf_counter() - start)
    t = statistics.median(seconds)
    print(f"| PyTorch {torch.__version__} | {n} | {1e3 * t:.0f} | {4 * 4 * 128 * n * n / 2 / t / 1e9:.0f} |", flush=True)
