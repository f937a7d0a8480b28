#!/usr/bin/env python3
"""cuDNN's (or KERNEL's: FLASH_ATTENTION) scaled dot-product attention through PyTorch: bf16, causal, 32 query / 8 kv heads of 128, one prompt.

Median of ROUNDS (environment, 5) timings by CUDA events, as JSON: {"device": name, "capability": "9.0", "torch": version,
"ms": {tokens: ms}}.
The first argument says where to write it; the others are lengths. Random data: the time does not depend on it.

usage: cudnn.py FILE TOKENS [TOKENS ...]
"""
import json
import os
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

path, lengths = sys.argv[1], [int(n) for n in sys.argv[2:]]
kernel = getattr(SDPBackend, os.environ.get("KERNEL", "CUDNN_ATTENTION"))
rounds = int(os.environ.get("ROUNDS", "5"))
torch.manual_seed(0)
ms = {}
for tokens in lengths:
    q = torch.randn(1, 32, tokens, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, 8, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    samples = []
    with sdpa_kernel(kernel):
        for i in range(2 + rounds):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            end.record()
            end.synchronize()
            if i >= 2:
                samples.append(begin.elapsed_time(end))
    ms[tokens] = statistics.median(samples)
    del q, k, v
about = {"device": torch.cuda.get_device_name(), "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
         "torch": torch.__version__, "ms": ms}
json.dump(about, open(path, "w"))
