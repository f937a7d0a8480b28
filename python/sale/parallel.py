"""One long sequence over several processes (torch.distributed): Ulysses, all-gather and ring.

Every process holds a shard of the tokens: process r of n has tokens r * L / n .. (r + 1) * L / n - 1 of q, k and v,
[batch, heads, L / n, head_dim], and gets the same rows of the output. Any backend of torch.distributed whose devices
hold the tensors: gloo for the CPU, NCCL for CUDA devices.

    ulysses   heads are exchanged for tokens, each process runs whole sequences of its share of the heads. Needs heads
              divisible by the processes. What a single process would compute, bit for bit
    gather    every process gets all keys and values. Any heads; memory of the whole K and V. Each process codes all keys
    ring      keys and values go round; each process attends to one shard at a time and merges by log-sum-exp. Memory
              of two shards
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from . import _torch
from .attention import attention
from .options import Options


def _world(group) -> tuple[int, int]:
    return dist.get_rank(group), dist.get_world_size(group)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        _torch.check(name, x)
        if x.dim() != 4:
            raise ValueError(f"{name}: of shape {list(x.shape)}; [batch, heads, tokens, head_dim] is needed")
    if q.shape[2] != k.shape[2] or k.shape != v.shape:
        raise ValueError(f"k, v: of shapes {list(k.shape)}, {list(v.shape)}; q's shard has {q.shape[2]} tokens")


def _exchange(x: torch.Tensor, split: int, join: int, group) -> torch.Tensor:
    """All-to-all: each process gives one piece of axis `split` to each other and joins what it gets along `join`."""
    _, n = _world(group)
    pieces = [p.contiguous() for p in x.chunk(n, split)]
    got = [torch.empty_like(p) for p in pieces]
    if dist.get_backend(group) == "gloo":  # has no all-to-all of lists
        works = []
        rank = dist.get_rank(group)
        for i in range(n):
            if i == rank:
                got[i].copy_(pieces[i])
                continue
            peer = dist.get_global_rank(group, i) if group is not None else i
            works += [dist.isend(pieces[i], peer, group), dist.irecv(got[i], peer, group)]
        for work in works:
            work.wait()
    else:
        dist.all_to_all(got, pieces, group)
    return torch.cat(got, join)


def ulysses(q, k, v, *, options: Options | None = None, group=None, **arguments) -> torch.Tensor:
    """Sparse causal attention of this process's rows, by exchanging heads for tokens and back.

    options: of all heads, as a single process would use them; each process takes its slice. arguments: as of
    sale.attention, but for forms other than the padded one. ValueError when the heads cannot be divided: kv heads fewer
    than processes are repeated, when they divide them."""
    _check(q, k, v)
    rank, n = _world(group)
    options = Options() if options is None else options
    q_heads, kv_heads = q.shape[1], k.shape[1]
    if q_heads % n or (kv_heads % n and n % kv_heads):
        raise ValueError(f"q, k: {q_heads} and {kv_heads} heads cannot be divided among {n} processes")
    here = options.heads(rank * (q_heads // n), q_heads // n, q_heads // kv_heads)
    if kv_heads < n:
        k, v = (x.repeat_interleave(n // kv_heads, 1) for x in (k, v))
    whole = [_exchange(x, 1, 2, group) for x in (q, k, v)]
    return _exchange(attention(*whole, options=here, **arguments), 2, 1, group)


def gather(q, k, v, *, options: Options | None = None, group=None, **arguments):
    """Sparse causal attention of this process's rows over all keys, gathered. Returns what sale.attention does."""
    _check(q, k, v)
    rank, n = _world(group)
    if "q_offset" in arguments:
        raise ValueError("q_offset: given, but which rows a process has says it")
    whole = []
    for x in (k, v):
        pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(n)]
        dist.all_gather(pieces, x.contiguous(), group)
        whole.append(torch.cat(pieces, 2))
    return attention(q, *whole, options=options, q_offset=rank * q.shape[2], **arguments)


def merge(out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor):
    """(out, lse) of attention over the keys of both: out float32 [..., rows, d], lse [..., rows]. The keys must be
    disjoint. A row that saw no key has out 0 and lse -inf."""
    top = torch.maximum(lse_a, lse_b)
    safe = torch.where(top == -torch.inf, 0, top)  # of two rows without keys: no -inf - -inf
    a, b = torch.exp(lse_a - safe), torch.exp(lse_b - safe)
    total = a + b
    share = torch.where(total == 0, 1, total)
    out = (out_a * (a / share)[..., None]).add_(out_b * (b / share)[..., None])
    return out, safe + torch.log(total)
