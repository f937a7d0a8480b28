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

from . import _call, _torch
from ._arguments import described, flag, instance, number
from ._estimator import Estimator, Heads, estimator_for
from .attention import attention
from .options import Options

TILE = 64  # rows that share their local keys


def _world(group) -> tuple[int, int]:
    return dist.get_rank(group), dist.get_world_size(group)


def _checked(q, k, v, options, group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Options]:
    q, k, v = (_torch.check(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    for name, x in (("q", q), ("k", k), ("v", v)):
        _torch.view(name, x)
        if x.dim() != 4:
            raise ValueError(f"{name}: of shape {list(x.shape)}; [batch, heads, tokens, head_dim] is needed")
    if group is not None:
        instance("group", group, dist.ProcessGroup, "a process group of torch.distributed")
    if q.shape[2] != k.shape[2] or k.shape != v.shape:
        raise ValueError(f"k, v: of shapes {list(k.shape)}, {list(v.shape)}; q's shard has {q.shape[2]} tokens")
    return q, k, v, Options() if options is None else instance("options", options, Options, "sale.Options")


def _no_statistics(options: Options, arguments: dict) -> None:
    """Refused before anything is sent: no process would wait for one that has left."""
    for name in ("return_lse", "return_stats"):
        if flag(name, arguments.get(name, False)):
            raise NotImplementedError(f"{name}: not with parts of a sequence in several processes")
    if options.audit:
        raise NotImplementedError("audit: not with parts of a sequence in several processes; `gather` can")


class _Transfer:
    """Tensors on their way to and from other processes of the group, by rank; `wait` before touching either."""

    def __init__(self, sends: dict[int, torch.Tensor], receives: dict[int, torch.Tensor], group) -> None:
        self.held = sends, receives  # must live until they are gone
        name = (lambda r: dist.get_global_rank(group, r)) if group is not None else (lambda r: r)
        moves = [dist.P2POp(dist.isend, x, name(to), group) for to, x in sends.items()]
        moves += [dist.P2POp(dist.irecv, x, name(of), group) for of, x in receives.items()]
        self.works = dist.batch_isend_irecv(moves) if moves else []

    def wait(self) -> None:
        for work in self.works:
            work.wait()


def _exchange(x: torch.Tensor, split: int, join: int, group) -> torch.Tensor:
    """All-to-all: each process gives one piece of axis `split` to each other and joins what it gets along `join`."""
    rank, n = _world(group)
    pieces = [p.contiguous() for p in x.chunk(n, split)]
    got = [p if i == rank else torch.empty_like(p) for i, p in enumerate(pieces)]
    others = [i for i in range(n) if i != rank]
    _Transfer({i: pieces[i] for i in others}, {i: got[i] for i in others}, group).wait()
    return torch.cat(got, join)


def ulysses(q, k, v, *, options: Options | None = None, group=None, **arguments) -> torch.Tensor:
    """Sparse causal attention of this process's rows, by exchanging heads for tokens and back.

    options: of all heads, as a single process would use them; each process takes its slice. arguments: as of
    sale.attention, but for forms other than the padded one and what it returns besides. ValueError when the heads cannot be divided: kv heads fewer
    than processes are repeated, when they divide them."""
    q, k, v, options = _checked(q, k, v, options, group)
    _no_statistics(options, arguments)
    rank, n = _world(group)
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
    q, k, v, options = _checked(q, k, v, options, group)
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
    for name, x in (("out_a", out_a), ("lse_a", lse_a), ("out_b", out_b), ("lse_b", lse_b)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout is not torch.strided:
            raise TypeError(f"{name}: {described(x)}; a dense tensor of floats is needed")
        if isinstance(out_a, torch.Tensor) and x.device != out_a.device:
            raise ValueError(f"{name}: on {x.device}; out_a is on {out_a.device}")
    for name, x, of in (("out_b", out_b, out_a.shape), ("lse_a", lse_a, out_a.shape[:-1]), ("lse_b", lse_b, out_a.shape[:-1])):
        if x.shape != of:
            raise ValueError(f"{name}: of shape {list(x.shape)}; {list(of)} is needed")
    top = torch.maximum(lse_a, lse_b)
    safe = torch.where(top == -torch.inf, 0, top)  # of two rows without keys: no -inf - -inf
    a, b = torch.exp(lse_a - safe), torch.exp(lse_b - safe)
    total = a + b
    share = torch.where(total == 0, 1, total)
    out = (out_a * (a / share)[..., None]).add_(out_b * (b / share)[..., None])
    return out, safe + torch.log(total)


# ---- ring ------------------------------------------------------------------------------------------------------------


def reference(q, k, halo, sink, start: int, local: int, scale: float) -> torch.Tensor:
    """float32 [batch, q_heads, rows]: of rows from key position `start` on, the logarithm of the sum of exp of scores over
    the sink keys and the local keys, those of the blocks that are always kept (docs/numerics.md, section 3).

    q [B, Hq, n, D], k [B, Hkv, n, D] of the same positions, halo [B, Hkv, local, D] the keys before them (anything when
    start is 0), sink [B, Hkv, sinks, D] the sequence's first keys."""
    windows = torch.cat([halo, k], 2).unfold(2, local + TILE, TILE).mT  # [B, Hkv, tiles, local + TILE, D]
    tiles, sinks = q.shape[2] // TILE, sink.shape[2]
    edge = min(tiles, -(-max(0, sinks + local - start) // TILE))  # from there on sink and local keys are apart
    made = []
    if edge:
        made.append(_reference_at_edge(q[:, :, : edge * TILE], windows[:, :, :edge], sink, start, local, scale))
    if edge < tiles:
        made.append(_reference_apart(q[:, :, edge * TILE :], windows[:, :, edge:tiles], sink, scale))
    return torch.cat(made, 2)


def _reference_at_edge(q, windows, sink, start: int, local: int, scale: float) -> torch.Tensor:
    batch, heads, rows, d = q.shape
    kv_heads, sinks, tiles = sink.shape[1], sink.shape[2], rows // TILE
    queries = q.float().reshape(batch, kv_heads, heads // kv_heads, tiles, TILE, d)
    row = start + torch.arange(rows, device=q.device).reshape(tiles, TILE, 1)
    key = start - local + TILE * torch.arange(tiles, device=q.device)[:, None, None]
    key = key + torch.arange(local + TILE, device=q.device)
    near = torch.einsum("bhgtrd,bhtwd->bhgtrw", queries, windows.float()).mul_(scale)
    near.masked_fill_((key > row) | (key < sinks), -torch.inf)  # the sink counts once
    far = torch.einsum("bhgtrd,bhsd->bhgtrs", queries, sink.float()).mul_(scale)
    far.masked_fill_(torch.arange(sinks, device=q.device) > row, -torch.inf)
    return torch.cat([near, far], -1).logsumexp(-1).reshape(batch, heads, rows)


def _reference_apart(q, windows, sink, scale: float) -> torch.Tensor:
    """Every tile as a sequence of its own, all of whose keys count."""
    batch, heads, rows, d = q.shape
    tiles = rows // TILE
    keys = torch.cat([sink[:, :, None].expand(-1, -1, tiles, -1, -1), windows], 3).transpose(1, 2).flatten(0, 1)
    queries = q.unflatten(2, (tiles, TILE)).transpose(1, 2).flatten(0, 1)
    _, lse = attention(queries, keys, keys, thresholds=0.0, scale=scale, return_lse=True)
    return lse.unflatten(0, (batch, tiles)).transpose(1, 2).reshape(batch, heads, rows)


class _Layer:
    """What parts of the keys are attended to with. smoothing: [batch, kv_heads, head_dim], each sequence's own, for this
    call alone; None: what the options say, or the part's own keys."""

    def __init__(self, options: Options, heads: Heads, smoothing) -> None:
        own = [options] if smoothing is None else [options.replace(smoothing=mean) for mean in smoothing]
        self.options = options
        self.estimators = None if smoothing is None else [Estimator(o, heads) for o in own]

    def attend(self, q, k, v, said: _call.Said):
        """(out, lse) of the same batch."""
        if self.estimators is None:
            return _torch.attention(q, k, v, self.options.key, said, (), True)
        made = []
        for b, estimator in enumerate(self.estimators):
            one, mine = slice(b, b + 1), said._replace(reference=said.reference[b : b + 1])
            made.append(_call.run(_torch, q[one], k[one], v[one], estimator.options, mine, (), True, False, estimator))
        return torch.cat([out for out, _, _ in made]), torch.cat([lse for _, lse, _ in made])


def ring(q, k, v, *, options: Options | None = None, scale: float | None = None, group=None, return_lse: bool = False):
    """Sparse causal attention of this process's rows; keys and values go round the processes.

    Per row the sink and local keys decide what is kept, as in a single process: the first process's sink keys are sent to
    all, each shard's last keys to the next, and from them every process works out its rows' reference once. INT codes are
    of keys less the mean of the whole sequence, so the same blocks are kept as by one process, but where an estimate lies
    within rounding of its threshold. FP8 has a mean and a scale a shard: the same but where it lies within the codes' own
    rounding. Outputs differ by the blocks decided otherwise and by rounding.

    ValueError: shards that are no multiple of the rows of the backend's tiles (64; on Hopper 128), or shorter than sink and
    local keys together. Process r has r + 1 shards to attend to, so the last one sets the time."""
    q, k, v, options = _checked(q, k, v, options, group)
    _no_statistics(options, {})
    rank, n = _world(group)
    flag("return_lse", return_lse)
    view = _torch.view("q", q)
    heads = Heads(q.shape[1], k.shape[1], q.shape[3], view.dtype, view.device)
    tokens, tile = q.shape[2], estimator_for(options, heads).q_block
    if tokens % tile or tokens < options.sink + options.local:
        raise ValueError(f"q: a shard of {tokens} tokens is no multiple of {tile}, or shorter than sink and local keys, "
                         f"{options.sink + options.local}")  # fmt: skip
    scale = q.shape[3] ** -0.5 if scale is None else number("scale", scale)
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale: {scale} is not positive and finite")
    short = tokens * n < options.dense_below_on(heads.device)
    options = options.dense() if short else options.replace(dense_below=0)
    first = dist.get_global_rank(group, 0) if group is not None else 0

    smoothing = None
    if options.smoothing is None and options.format_on(heads.device) != "fp8":
        mean = k.sum(2, dtype=torch.float64)
        dist.all_reduce(mean, group=group)
        smoothing = (mean / (tokens * n)).float().cpu().numpy()
    sink = k[:, :, : options.sink].clone(memory_format=torch.contiguous_format)
    dist.broadcast(sink, first, group)
    after = [rank + 1] if rank + 1 < n else []
    before = [rank - 1] if rank else []
    tail = k[:, :, tokens - options.local :].contiguous()
    halo = torch.empty_like(tail)
    _Transfer({r: tail for r in after}, {r: halo for r in before}, group).wait()
    given = reference(q, k, halo if rank else tail, sink, rank * tokens, options.local, scale)

    own = _Layer(options, heads, smoothing)
    earlier = _Layer(options.replace(sink=0), heads, smoothing) if rank else None
    out = lse = None
    shard = torch.stack([k, v])
    for step in range(rank + 1):  # shards behind this process's own are in the future
        # The next shard travels while this one is attended to.
        coming = torch.empty_like(shard)
        transfer = _Transfer({r: shard for r in after}, {r: coming for r in before if step < rank}, group)
        k, v = shard
        said = _call.Said(scale, True, step * tokens, reference=given)
        part, part_lse = (own if step == rank else earlier).attend(q, k, v, said)
        part = part.float()
        out, lse = (part, part_lse) if out is None else merge(out, lse, part, part_lse)
        transfer.wait()
        shard = coming
    out = out.to(q.dtype)
    return (out, lse) if return_lse else out
