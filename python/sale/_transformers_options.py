"""Which options a layer of a transformers model runs with: calibrations found and checked, slices of tensor parallelism."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Callable

import torch
from transformers.utils import cached_file

from . import _torch
from ._arguments import path, text, word
from ._c import FORMATS
from .calibration import Calibration, fingerprint
from .options import Options, dense_below_as_it_pays


def find_calibration(name_or_path: str, format: str = "int8") -> pathlib.Path | None:
    """The calibration file of a model: calibration.json (for "fp8", Hopper's, calibration-fp8.json) in the model's own
    folder, else in $SALE_CALIBRATIONS or ~/.cache/sale/calibrations under the model's name, "/" written "--" (and -fp8
    after it), or under the fingerprint of its weights. None when there is none."""
    text("name_or_path", name_or_path), word("format", format, tuple(FORMATS))
    suffix = "-fp8" if format == "fp8" else ""
    own = pathlib.Path(name_or_path) / f"calibration{suffix}.json"
    if own.is_file():
        return own
    shelf = os.environ.get("SALE_CALIBRATIONS")
    folder = pathlib.Path(shelf) if shelf else pathlib.Path.home() / ".cache/sale/calibrations"
    found = folder / f"{name_or_path.strip('/').replace('/', '--')}{suffix}.json"
    if found.is_file():
        return found
    weights = folder_of(name_or_path) if folder.is_dir() else None
    mark = model_fingerprint(weights) if weights else None
    found = folder / f"{mark}{suffix}.json"
    return found if found.is_file() else None


def folder_of(name_or_path: str) -> pathlib.Path | None:
    """Where a model's files are on this machine: the folder itself, or the hub's copy of it. None: nowhere."""
    text("name_or_path", name_or_path)
    if pathlib.Path(name_or_path).is_dir():
        return pathlib.Path(name_or_path)
    try:
        return pathlib.Path(cached_file(name_or_path, "config.json", local_files_only=True)).parent
    except (OSError, ValueError, TypeError):
        return None


def model_fingerprint(folder: str | os.PathLike) -> str | None:
    """Of a folder's safetensors files, as in a calibration; None where there are none."""
    folder = path("folder", folder)
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


def dimensions_of(config) -> dict:
    """AttributeError where a configuration does not say them, or where they differ from layer to layer."""
    config = _text_config(config)
    try:
        heads = config.num_attention_heads
        return {
            "layers": config.num_hidden_layers,
            "q_heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        }
    except RuntimeError as e:  # transformers' kind for attributes of layers that differ
        raise AttributeError(f"heads that differ from layer to layer: {e}") from e




_checked: dict[tuple, Calibration] = {}
_told: set[tuple] = set()


def _stamps(files) -> tuple:
    """Of files as they are now: another file in one's place has another stamp."""
    return tuple((os.path.realpath(f), s.st_mtime_ns, s.st_size, s.st_ino) for f in files for s in [os.stat(f)])


def found_for(name: str, dimensions: tuple | None, device: int) -> Callable[[int], Options]:
    """By layer number, what is found for a model that `use` was not called for. dimensions: layers, query and kv heads and
    head_dim, None where a configuration does not say them. device: as in sale_problem."""
    format = Options().format_on(device)
    file = find_calibration(name, format) if name and dimensions is not None else None
    if file is None:
        if (name, dimensions, format) not in _told:
            _told.add((name, dimensions, format))
            warnings.warn(
                f"sale: no calibration found for {name or 'this model'!r}; every head runs with threshold 0.004. "
                "sale.transformers.calibrate makes one.",
                stacklevel=2,
            )
        return lambda layer: Options()
    folder = folder_of(name)
    key = dimensions, _stamps([file, *(sorted(folder.glob("model*.safetensors")) if folder else ())])
    calibration = _checked.get(key)
    if calibration is None:
        calibration = Calibration.read(file)
        calibration.check(**dict(zip(("layers", "q_heads", "kv_heads", "head_dim"), dimensions)),
                          fingerprint=model_fingerprint(folder) if folder else None)  # fmt: skip
        while len(_checked) >= 8:
            del _checked[next(iter(_checked))]
        _checked[key] = calibration
    return lambda layer: of_layer(calibration, layer)


def of_layer(calibration: Calibration, layer: int) -> Options:
    """The options of one layer, dense below the length from which sparse attention pays on the device."""
    if not 0 <= layer < calibration.layers:
        raise NotImplementedError(f"layer_idx: {layer}; the calibration has layers 0 .. {calibration.layers - 1}")
    return dense_below_as_it_pays(calibration.options(layer))


def found_here(module, query: torch.Tensor, device: int) -> Options:
    """What is found for the model that a module is of, for this process's heads."""
    dimensions, name = _of_module(module, query)
    return slice_of(module, found_for(name, dimensions, device)(module.layer_idx), query.shape[1])


def _of_module(module, query: torch.Tensor) -> tuple[tuple | None, str]:
    config = getattr(module, "config", None)
    try:
        d = dimensions_of(config)
    except AttributeError:
        return None, ""
    return (d["layers"], d["q_heads"], d["kv_heads"], query.shape[-1]), getattr(config, "_name_or_path", "")


def _key(name: str, dimensions: tuple | None, device: int, layer: int) -> str:
    options = found_for(name, dimensions, device)(layer)
    _traced[options.key] = options
    return options.key


_traced: dict[str, Options] = {}  # a traced program has the key alone


_key._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing the compiler


def key_while_compiling(module, query: torch.Tensor) -> str:
    """Options.key of what a layer runs with, where its forward is being traced and has not run before."""
    dimensions, name = _of_module(module, query)
    return _key(name, dimensions, _torch.ordinal_of(query.device), module.layer_idx)


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


def slice_of(module, options: Options, heads_here: int | None = None) -> Options:
    """This process's part of the options of all heads. heads_here: query heads it has, where that is known."""
    if not options.by_head:
        return options
    rank, n = _share(module)
    try:
        d = dimensions_of(module.config)
    except AttributeError:
        return options  # the library compares the thresholds with the heads
    heads = d["q_heads"]
    if heads_here is not None and heads_here * n != heads:
        raise NotImplementedError(f"query: has {heads_here} of {heads} heads, and q_proj does not say which")
    return options if n == 1 else options.heads(rank * (heads // n), heads // n, heads // d["kv_heads"])


def attention_modules(model) -> list:
    """The causal attention of a model's layers, of its text where it has more than that."""
    text_config = _text_config(model.config)
    found = [m for m in model.modules() if _is_attention(m)]
    mine = [m for m in found if getattr(m, "config", None) is None or m.config is model.config
            or type(m.config) is type(text_config)]  # fmt: skip
    if not mine:
        raise NotImplementedError("model: no causal attention with a layer_idx was found in it")
    return mine


def _is_attention(module) -> bool:
    return (
        isinstance(getattr(module, "layer_idx", None), int)
        and getattr(module, "is_causal", True)
        and not getattr(module, "is_cross_attention", False)
        and (hasattr(module, "num_key_value_groups") or "Attention" in type(module).__name__)
    )
