"""Attention, its selection and its statistics, for numpy arrays and torch tensors."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from . import _c, _call
from ._arguments import INT32, INT64, described, flag, instance, integer, number, path
from ._call import Said, Stats
from ._tensors import api_of
from .blocks import BlockList, read_blocks
from .calibration import Calibration
from .index import KeyIndex
from .options import Options, dense_below_as_it_pays


@functools.lru_cache(maxsize=8)
def _read(path: str, *stamp: int) -> Calibration:
    return Calibration.read(path)


def _read_again(name: str) -> Calibration:
    """The file as it is now; read anew only when it has changed."""
    try:
        now = os.stat(name)
    except (OSError, ValueError) as e:
        raise ValueError(f"calibration: {e}") from None
    return _read(os.path.realpath(name), now.st_mtime_ns, now.st_size, now.st_ino)


@functools.lru_cache(maxsize=4096)
def _of_layer(calibration: Calibration, layer: int) -> Options:
    return dense_below_as_it_pays(calibration.options(layer))


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
        return instance("options", options, Options, "sale.Options")
    if calibration is not None:
        if layer is None:
            raise ValueError("layer: needed with a calibration")
        integer("layer", layer, -INT32, INT32)
        if not isinstance(calibration, Calibration):
            calibration = _read_again(path("calibration", calibration))
        return _of_layer(calibration, layer)
    if thresholds is None:
        return _of_thresholds(0.004)
    if isinstance(thresholds, (list, range)) and all(type(t) in (int, float) for t in thresholds):
        thresholds = tuple(thresholds)
    if type(thresholds) is float or (type(thresholds) is tuple and all(type(t) in (int, float) for t in thresholds)):
        return _of_thresholds(thresholds)
    return Options(thresholds=thresholds)


def _key(thresholds, calibration, layer, options) -> str:
    return _resolve(thresholds, calibration, layer, options).key


_key._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing the compiler


def _said(api, q, k, *, scale=None, causal=True, q_offset=None, attn_mask=None, cu_seqlens_q=None, cu_seqlens_k=None,
          page_table=None, k_lens=None, reference=None, window=None, window_sink=False) -> Said:  # fmt: skip
    """Checks what does not depend on the numbers in the tensors, and puts a mask into the form calls work with."""
    flag("causal", causal)
    if scale is None:
        scale = 0.0
    elif not number("scale", scale) > 0:
        raise ValueError(f"scale: {scale} is not positive")
    if q_offset is not None:
        integer("q_offset", q_offset, 0, INT64)
    if window is not None:
        integer("window", window, 1, INT32 + 1)
    if flag("window_sink", window_sink) and window is None:
        raise ValueError("window_sink: given without a window")
    if cu_seqlens_q is None and cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_k: given without cu_seqlens_q")
    spans = None
    if attn_mask is not None:
        _call.expect("q", api.shape("q", q), "[batch, heads, tokens, head_dim], since attn_mask is given,", 4)
        _call.expect("k", api.shape("k", k), "q's form", 4)
        offset = k.shape[2] - q.shape[2] if q_offset is None else q_offset
        spans = api.spans_of(_padding(api, attn_mask, q, k), offset)
        q_offset = None
    return Said(float(scale), causal, q_offset, spans, cu_seqlens_q, cu_seqlens_k, page_table, k_lens, reference,
                window or 0, window_sink)  # fmt: skip


def _padding(api, mask, q, k):
    """[batch, keys] of a key-padding mask."""
    form = f"a bool mask of keys, [{q.shape[0]}, {k.shape[-2]}] or [{q.shape[0]}, 1, 1, {k.shape[-2]}],"
    if type(mask) is not type(q) and not hasattr(mask, "dtype"):
        raise TypeError(f"attn_mask: {described(mask)}; {form} is needed")
    if "bool" not in str(mask.dtype):
        raise NotImplementedError(f"attn_mask: of type {mask.dtype}; {form} is supported")
    if not api.bools("attn_mask", mask):
        raise TypeError(f"attn_mask: a {type(mask).__name__}; {form} of q's kind is needed")
    shape = tuple(mask.shape)
    if len(shape) == 4 and shape[1:3] == (1, 1):
        mask = mask[:, 0, 0, :]
    if tuple(mask.shape) != (q.shape[0], k.shape[-2]):
        raise NotImplementedError(f"attn_mask: of shape {list(shape)}; {form} is supported")
    return mask


def _listed(index) -> Sequence[KeyIndex]:
    if index is None:
        return ()
    listed = (index,) if isinstance(index, KeyIndex) else index
    if not isinstance(listed, (list, tuple)) or not all(isinstance(i, KeyIndex) for i in listed):
        raise TypeError(f"index: {described(index)}; a sale.KeyIndex or a list of them is needed")
    return listed


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
    window: int | None = None,
    window_sink: bool = False,
    index: KeyIndex | Sequence[KeyIndex] | None = None,
    return_lse: bool = False,
    return_stats: bool = False,
):
    """Sparse attention of q over k and v, numpy or torch, float32, float16 or bfloat16, in any strides with a contiguous
    last axis. Grouped queries: q_heads is a multiple of kv_heads, and nothing is expanded. On the tensors' device; on
    CUDA on the current stream, capturable into a graph once these options have been used with these heads.

    Three forms:

        padded  q [batch, q_heads, Lq, D], k and v [batch, kv_heads, Lk, D]
        packed  q [tokens, q_heads, D], k and v [tokens, kv_heads, D], sequence b is tokens cu_seqlens[b] ..
                cu_seqlens[b + 1] - 1
        paged   k and v [pages, page_size, kv_heads, D], key j of sequence b in page page_table[b, j // page_size]; q as
                in either of the others; k_lens says how many keys a sequence has. CPUs copy the pages into place first

    thresholds   tau: one for all query heads, or one each. Default 0.004. 0: a dense head
    calibration  a Calibration or the path of its file, instead; `layer` says which layer of it
    options      sale.Options, instead: everything that can be set
    causal       True: query i sees keys up to i + q_offset. False: all keys
    q_offset     key position of the first query; default Lk - Lq, so that the last query sees the last key (chunked
                 prefill). torch's is_causal means 0
    scale        of the scores; default 1 / sqrt(D)
    attn_mask    padded form: which keys are visible, bool [batch, Lk] or [batch, 1, 1, Lk]. Rows at invisible positions are
                 0. One range for each sequence (left or right padding, a static cache) costs nothing; of other masks the
                 visible rows and keys are gathered first
    reference    k and v are a part of each sequence's keys: of every row the logarithm of the sum of exp of scores over the
                 sink and local keys of the whole, float32 [batch, q_heads, Lq] (see sale.parallel.ring)
    window       keys that a row sees: the last ones up to its position, its own among them (a sliding window). Blocks that
                 its tile has left behind cost nothing. None: all
    window_sink  rows see the options' sink besides their window
    index        KeyIndex of each sequence, up to date with its k, instead of an index made and forgotten
    return_lse   also the natural logarithm of the sum of exp of scores over the keys attended to, float32
                 [batch, q_heads, Lq], packed: [q_heads, tokens]
    return_stats also Stats (waits for the device)

    Returns out, of q's shape, type and order of axes; or a tuple of out and what else was asked for.

    Numbers that lie on a device and are needed on the host (cu_seqlens, k_lens, attn_mask) are read at every call, which
    waits for the device; lists cost nothing. Under torch.autocast q, k and v are cast as torch's own attention casts them.

    Raises ValueError (an argument is wrong: it is named; also tensors that require grad), TypeError (of a wrong type),
    IndexError (there is no such layer), NotImplementedError (not supported here, and why), MemoryError.
    """
    api = api_of("q", q)
    said = _said(api, q, k, scale=scale, causal=causal, q_offset=q_offset, attn_mask=attn_mask,
                 cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, page_table=page_table, k_lens=k_lens,
                 reference=reference, window=window, window_sink=window_sink)  # fmt: skip
    indexes = _listed(index)
    flag("return_lse", return_lse), flag("return_stats", return_stats)
    stats = None
    if return_stats or api.__name__.endswith("_numpy"):
        q, k, v = (api.check(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
        chosen = _resolve(thresholds, calibration, layer, options)
        out, lse, stats = _call.run(api, q, k, v, chosen, said, indexes, return_lse, return_stats)
    else:
        plain = isinstance(options, Options) and thresholds is None and calibration is None and layer is None
        key = options.key if plain else _key(thresholds, calibration, layer, options)
        out, lse = api.attention(q, k, v, key, said, indexes, return_lse)
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
    window: int | None = None,
    window_sink: bool = False,
    index: KeyIndex | Sequence[KeyIndex] | None = None,
) -> BlockList:
    """The key blocks that attention would keep, as compressed sparse rows. Arguments and errors: see attention."""
    api = api_of("q", q)
    q, k = api.check("q", q), api.check("k", k)
    said = _said(api, q, k, scale=scale, causal=causal, q_offset=q_offset, attn_mask=attn_mask,
                 cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, window=window,
                 window_sink=window_sink)  # fmt: skip
    chosen = _resolve(thresholds, calibration, layer, options)
    return _call.select(api, q, k, chosen, said, _listed(index), read_blocks)


def explain(q, k, *, options: Options | None = None, **arguments) -> str:
    """Which backend attention(q, k, k, options=options, **arguments) gets and why not another, its estimator and its
    bytes: one fact a line. Nothing is computed. arguments: scale to window_sink in attention's list."""
    api = api_of("q", q)
    q, k = api.cast("q", q), api.cast("k", k)
    said = _said(api, q, k, **arguments)
    return _call.explain(api, q, k, _resolve(None, None, None, Options() if options is None else options), said)


def backends() -> dict[str, str]:
    """All backends, fastest first: "" where this machine can run it, else the reason why not."""
    lib = _c.lib
    return {lib.sale_backend_name(i).decode(): lib.sale_backend_why_not(i).decode()
            for i in range(lib.sale_backend_count())}  # fmt: skip


def machine() -> str:
    """The CPU and the instructions used on it, in one line."""
    return _c.lib.sale_machine().decode()
