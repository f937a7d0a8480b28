#!/usr/bin/env python3
"""Time to first token of a Llama-3.1-8B-shaped model in transformers on one GPU: sdpa against sale.

Random weights, bf16, one prompt. Times do not depend on the weights, but what a sparse attention keeps does: with random
weights scores are flat. So each length runs at the density that the bundled model's attention shows there (bench/results/
nvidia-h100.md): every layer's threshold is searched for until that share of its blocks is kept.

Every figure is a median of ROUNDS (environment, 3) by CUDA events. "attention" is the attention function's own share of
the prefill, by events around each call. sdpa runs as transformers calls it, restricted to cuDNN's kernel; the logits of
the last token alone are computed, as generate() does.

usage: h100_python.py [--tokens 32k 64k 128k] [--layers 32] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import sale
import sale.transformers
from sale import _call

DENSITY = {16384: 0.153, 32768: 0.089, 65536: 0.062, 131072: 0.042}
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def model_of(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


class Timed:
    """An attention function with events around every call."""

    def __init__(self, function) -> None:
        self.function, self.pairs = function, []

    def __call__(self, *arguments, **keywords):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = self.function(*arguments, **keywords)
        end.record()
        self.pairs.append((begin, end))
        return result

    def milliseconds(self) -> float:
        total = sum(begin.elapsed_time(end) for begin, end in self.pairs)
        self.pairs.clear()
        return total


def prefill(model, ids, timed: Timed) -> dict:
    """Medians over ROUNDS: whole prefill up to the first token, and attention in it."""
    whole, attention = [], []
    for i in range(1 + ROUNDS):
        timed.pairs.clear()
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).item()
        seconds = time.perf_counter() - start
        if i:
            whole.append(seconds * 1e3)
            attention.append(timed.milliseconds())
    return {"ttft_ms": statistics.median(whole), "attention_ms": statistics.median(attention),
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30}  # fmt: skip


class Tuned:
    """An attention function that is dense, and on the way looks for each layer's threshold at which `density` of its
    blocks are kept: FP8 over a projection of rank 28, as a calibration would have it, here random and orthonormal."""

    def __init__(self, density: float) -> None:
        self.density, self.kept, self.options, self.threshold = density, [], {}, 0.01

    def __call__(self, module, query, key, value, *rest, **keywords):
        torch.manual_seed(module.layer_idx)
        basis = torch.linalg.qr(torch.randn(key.shape[1], 128, 28))[0].numpy()
        low, high, kept = 1e-9, 1e6, -1.0
        for _ in range(40):
            options = sale.Options(thresholds=self.threshold, format="fp8", q_projection=basis, k_projection=basis)
            kept = sale.stats(query, key, value, options=options).density
            if abs(kept / self.density - 1) < 0.03:
                break
            low, high = (self.threshold, high) if kept > self.density else (low, self.threshold)
            step = 1.5 if kept > self.density else 1 / 1.5
            wide = high / low > 2.25
            self.threshold = self.threshold * step if wide and low < self.threshold * step < high else (low * high) ** 0.5
        self.options[module.layer_idx] = options
        self.kept.append(kept)
        return sdpa_attention_forward(module, query, key, value, *rest, **keywords)

    def run(self, model, ids) -> float:
        """Sets the options of every layer; returns the mean density."""
        AttentionInterface.register("tuned", self)
        model.set_attn_implementation("tuned")
        with torch.no_grad():
            model(ids, use_cache=False, logits_to_keep=1)
        sale.transformers.use(model, options=sale.Options())
        for layer in model.model.layers:
            layer.self_attn._sale_options = self.options[layer.self_attn.layer_idx]
        return statistics.mean(self.kept)


def library_alone(call) -> float:
    """Microseconds of the call into the library that `call` makes."""
    made, seen = _call._run, []
    try:
        _call._run = lambda *arguments: seen.append(arguments) or made(*arguments)
        call()
    finally:
        _call._run = made
    samples = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(200):
            made(*seen[0])
        samples.append((time.perf_counter() - start) / 200 * 1e6)
        torch.cuda.synchronize()
    return round(statistics.median(samples), 1)


def overhead() -> dict:
    """Microseconds a call, by the host's clock, on a problem whose kernels take no time to speak of: 1,000 calls put on
    the stream. "library": the one call into it, with the same arguments; what is above it is the Python layer."""
    q, k = (torch.randn(1, h, 64, 128, device="cuda", dtype=torch.bfloat16) for h in (32, 8))
    result = {}
    options = sale.Options()
    index = sale.KeyIndex(like=k, capacity=64)
    index.update(k[0])
    calls = {"attention": lambda: sale.attention(q, k, k, options=options),
             "attention with index": lambda: sale.attention(q, k, k, options=options, index=index),
             "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)}
    for name, call in calls.items():
        for _ in range(20):
            call()
        samples = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(200):
                call()
            samples.append((time.perf_counter() - start) / 200 * 1e6)
            torch.cuda.synchronize()
        result[name] = round(statistics.median(samples), 1)
    result["library"] = library_alone(calls["attention"])
    result["Python layer"] = round(result["attention"] - result["library"], 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls["attention"]()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(200):
        graph.replay()
    torch.cuda.synchronize()
    result["attention replayed from a graph, kernels included"] = round((time.perf_counter() - start) / 200 * 1e6, 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", default=["32k", "64k", "128k"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    lengths = [int(n[:-1]) * 1024 if n.endswith("k") else int(n) for n in arguments.tokens]
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
              "transformers": transformers.__version__, "sale": sale.__version__, "layers": arguments.layers,
              "rounds": ROUNDS, "overhead_us": overhead(), "rows": []}  # fmt: skip
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}), flush=True)
    model = model_of(arguments.layers)
    forms_timed = {"dense": Timed(sdpa_attention_forward), "sale": Timed(sale.transformers.attention)}
    for form, timed in forms_timed.items():
        AttentionInterface.register(f"timed_{form}", timed)
    print("| tokens | form | TTFT | attention | rest | density | TTFT against sdpa | attention against sdpa |\n"
          "|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for tokens in lengths:
        ids = torch.randint(0, 128256, (1, tokens), device="cuda")
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            kept = Tuned(DENSITY.get(tokens, 0.1)).run(model, ids)
        forms = {}
        for form, timed in forms_timed.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            model.set_attn_implementation(f"timed_{form}")
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if form == "dense" else contextlib.nullcontext():
                forms[form] = prefill(model, ids, timed)
            base, row = forms["dense"], forms[form]
            print(f"| {tokens // 1024}K | {form} | {row['ttft_ms']:.0f} ms | {row['attention_ms']:.0f} ms | "
                  f"{row['ttft_ms'] - row['attention_ms']:.0f} ms | {kept if form == 'sale' else 1:.1%} | "
                  f"{base['ttft_ms'] / row['ttft_ms']:.2f}x | {base['attention_ms'] / row['attention_ms']:.2f}x |",
                  flush=True)  # fmt: skip
            result["rows"].append({"tokens": tokens, "form": form, "density": kept if form == "sale" else 1, **row})
            if arguments.json:
                with open(arguments.json, "w") as f:
                    json.dump(result, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
