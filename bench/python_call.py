"""Host time of one call of sale.attention on a problem so small that the call is all there is to it.

    SALE_LIBRARY=build/shared/src/libsale.so PYTHONPATH=python python bench/python_call.py

Microseconds of processor time of the calling thread, the least of many rounds, so that a busy machine says the same as a
quiet one. torch's own attention beside it, where torch is installed.
"""

import gc
import time

import numpy as np
import sale


def least(call, rounds: int = 400, calls: int = 50) -> float:
    call()
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(calls):
            call()
        best = min(best, time.thread_time_ns() - start)
    return best / calls / 1000


def main() -> None:
    gc.disable()
    options = sale.Options(thresholds=0.0, threads=1)
    x = np.random.default_rng(0).standard_normal((1, 1, 1, 16), np.float32)
    rows = {"numpy": lambda: sale.attention(x, x, x, options=options)}
    index = sale.KeyIndex(like=x, capacity=32, options=options)
    index.update(x[0])
    rows["numpy, with an index"] = lambda: sale.attention(x, x, x, options=options, index=index)
    packed, bounds = x[0], [0, 1]
    rows["numpy, packed"] = lambda: sale.attention(packed, packed, packed, options=options, cu_seqlens_q=bounds)
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None:
        torch.set_grad_enabled(False)
        t = torch.from_numpy(x)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        rows["torch"] = lambda: sale.attention(t, t, t, options=options)
        rows["torch, with lse"] = lambda: sale.attention(t, t, t, options=options, return_lse=True)
        rows["torch's own"] = lambda: sdpa(t, t, t)
    print(f"{sale.machine()}\n\n| call | us |\n|---|---|")
    for name, call in rows.items():
        print(f"| {name} | {least(call):.1f} |")


main()
