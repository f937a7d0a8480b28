"""SALE in Hugging Face transformers (5.x): importing this module registers the attention "sale".

    import sale.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sale")

Prefill is sparse, decoding is dense. Which of transformers' situations are served, and which are refused by name:
docs/python.md. Thresholds come from a calibration: the one given to `use`, else the one found for the model (see
`find_calibration`), else one threshold for every head, with a warning.
"""

from __future__ import annotations

import os
import pathlib
import warnings

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask
from transformers.utils import cached_file

from . import _torch
from ._call import Said
from ._transformers_cache import before_forward, current_layer
from .calibration import Calibration, fingerprint
from .options import Options

NAME = "sale"
# Fewer rows than a query tile are decoding (or a draft to verify): every key counts for them, and a tile mostly empty
# is no work to save.
SHORTEST = 64


# ---- which options a layer runs with ---------------------------------------------------------------------------------


def find_calibration(name_or_path: str, format: str = "int8") -> pathlib.Path | None:
    """The calibration file of a model: calibration.json (for "fp8", Hopper's, calibration-fp8.json) in the model's own
    folder, else in $SALE_CALIBRATIONS or ~/.cache/sale/calibrations under the model's name, "/" written "--" (and -fp8
    after it). None when there is none."""
    suffix = "-fp8" if format == "fp8" else ""
    own = pathlib.Path(name_or_path) / f"calibration{suffix}.json"
    if own.is_file():
        return own
    shelf = os.environ.get("SALE_CALIBRATIONS")
    folder = pathlib.Path(shelf) if shelf else pathlib.Path.home() / ".cache/sale/calibrations"
    found = folder / f"{name_or_path.strip('/').replace('/', '--')}{suffix}.json"
    return found if found.is_file() else None


def folder_of(name_or_path: str) -> pathlib.Path | None:
    """Where a model's files are on this machine: the folder itself, or the hub's copy of it. None: nowhere."""
    if pathlib.Path(name_or_path).is_dir():
        return pathlib.Path(name_or_path)
    try:
        return pathlib.Path(cached_file(name_or_path, "config.json", local_files_only=True)).parent
    except (OSError, ValueError, TypeError):
        return None


def model_fingerprint(folder: str | os.PathLike) -> str | None:
    """Of a folder's safetensors files, as in a calibration; None where there are none."""
    import json

    tensors = []
    for file in pathlib.Path(folder).glob("model*.safetensors"):
        with open(file, "rb") as f:
            start = 8 + int.from_bytes(f.read(8), "little")
            for name, entry in json.loads(f.read(start - 8)).items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                f.seek(start + begin)
                shape = "".join(f"{n}," for n in entry["shape"])
                tensors.append((name.encode(), b"\0", entry["dtype"].encode(), b"\0", shape.encode(),
                                f.read(min(64, end - begin))))  # fmt: skip
    return f"{fingerprint(*(part for t in sorted(tensors) for part in t)):016x}" if tensors else None


def _text_config(config):
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _dimensions(config) -> dict:
    config = _text_config(config)
    heads = config.num_attention_heads
    return {
        "layers": config.num_hidden_layers,
        "q_heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }


_found: dict[tuple, list[Options]] = {}


def _options_of_model(name: str, dimensions: tuple, device: int) -> list[Options]:
    """One for each layer: what is found for a model that `use` was not called for. device: as in sale_problem."""
    format = Options().format_on(device)
    key = (name, dimensions, format)
    if key not in _found:
        path = find_calibration(name, format) if name else None
        if path is None:
            warnings.warn(
                f"sale: no calibration found for {name or 'this model'!r}; every head runs with threshold 0.004. "
                "sale.transformers.calibrate makes one.",
                stacklevel=2,
            )
            _found[key] = [Options()] * dimensions[0]
        else:
            calibration = Calibration.read(path)
            folder = folder_of(name)
            of_weights = model_fingerprint(folder) if folder else None
            calibration.check(**dict(zip(("layers", "q_heads", "kv_heads", "head_dim"), dimensions)),
                              fingerprint=of_weights)  # fmt: skip
            _found[key] = [calibration.options(i) for i in range(calibration.layers)]
    return _found[key]


def _number_of(name: str, dimensions: tuple, device: int, layer: int) -> int:
    return _options_of_model(name, dimensions, device)[layer].number


_number_of._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing the compiler


def _share(module) -> tuple[int, int]:
    """Of the query heads in tensor parallelism: which slice this process has, of how many. (0, 1): all."""
    projection = getattr(module, "q_proj", None)
    weight = getattr(projection, "weight", None)
    mesh = getattr(weight, "device_mesh", None)
    if mesh is not None:
        for axis, placement in enumerate(weight.placements):
            if placement.is_shard():
                return mesh.get_local_rank(axis), mesh.size(axis)
    mesh = getattr(projection, "_hf_device_mesh", None)  # transformers up to 5.16
    return (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())


def _slice(module, options: Options, heads: int, group: int) -> Options:
    rank, n = _share(module)
    return options if n == 1 else options.heads(rank * (heads // n), heads // n, group)


def _number(module, query: torch.Tensor) -> int:
    """The options' number for this layer; decided at its first call and kept with the module."""
    number = getattr(module, "_sale_number", None)
    if number is not None:
        return number
    config = module.config
    d = _dimensions(config)
    dimensions = (d["layers"], d["q_heads"], d["kv_heads"], query.shape[-1])
    number = _number_of(config._name_or_path, dimensions, _torch.ordinal_of(query.device), module.layer_idx)
    if torch.compiler.is_compiling():
        return number
    options = _slice(module, _torch.options_of(number), d["q_heads"], d["q_heads"] // d["kv_heads"])
    if query.shape[1] * _share(module)[1] != d["q_heads"]:
        raise NotImplementedError(f"query: has {query.shape[1]} of {d['q_heads']} heads, and q_proj does not say which")
    module._sale_number = options.number
    module.register_forward_pre_hook(before_forward, with_kwargs=True)
    return options.number


def _attention_modules(model):
    layers = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "num_key_value_groups")]
    if not layers:
        raise NotImplementedError("model: no attention with layer_idx and num_key_value_groups was found in it")
    return layers


def use(model, calibration: Calibration | str | os.PathLike | None = None, *, options: Options | None = None) -> None:
    """Sets what a model's attention runs with, and its implementation to "sale".

    calibration  a Calibration or the path of its file; None: the one found for the model, or threshold 0.004
    options      sale.Options for every layer, instead

    Under tensor parallelism every process takes its slice. ValueError when the calibration is for another model.
    """
    if calibration is not None and options is not None:
        raise ValueError("calibration, options: both are given; one is enough")
    d = _dimensions(model.config)
    if options is not None:
        of_layer = [options] * d["layers"]
    elif calibration is not None:
        if not isinstance(calibration, Calibration):
            calibration = Calibration.read(calibration)
        calibration.check(**d)
        of_layer = [calibration.options(i) for i in range(d["layers"])]
    else:
        dimensions = (d["layers"], d["q_heads"], d["kv_heads"], d["head_dim"])
        of_layer = _options_of_model(model.config._name_or_path, dimensions, _torch.ordinal_of(model.device))
    group = d["q_heads"] // d["kv_heads"]
    for module in _attention_modules(model):
        if "_sale_number" not in module.__dict__:
            module.register_forward_pre_hook(before_forward, with_kwargs=True)
        module._sale_number = _slice(module, of_layer[module.layer_idx], d["q_heads"], group).number
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)


def calibrate(model, tokenizer, path: str | os.PathLike | None = None, **settings) -> Calibration:
    """Measures a model, returns its Calibration and, with `path`, writes it. Settings and what they mean: those of
    sale._calibrate.calibrate (text, tokens, prompts, rank, limit, seed)."""
    from ._calibrate import calibrate as measured

    return measured(model, tokenizer, path, **settings)


# ---- masks -----------------------------------------------------------------------------------------------------------


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function,
         attention_mask=None, **kwargs):  # fmt: skip
    """What transformers asks for once per forward. None: plain causal attention, the last query sees the last key. Else
    int64 [batch, 1, 1, 4], small whatever the length: for each sequence its first visible key, the end of its visible
    keys, how many there are, and the key position of the first query. Other patterns (sliding windows) come as sdpa has
    them; the layers they are for are recognised by their own arguments."""
    if mask_function is not causal_mask_function and mask_function is not bidirectional_mask_function:
        return sdpa_mask(batch_size, q_length, kv_length, q_offset=q_offset, kv_offset=kv_offset,
                         mask_function=mask_function, attention_mask=attention_mask,
                         **{**kwargs, "allow_is_causal_skip": False})  # fmt: skip
    device = kwargs.get("device", "cpu")
    moving = isinstance(q_offset, torch.Tensor)
    if attention_mask is None and not moving and q_offset - kv_offset + q_length == kv_length:
        return None
    offset = q_offset - kv_offset
    seen = torch.arange(kv_length, device=device) < offset + q_length
    if attention_mask is None:
        visible = seen[None].expand(batch_size, -1)
    else:  # from the first key on; keys that it does not reach are of a static cache and not there yet
        padding = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
        visible = F.pad(padding, (0, kv_length - padding.shape[1])) & seen
    spans = _torch.spans_of(visible, 0)
    spans[:, 3] = offset
    return spans[:, None, None, :]


def _decode_mask(spans: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool):
    """The bool mask [batch or 1, 1, rows, keys] of a few rows; None when they see everything."""
    rows, keys = query.shape[2], key.shape[2]
    at = torch.arange(keys, device=query.device)
    row = torch.arange(rows, device=query.device)[:, None]
    if spans is None:
        return at <= row + (keys - rows) if causal and rows > 1 else None
    first, end, offset = spans[..., 0:1], spans[..., 1:2], spans[..., 3:4]
    visible = (at >= first) & (at < end)
    return visible & (at <= row + offset) if causal else visible.expand(-1, -1, rows, -1)


# ---- attention -------------------------------------------------------------------------------------------------------


def _refuse(**present) -> None:
    for name, value in present.items():
        if value is not None and value is not False and value != 0.0:
            raise NotImplementedError(
                f"sale: {name} is not supported; use attn_implementation 'eager' or 'sdpa' for this model"
            )


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

    NotImplementedError: soft-capped scores, learned sinks, position biases, dropout, attention weights asked for, masks
    that are neither causal nor padding. Layers with a sliding window keep it and run by sdpa."""
    _refuse(dropout=dropout, softcap=kwargs.get("softcap"), s_aux=kwargs.get("s_aux"),
            position_bias=kwargs.get("position_bias"), output_attentions=kwargs.get("output_attentions"))  # fmt: skip
    if sliding_window is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if kwargs.get("cu_seq_lens_q") is not None:
        raise NotImplementedError("sale: packed sequences (cu_seq_lens_q) are not supported")
    if attention_mask is not None and (attention_mask.dtype != torch.int64 or attention_mask.shape[1:] != (1, 1, 4)):
        raise NotImplementedError(
            f"sale: attention_mask of shape {list(attention_mask.shape)}: only causal attention with padding is "
            "supported; use attn_implementation 'eager' or 'sdpa' for this model"
        )
    held = current_layer(module)
    if query.shape[2] < SHORTEST:
        out = F.scaled_dot_product_attention(query, key, value, _decode_mask(attention_mask, query, key, causal),
                                             scale=scaling, enable_gqa=query.shape[1] != key.shape[1])  # fmt: skip
        if held is not None:
            held.decoded(key)
        return out.transpose(1, 2), None
    number = _number(module, query)
    spans, indexes = attention_mask, ()
    if not torch.compiler.is_compiling():
        query, key, value, spans = _plainly(query, key, value, attention_mask)
        if causal and held is not None:
            indexes = held.indexes(query, key, spans, _torch.options_of(number))
    said = Said(0.0 if scaling is None else scaling, causal, None, spans)
    out, _ = _torch.attention(query, key, value, number, said, indexes)
    if held is not None:
        held.decoded(key)
    return out.transpose(1, 2), None


def _plainly(query, key, value, attention_mask):
    """Without spans where they say nothing: no padding, and keys end at the last row (those behind it are cut off)."""
    if attention_mask is None:
        return query, key, value, None
    spans = _torch.spans("attention_mask", attention_mask)
    first, end, count, offset = spans[0]
    if first == 0 and count == end == offset + query.shape[2] and all(s == spans[0] for s in spans):
        return query, key[:, :, :end], value[:, :, :end], None
    return query, key, value, attention_mask


def paged(module, query, key, value, attention_mask, scaling=None, dropout=0.0, *, cache=None, cu_seq_lens_q,
          cu_seq_lens_k, read_index=None, write_index=None, block_table=None, sliding_window=None, **kwargs):  # fmt: skip
    """Continuous batching, "paged|sale": query [1, q_heads, tokens, D], sequences one after the other. The cache puts
    the new keys and values away and gathers all of each sequence's. Sequences of a few rows are decoding and run
    densely, the others by SALE."""
    _refuse(dropout=dropout, softcap=kwargs.get("softcap"), s_aux=kwargs.get("s_aux"), block_table=block_table,
            position_bias=kwargs.get("position_bias"), sliding_window=sliding_window)  # fmt: skip
    if cache is None:
        raise ValueError("sale: 'paged|sale' was called without a paged cache; use 'sale' for a plain forward")
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, read_index=read_index,
                              write_index=write_index)  # fmt: skip
    if isinstance(cu_seq_lens_k, dict):
        cu_seq_lens_k = cu_seq_lens_k["full_attention"]
    rows, keys = _torch.integers("cu_seq_lens_q", cu_seq_lens_q), _torch.integers("cu_seq_lens_k", cu_seq_lens_k)
    number = _number(module, query)
    dense = _torch.options_of(number).dense().number
    said = Said(0.0 if scaling is None else scaling)
    out = torch.zeros_like(query)  # tokens behind the last sequence are padding
    key, value = key.transpose(0, 1)[None], value.transpose(0, 1)[None]
    for a, b, c, d in zip(rows, rows[1:], keys, keys[1:]):
        if b > a:
            mine = dense if b - a < SHORTEST else number
            out[:, :, a:b] = _torch.attention(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], mine, said)[0]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionInterface.register(f"paged|{NAME}", paged)
AttentionMaskInterface.register(NAME, mask)
