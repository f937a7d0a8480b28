#!/usr/bin/env python3
"""Sequences and models over several GPUs: checked against one GPU, then timed. Run by torchrun, one process a GPU.

    torchrun --nproc-per-node 2 bench/h100_parallel.py [--tokens 32k 128k] [--json FILE]

1  ulysses, gather: the same bits as one GPU (sale.attention of the whole sequence); ring: as near to dense attention as one
   GPU's sparse one is
2  their time against one GPU's, 32 query and 8 kv heads of 128, bf16, thresholds that keep about 7 % of the blocks
3  tensor parallel transformers: the bundled model's answers and logits against one GPU's; where transformers is
   installed and the processes divide the model's two kv heads

Exits with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys

import sale
import sale.parallel
import torch
import torch.distributed as dist

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADS, KV_HEADS, D = 32, 8, 128


def sequence(tokens: int):
    generator = torch.Generator("cuda").manual_seed(7)
    q, k, v = (torch.randn(1, h, tokens, D, generator=generator, device="cuda", dtype=torch.bfloat16)
               for h in (HEADS, KV_HEADS, KV_HEADS))  # fmt: skip
    return q * 2, k, v


def options_at(density: float, q, k, v) -> tuple[sale.Options, float]:
    low, high = 1e-6, 1e6
    for _ in range(30):
        options = sale.Options(thresholds=(low * high) ** 0.5)
        kept = sale.stats(q, k, v, options=options).density
        if abs(kept / density - 1) < 0.05:
            break
        low, high = (options.thresholds[0], high) if kept > density else (low, options.thresholds[0])
    return options, kept


def milliseconds(call) -> float:
    """Median of the slowest process's time, by events."""
    samples = []
    for i in range(7):
        dist.barrier()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i > 1:
            slowest = torch.tensor(begin.elapsed_time(end), device="cuda")
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            samples.append(slowest.item())
    return statistics.median(samples)


def sequences(rank: int, n: int, tokens: int) -> dict:
    q, k, v = sequence(tokens)
    options, kept = options_at(0.07, q, k, v)
    mine = slice(rank * tokens // n, (rank + 1) * tokens // n)
    shard = [x[:, :, mine].contiguous() for x in (q, k, v)]
    whole = sale.attention(q, k, v, options=options)
    row = {"tokens": tokens, "density": kept, "one_ms": milliseconds(lambda: sale.attention(q, k, v, options=options))}
    for form in ("ulysses", "gather"):
        run = getattr(sale.parallel, form)
        out = run(*shard, options=options)
        same = torch.tensor(int(torch.equal(out, whole[:, :, mine])), device="cuda")
        far = (out.float() - whole[:, :, mine].float()).abs().max()
        dist.all_reduce(same, dist.ReduceOp.MIN)
        dist.all_reduce(far, dist.ReduceOp.MAX)
        row |= {f"{form}_same_bits": bool(same), f"{form}_largest_difference": far.item(),
                f"{form}_ms": milliseconds(lambda: run(*shard, options=options))}  # fmt: skip
    exact = sale.attention(q, k, v, thresholds=0.0)[:, :, mine]
    out = sale.parallel.ring(*shard, options=options)
    one = whole[:, :, mine]
    pairs = ((out, one), (out, exact), (one, exact), (exact, torch.zeros_like(exact)))
    sums = torch.stack([(a - b).abs().sum(dtype=torch.float32) for a, b in pairs])
    dist.all_reduce(sums)
    row |= {"ring_from_one": (sums[0] / sums[3]).item(), "ring_from_exact": (sums[1] / sums[3]).item(),
            "one_from_exact": (sums[2] / sums[3]).item()}  # fmt: skip
    return row | {"ring_ms": milliseconds(lambda: sale.parallel.ring(*shard, options=options)),
                  "ring_parts_ms": ring_parts(rank, n, shard, options)}  # fmt: skip


def ring_parts(rank: int, n: int, shard, options: sale.Options) -> list[float]:
    """This process's reference, and each of its shards' attention by itself. The last process's are the longest."""
    q, k, v = shard
    tokens, scale = q.shape[2], D**-0.5
    halo, sink = k[:, :, -options.local :], k[:, :, : options.sink]

    def make():
        return sale.parallel.reference(q, k, halo, sink, rank * tokens, options.local, scale)

    given, times = make(), [milliseconds(make)]
    for step in range(n):
        here = (options if step == rank else options.replace(sink=0)).replace(dense_below=0)
        times.append(milliseconds(lambda: sale.attention(q, k, v, options=here, q_offset=step * tokens, reference=given,
                                                         return_lse=True)))  # fmt: skip
    return times


def tensor_parallel(rank: int, n: int) -> dict:
    if importlib.util.find_spec("transformers") is None:
        return {"tp": "not run: transformers is not installed"}
    if 2 % n != 0:
        return {"tp": f"not run: {n} processes do not divide the model's 2 kv heads"}
    import sale.transformers
    from sale.eval import needle
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(ROOT / "models/tiny-llama-128k")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = needle.make_prompt(tokenizer, (ROOT / "models/text/middlemarch.txt").read_text(), "needle", 16384, facts=3)
    ids = tokenizer(prompt.context, return_tensors="pt").input_ids.cuda()
    alone = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sale", dtype=torch.bfloat16).cuda().eval()
    split = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sale", dtype=torch.bfloat16, tp_plan="auto").eval()
    with torch.no_grad():
        far = (alone(ids, logits_to_keep=1).logits - split(ids, logits_to_keep=1).logits).abs().max().item()
    heads = {len(m._sale_found[1].thresholds) for m in split.modules() if hasattr(m, "_sale_found")}
    answers, _ = needle.answer(split, tokenizer, prompt)
    return {"tp_answers": answers, "tp_asked": [f.answer for f in prompt.facts], "tp_logit_difference": far,
            "tp_heads_of_a_rank": sorted(heads)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", default=["32k", "64k", "128k"])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    rank, n = dist.get_rank(), dist.get_world_size()
    result = {"device": torch.cuda.get_device_name(), "gpus": n, "torch": torch.__version__, "rows": []}
    for tokens in arguments.tokens:
        row = sequences(rank, n, int(tokens[:-1]) * 1024)
        result["rows"].append(row)
        if rank == 0:
            print(json.dumps(row), flush=True)
    result |= tensor_parallel(rank, n)
    good = all(r[f"{f}_same_bits"] for r in result["rows"] for f in ("ulysses", "gather"))
    good &= all(r["ring_from_exact"] < 1.05 * r["one_from_exact"] for r in result["rows"])
    good &= result.get("tp_answers") == result.get("tp_asked")
    if rank == 0:
        print(json.dumps({k: v for k, v in result.items() if k != "rows"}), flush=True)
        print("good" if good else "FAILED", flush=True)
        if arguments.json:
            pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))
    dist.destroy_process_group()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
