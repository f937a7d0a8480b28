"""FlashAttention's functions on torch, for causal attention over a paged cache in the model's own type; more is refused."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def store(key, value, key_cache, value_cache, slots, kind, k_scale, v_scale):
    """New keys and values go to their slots; padding has slots below 0."""
    if kind not in ("auto", "bfloat16", "float16"):
        raise NotImplementedError(f"a cache of type {kind}")
    used = slots >= 0
    page, place = torch.div(slots[used], key_cache.shape[1], rounding_mode="floor"), slots[used] % key_cache.shape[1]
    for cache, new in ((key_cache, key), (value_cache, value)):
        cache[page, place] = new[: len(slots)][used]


def _pages(cache, numbers, keys):
    """[1, heads, keys, head_dim] of one sequence."""
    return cache[numbers].reshape(-1, *cache.shape[2:])[:keys].transpose(0, 1)[None]


def attention(q, k, v, *, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal, window_size=None, softcap=0,
              alibi_slopes=None, s_aux=None, **_):  # fmt: skip
    plain = window_size is None or tuple(window_size) == (-1, -1)
    if causal is not True or not plain or softcap or alibi_slopes is not None or s_aux is not None:
        raise NotImplementedError("attention other than causal")
    starts = cu_seqlens_q.tolist()
    for b, keys in enumerate(seqused_k.tolist()):
        start, end = starts[b], starts[b + 1]
        if end == start:
            continue
        numbers = block_table[b, : -(-keys // k.shape[1])].long()
        rows, first = end - start, keys - (end - start)
        seen = None if rows == 1 else torch.arange(keys) <= torch.arange(first, keys)[:, None]
        made = scaled_dot_product_attention(
            q[start:end].transpose(0, 1)[None], _pages(k, numbers, keys), _pages(v, numbers, keys), seen,
            scale=softmax_scale, enable_gqa=True,
        )  # fmt: skip
        out[start:end] = made[0].transpose(0, 1)
    return out


def install() -> None:
    from vllm.v1.attention.backends import fa_utils

    for name, value in {
        "flash_attn_varlen_func": attention,
        "reshape_and_cache_flash": store,
        "get_scheduler_metadata": lambda *_, **__: None,
        "compile_flash_attn_varlen_func_from_specs": None,
        "is_flash_attn_varlen_func_available": lambda: True,
        "get_flash_attn_version": lambda *_, **__: 2,
        "is_fa_version_supported": lambda version: version == 2,
        "flash_attn_supports_sinks": lambda: False,
    }.items():
        setattr(fa_utils, name, value)
