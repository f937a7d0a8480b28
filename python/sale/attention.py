"""Attention, its selection and its statistics, for numpy arrays and torch tensors."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from . import _c, _call
from ._call import Said, Stats
from ._tensors import api_of
from .blocks import BlockList, read_blocks
from .calibration import Calibration
from .index import KeyIndex
from .options import Options


@functools.lru_cache(maxsize=8)
def _read(path: str, stamp: int) -> Calibration:
    return Calibration.read(path)


@functools.lru_cache(maxsize=4096)
def _of_layer(calibration: Calibration, layer: int) -> Options:
    return calibration.options(layer)


@functools.lru_cache(maxsize=1024)
def _of_thresholds(thresholds) -> Options:
    return Options(thresholds=thresholds)


def _resolve(thresholds, calibration, layer: int | None, options: Options | None) -> Options:
    given = [name for name, x in (("thresholds", thresholds), ("calibration", calibration), ("options", options))
             if x is not None]  # fmt: skip
    if len(given) > 1:
        raise ValueError(f"{given[0]}, {given[1]}: both are given; one is enough")
    if calibration is None and layer is not None:
        raise ValueError("layer: given without a calibration")
    if options is not None:
        if not isinstance(options, Options):
            raise TypeError(f"options: a {type(options).__name__}; sale.Options is needed")
        return options
    if calibration is not None:
        if layer is None:
            raise ValueError("layer: needed with a calibration")
        if not isinstance(calibration, Calibration):
            calibration = _read(os.fspath(calibration), os.stat(calibration).st_mtime_ns)
        return _of_layer(calibration, layer)
    if thresholds is None:
        return _of_thresholds(0.004)
    if hasattr(thresholds, "tolist"):
        thresholds = thresholds.tolist()
    return _of_thresholds(tuple(thresholds) if isinstance(thresholds, (list, range)) else thresholds)


def _number(thresholds, calibration, layer, options) -> int:
    return _resolve(thresholds, calibration, layer, options).number


_number._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing the compiler


def _said(api, q, k, scale, causal, q_offset, attn_mask, cu_seqlens_q, cu_seqlens_k, page_table, k_lens,
          reference=None) -> Said:  # fmt: skip
    """Checks what does not depend on the numbers in the tensors, and puts a mask into the form calls work with."""
    if scale is None:
        scale = 0.0
    elif not scale > 0:
        raise ValueError(f"scale: {scale} is not positive")
    if cu_seqlens_q is None and cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_k: given without cu_seqlens_q")
    spans = None
    if attn_mask is not None:
        spans = api.spans_of(_padding(attn_mask, q, k), k.shape[2] - q.shape[2] if q_offset is None else q_offset)
        q_offset = None
    return Said(float(scale), causal, q_offset, spans, cu_seqlens_q, cu_seqlens_k, page_table, k_lens, reference)


def _padding(mask, q, k):
    """[batch, keys] of a key-padding mask."""
    form = f"a bool mask of keys, [{q.shape[0]}, {k.shape[-2]}] or [{q.shape[0]}, 1, 1, {k.shape[-2]}],"
    if "bool" not in str(mask.dtype):
        raise NotImplementedError(f"attn_mask: of type {mask.dtype}; {form} is supported")
    shape = tuple(mask.shape)
    if len(shape) == 4 and shape[1:3] == (1, 1):
        mask = mask[:, 0, 0, :]
    if tuple(mask.shape) != (q.shape[0], k.shape[-2]):
        raise NotImplementedError(f"attn_mask: of shape {list(shape)}; {form} is supported")
    return mask


def _listed(index) -> Sequence[KeyIndex]:
    return () if index is None else (index,) if isinstance(index, KeyIndex) else tuple(index)


def attention(
    q,
    k,
    v,
    *,
    thresholds: float | Sequence[float] | None = None,
    calibration: Calibration | str | os.PathLike | None = None,
    layer: int | None = None,
    options: Options | None = None,
    causal: bool = True,
    scale: float | None = None,
    q_offset: int | None = None,
    attn_mask=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    page_table=None,
    k_lens=None,
    reference=None,
    index: KeyIndex | Sequence[KeyIndex] | None = None,
    return_lse: bool = False,
    return_stats: bool = False,
):
    """Sparse attention of q over k and v, numpy or torch, float32, float16 or bfloat16, in any strides with a contiguous
    last axis. Grouped queries: q_heads is a multiple of kv_heads, and nothing is expanded. On the tensors' device; on
    CUDA on the current stream, capturable into a graph once the same call has been made before.

    Three forms:

        padded  q [batch, q_heads, Lq, D], k and v [batch, kv_heads, Lk, D]
        packed  q [tokens, q_heads, D], k and v [tokens, kv_heads, D], sequence b is tokens cu_seqlens[b] ..
                cu_seqlens[b + 1] - 1
        paged   k and v [pages, page_size, kv_heads, D], key j of sequence b in page page_table[b, j // page_size]; q as
                in either of the others; k_lens says how many keys a sequence has (CUDA devices)

    thresholds   tau: one for all query heads, or one each. Default 0.004. 0: a dense head
    calibration  a Calibration or the path of its file, instead; `layer` says which layer of it
    options      sale.Options, instead: everything that can be set
    causal       True: query i sees keys up to i + q_offset. False: all keys
    q_offset     key position of the first query; default Lk - Lq, so that the last query sees the last key (chunked
                 prefill). torch's is_causal means 0
    scale        of the scores; default 1 / sqrt(D)
    attn_mask    padded form: which keys are visible, bool [batch, Lk] or [batch, 1, 1, Lk]; one range for each sequence
                 (left or right padding, a static cache). Rows at invisible positions are 0
    reference    k and v are a part of each sequence's keys: of every row the logarithm of the sum of exp of scores over the
                 sink and local keys of the whole, float32 [batch, q_heads, Lq] (see sale.parallel.ring)
    index        KeyIndex of each sequence, up to date with its k, instead of an index made and forgotten
    return_lse   also the natural logarithm of the sum of exp of scores over the keys attended to, float32
                 [batch, q_heads, Lq], packed: [q_heads, tokens]
    return_stats also Stats (waits for the device)

    Returns out, of q's shape, type and order of axes; or a tuple of out and what else was asked for.

    Numbers that lie on a device and are needed on the host (cu_seqlens, k_lens, attn_mask) are read once for a tensor
    that is not written to; lists cost nothing.

    Raises ValueError (an argument is wrong: it is named; also tensors that require grad), TypeError (of a wrong type),
    NotImplementedError (not supported here, and why), MemoryError.
    """
    api = api_of("q", q)
    said = _said(api, q, k, scale, causal, q_offset, attn_mask, cu_seqlens_q, cu_seqlens_k, page_table, k_lens,
                 reference)  # fmt: skip
    indexes = _listed(index)
    stats = None
    if return_stats or api.__name__.endswith("_numpy"):
        for name, x in (("q", q), ("k", k), ("v", v)):
            api.check(name, x)
        chosen = _resolve(thresholds, calibration, layer, options)
        out, lse, stats = _call.run(api, q, k, v, chosen, said, indexes, return_lse, return_stats)
    else:
        plain = options is not None and thresholds is None and calibration is None and layer is None
        number = options.number if plain else _number(thresholds, calibration, layer, options)
        out, lse = api.attention(q, k, v, number, said, indexes, return_lse)
    if return_lse:
        return (out, lse, stats) if return_stats else (out, lse)
    return (out, stats) if return_stats else out


def stats(q, k, v, **arguments) -> Stats:
    """What attention(q, k, v, **arguments) does: seconds of its stages, blocks kept by every head."""
    return attention(q, k, v, **arguments, return_stats=True)[-1]


def select(
    q,
    k,
    *,
    thresholds: float | Sequence[float] | None = None,
    calibration: Calibration | str | os.PathLike | None = None,
    layer: int | None = None,
    options: Options | None = None,
    causal: bool = True,
    scale: float | None = None,
    q_offset: int | None = None,
    attn_mask=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    index: KeyIndex | Sequence[KeyIndex] | None = None,
) -> BlockList:
    """The key blocks that attention would keep, as compressed sparse rows. Arguments and errors: see attention."""
    api = api_of("q", q)
    for name, x in (("q", q), ("k", k)):
        api.check(name, x)
    said = _said(api, q, k, scale, causal, q_offset, attn_mask, cu_seqlens_q, cu_seqlens_k, None, None)
    chosen = _resolve(thresholds, calibration, layer, options)
    plan, blocks = _call.select(api, q, k, k, chosen, said, _listed(index))
    try:
        return read_blocks(plan, blocks)
    finally:
        _c.lib.sale_blocks_destroy(blocks)


def explain(q, k, *, options: Options | None = None, **said) -> str:
    """Which backend attention(q, k, k, options=options, **said) gets and why not another, its estimator and its bytes:
    one fact a line. Nothing is computed."""
    api = api_of("q", q)
    plan, _, _ = _call.planned(api, q, k, k, Options() if options is None else options, Said(**said), False)
    return plan.explain()


def backends() -> dict[str, str]:
    """All backends, fastest first: "" where this machine can run it, else the reason why not."""
    lib = _c.lib
    return {lib.sale_backend_name(i).decode(): lib.sale_backend_why_not(i).decode()
            for i in range(lib.sale_backend_count())}  # fmt: skip


def machine() -> str:
    """The CPU and the instructions used on it, in one line."""
    return _c.lib.sale_machine().decode()
