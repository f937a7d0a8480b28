"""SALE in Hugging Face transformers (5.x): importing this module registers the attention "sale".

    import sale.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sale")

Prefill is sparse, decoding is dense. Which of transformers' situations are served, which are left to sdpa, and which are
refused by name: docs/python.md. Thresholds come from a calibration: the one given to `use`, else the one found for the
model (see `find_calibration`), else one threshold for every head, with a warning.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from . import _call, _torch, _transformers_masks
from ._arguments import instance, path
from ._calibrate import calibrate
from ._call import Said
from ._transformers_cache import before_forward, current_layer
from ._transformers_options import (
    attention_modules, dimensions_of, find_calibration, folder_of, found_for, found_here, key_while_compiling,
    model_fingerprint, of_layer, slice_of,
)  # fmt: skip
from .calibration import Calibration
from .options import Options

__all__ = ["NAME", "attention", "audits", "calibrate", "find_calibration", "folder_of", "mask", "model_fingerprint", "paged", "use"]

NAME = "sale"
# Fewer rows than a query tile are decoding (or a draft to verify): every key counts for them, and a tile mostly empty
# is no work to save.
SHORTEST = 64
mask = _transformers_masks.mask


def use(model, calibration: Calibration | str | os.PathLike | None = None, *, options: Options | None = None) -> None:
    """Sets what a model's attention runs with, and its implementation to "sale".

    calibration  a Calibration or the path of its file; None: the one found for the model, or threshold 0.004
    options      sale.Options for every layer, instead. What their audit finds is summed up, see `audits`

    Under tensor parallelism every process takes its slice. ValueError when the calibration is for another model.
    """
    instance("model", model, torch.nn.Module, "a model of transformers")
    if not hasattr(getattr(model, "config", None), "_attn_implementation"):
        raise TypeError(f"model: a {type(model).__name__}; a model of transformers is needed")
    if calibration is not None and options is not None:
        raise ValueError("calibration, options: both are given; one is enough")
    if options is not None:
        instance("options", options, Options, "sale.Options")
    elif calibration is not None:
        if not isinstance(calibration, Calibration):
            calibration = Calibration.read(path("calibration", calibration))
        calibration.check(**dimensions_of(model.config))
    modules = attention_modules(model)
    found = None
    if options is None and calibration is None:
        d = dimensions_of(model.config)
        found = found_for(model.config._name_or_path, tuple(d.values()), _torch.ordinal_of(model.device))
    chosen = []
    for module in modules:
        if options is not None:
            mine = options
        elif calibration is not None:
            mine = of_layer(calibration, module.layer_idx)
        else:
            mine = found(module.layer_idx)
        chosen.append(slice_of(module, mine))
    for module, mine in zip(modules, chosen):
        _give(module, mine)
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)


def _give(module, options: Options) -> None:
    if "_sale_options" not in module.__dict__:
        module.register_forward_pre_hook(before_forward, with_kwargs=True)
    module._sale_options = options
    module._sale_audits = None


def audits(model) -> dict[int, np.ndarray]:
    """What was audited since `use` gave the model options that ask for it: by layer number, of every query head (of this
    process, under tensor parallelism) the sums of sale_head_audit in include/sale/sale.h, [q_heads] of fields rows, error,
    size, mass, least_mass. error / size is the relative L1 error, mass / rows the share of attention in kept blocks. Rows
    left to torch's attention (decoding among them) are not audited."""
    instance("model", model, torch.nn.Module, "a model of transformers")
    found = ((m.layer_idx, getattr(m, "_sale_audits", None)) for m in attention_modules(model))
    return {layer: sums.copy() for layer, sums in found if sums is not None}


def _attend(module, query, key, value, options: Options, said: Said, indexes=(), sinks=None) -> torch.Tensor:
    """By these options; an audit's sums go to the module."""
    if not options.audit:
        return _join(*_torch.attention(query, key, value, options.key, said, indexes, sinks is not None), sinks)
    query, key, value = (_torch.check(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
    out, lse, stats = _call.run(_torch, query, key, value, options, said, indexes, sinks is not None, with_stats=True)
    if getattr(module, "_sale_audits", None) is None:
        module._sale_audits = _call.no_audits(query.shape[1])
    for found in stats.audits:
        _call.add_audits(module._sale_audits, slice(None), found)
    return _join(out, lse, sinks)


def _join(out: torch.Tensor, lse: torch.Tensor | None, sinks: torch.Tensor | None) -> torch.Tensor:
    """What attention is once each row's sink has joined its softmax: less, by the weight that the sink takes."""
    if sinks is None:
        return out
    return (out.float() * (lse - sinks[None, :, None]).sigmoid()[..., None]).to(out.dtype)


# ---- attention -------------------------------------------------------------------------------------------------------

_ORDINARY = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal", "sliding_window"}
_REFUSED = ("softcap", "position_bias", "output_attentions", "cu_seq_lens_q")
_SINKS = ("s_aux", "sinks")
_told: set[str] = set()


def _extras(source: str) -> tuple[str, ...]:
    """What the attention of a model's source file takes that plain attention does not: the file's own eager function
    says it."""
    found = _extras_of.get(source)
    if found is None:
        eager = getattr(sys.modules.get(source), "eager_attention_forward", None)
        names = inspect.signature(eager).parameters if eager is not None else ()
        known = {*_ORDINARY, *_REFUSED, *_SINKS, "kwargs"}
        found = _extras_of[source] = tuple(n for n in names if n not in known)
    return found


_extras_of: dict[str, tuple[str, ...]] = {}
_extras._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing the compiler


def _refuse_all(module, dropout: float, given: dict, more: tuple[str, ...] = ()) -> None:
    _refuse("dropout", dropout)
    for name in (*_REFUSED, *_extras(type(module).__module__), *more):
        _refuse(name, given.get(name))


def _refuse(name: str, value) -> None:
    if isinstance(value, torch.Tensor) or (value is not None and value is not False and value != 0):
        raise NotImplementedError(
            f"sale: {name} is not supported; use attn_implementation 'eager' or 'sdpa' for this model"
        )


def _sinks(module, query: torch.Tensor, given: dict) -> torch.Tensor | None:
    """Learned sinks: of every query head one logit that joins its rows' softmax and has no value, [q_heads]."""
    found = next((given[name] for name in _SINKS if given.get(name) is not None), getattr(module, "sinks", None))
    if found is None:
        return None
    if not isinstance(found, torch.Tensor) or found.shape != query.shape[1:2]:
        raise NotImplementedError(f"sale: sinks other than one for each of {query.shape[1]} query heads are not supported")
    return found.float()


def _by_torch(module, query, key, value, mask, scaling, is_causal, sinks) -> torch.Tensor:
    """What is not SALE's. mask: bool, or None: all keys, or those before each row where is_causal."""
    if sinks is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=is_causal)[0]
    rows, keys = query.shape[2], key.shape[2]
    if mask is None and is_causal:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.mT).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    total = torch.logaddexp(scores.logsumexp(-1, keepdim=True), sinks[None, :, None, None])
    return ((scores - total).exp().to(value.dtype) @ value).transpose(1, 2)


def _why_not(module, query, key, value, attention_mask, ours, is_causal, sliding_window) -> str | None:
    """Why this is not attention of ours: what SALE is for are rows of a decoder that see the keys before them."""
    if sliding_window is not None and not ours:
        return "attention with a sliding window that no mask of ours tells"
    if attention_mask is not None:
        if not ours:
            return "attention with a mask other than causal and padding"
        if attention_mask.shape[0] != query.shape[0]:
            return "attention with a mask for another batch"
        if not torch.compiler.is_compiling() and _transformers_masks.window_of(attention_mask):
            if _transformers_masks.are_gathered(attention_mask):
                return "attention with a sliding window and padding between tokens"
    elif not _is_causal(module, is_causal):
        return "attention that is not causal"
    elif query.shape[2] != key.shape[2] and query.shape[2] > 1:
        return "attention over keys of which no mask says where the queries stand"
    if not isinstance(getattr(module, "layer_idx", None), int):
        return "attention without a layer number"
    d = query.shape[-1]
    if value.shape[-1] != d or key.shape[-1] != d or d % 16 or not 16 <= d <= 256:
        return f"attention with heads of {d} and {value.shape[-1]} coordinates"
    if not _torch.supports(query) or query.shape[1] % key.shape[1]:
        return f"attention of {query.dtype} on {query.device.type} with {query.shape[1]} and {key.shape[1]} heads"
    return None


def _is_causal(module, said: bool | None) -> bool:
    """Whether rows see no later keys where there is no mask. `mask` makes one for all that is causal, so without one
    everything is visible, as for eager, whatever a module says of itself: sdpa goes by that, and is not causal alike in
    some encoders. Compiled it is the other way round: none stands for plain causal attention, and other masks are made."""
    if said is not None:
        return said
    return torch.compiler.is_compiling() and getattr(module, "is_causal", True)


def _say(module, reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        warnings.warn(f"sale: {reason} is left to torch's attention (met first in {type(module).__name__})", stacklevel=3)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The attention function that models call: query [B, q_heads, Lq, D], key and value [B, kv_heads, Lk, D] (not
    expanded), attention_mask from `mask`. Returns ([B, Lq, q_heads, D], None).

    Causal attention of decoders is SALE's, within a sliding window too; everything else, cross attention, encoders, other
    masks, is run by sdpa, with one warning for each kind. Learned sinks join the softmax of what is kept; the selection does not
    count them, and so keeps what it would keep without. NotImplementedError: what neither computes: soft-capped scores,
    position biases, dropout, attention weights asked for."""
    _refuse_all(module, dropout, kwargs)
    sinks = _sinks(module, query, kwargs)
    compiling = torch.compiler.is_compiling()
    held = None if compiling else current_layer(module)
    if isinstance(attention_mask, (_transformers_masks.Mask, _transformers_masks.Bools)):
        attention_mask = attention_mask.plain()
    ours = _transformers_masks.is_spans(attention_mask, key.shape[2])
    decoder = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None and not ours and attention_mask.dtype != torch.bool and decoder:
        raise NotImplementedError(
            f"sale: attention_mask of {attention_mask.dtype} and shape {list(attention_mask.shape)}: what is added to "
            "scores is not supported, and whether it hides later keys cannot be told; give a bool mask, or use "
            "attn_implementation 'eager' or 'sdpa'"
        )
    reason = _why_not(module, query, key, value, attention_mask, ours, is_causal, sliding_window)
    if reason is not None and not compiling:
        _say(module, reason)
    if reason is not None or query.shape[2] < SHORTEST:
        if ours:
            attention_mask, is_causal = _transformers_masks.for_sdpa(query, key, attention_mask), True
        elif attention_mask is None:
            is_causal = _is_causal(module, is_causal)
        out = _by_torch(module, query, key, value, attention_mask, scaling, is_causal, sinks)
        if held is not None:
            held.decoded(key)
        return out, None
    in_cache = key
    query, key, value = (_torch.cast(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
    indexes = ()
    options = _options(module, query)
    window = _transformers_masks.window_of(attention_mask) if ours and not compiling else 0
    if options is not None and not compiling:
        key, value, attention_mask = _transformers_masks.plainly(query, key, value, attention_mask)
        if held is not None:
            indexes = held.indexes(query, key, attention_mask, options)
    said = Said(0.0 if scaling is None else scaling, True, None, attention_mask, window=window)
    if compiling:
        if options is not None and options.audit:
            raise NotImplementedError("sale: audit is not supported in compiled models; use options without")
        options_key = key_while_compiling(module, query) if options is None else options.key
        out = _join(*_torch.attention(query, key, value, options_key, said, (), sinks is not None), sinks)
    else:
        out = _attend(module, query, key, value, options, said, indexes, sinks)
    if held is not None:
        held.decoded(in_cache)
    return out.transpose(1, 2), None


def _options(module, query: torch.Tensor) -> Options | None:
    """What this layer runs with: what `use` gave it, else what is found for its model and this device, decided at the
    first call there and kept with the module. None while tracing a module that has not been decided on."""
    given = getattr(module, "_sale_options", None)
    if given is not None:
        return given
    device = _torch.ordinal_of(query.device)
    held = getattr(module, "_sale_found", None)
    if held is not None and held[0] == device:
        return held[1]
    if torch.compiler.is_compiling():
        return None
    found = found_here(module, query, device)
    if held is None:
        module.register_forward_pre_hook(before_forward, with_kwargs=True)
    module._sale_found = device, found
    return found


def paged(module, query, key, value, attention_mask, scaling=None, dropout=0.0, *, cache=None, cu_seq_lens_q,
          cu_seq_lens_k, read_index=None, write_index=None, block_table=None, sliding_window=None, **kwargs):  # fmt: skip
    """Continuous batching, "paged|sale": query [1, q_heads, tokens, D], sequences one after the other. The cache puts
    the new keys and values away and gathers all of each sequence's. Sequences of a few rows are decoding and run
    densely, the others by SALE."""
    _refuse_all(module, dropout, {**kwargs, "block_table": block_table, "sliding_window": sliding_window},
                ("block_table", "sliding_window", *_SINKS))  # fmt: skip
    _refuse("sinks", getattr(module, "sinks", None))
    if cache is None:
        raise ValueError("sale: 'paged|sale' was called without a paged cache; use 'sale' for a plain forward")
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, read_index=read_index,
                              write_index=write_index)  # fmt: skip
    if isinstance(cu_seq_lens_k, dict):
        cu_seq_lens_k = cu_seq_lens_k["full_attention"]
    rows, keys = _torch.integers("cu_seq_lens_q", cu_seq_lens_q), _torch.integers("cu_seq_lens_k", cu_seq_lens_k)
    options = _options(module, query)
    dense = options.dense().replace(audit=0)
    said = Said(0.0 if scaling is None else scaling)
    out = torch.zeros_like(query)  # tokens behind the last sequence are padding
    key, value = key.transpose(0, 1)[None], value.transpose(0, 1)[None]
    for a, b, c, d in zip(rows, rows[1:], keys, keys[1:]):
        if b > a:
            mine = dense if b - a < SHORTEST else options
            out[:, :, a:b] = _attend(module, query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], mine, said)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionInterface.register(f"paged|{NAME}", paged)
AttentionMaskInterface.register(NAME, mask)
