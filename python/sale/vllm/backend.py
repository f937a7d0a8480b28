"""The attention backend: FlashAttention's, with the rows of long prompts taken out of a step and given to SALE.

    builder.build   one step of the engine: which rows are ours (sale.serving.batch), from numbers in host memory
    impl.forward    one layer: at the first of a step a plan is made; then ours by SALE on the pages as they lie, and
                    what is before, between and after them by the parent, with its metadata cut to it

What the parent is given it would have been given alone. What we do not serve, or cannot, is the parent's as a whole.
"""

from __future__ import annotations

import copy
import re
import weakref

import torch
from vllm.config import get_current_vllm_config
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend, FlashAttentionImpl, FlashAttentionMetadataBuilder,
)  # fmt: skip

from ..serving import Model, Session, Settings, Share, gaps
from ..serving.batch import SHORTEST, rows_of
from ..serving.session import IDLE, MEASURING

_logger = init_logger("vllm.sale")


# ---- sessions --------------------------------------------------------------------------------------------------------

_sessions: weakref.WeakValueDictionary[tuple, Session] = weakref.WeakValueDictionary()


def _why_not(config) -> str:
    """Why no layer of this engine is served; "" when they may be."""
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name.replace('_', ' ').removesuffix(' size')} is not supported"
    if getattr(parallel, "enable_dbo", False):
        return "dual batch overlap is not supported"
    return ""


def _session_of(config, impl: FlashAttentionImpl) -> Session | None:
    """The session of the model whose layers are being made; of a draft model another."""
    owner, made = config.compilation_config, config.model_config
    key = (id(owner), made.model)
    found = _sessions.get(key)
    if found is not None:
        return found
    parallel, text, log = config.parallel_config, made.hf_text_config, _logger.info
    why = _why_not(config)
    try:
        settings = Settings.read()
    except ValueError as e:
        why = str(e)
    if why:
        _logger.warning_once("sale: %s; the engine's own attention runs", why)
        return None
    model = Model(made.model, text.num_hidden_layers, text.num_attention_heads, made.get_total_num_kv_heads(),
                  made.get_head_size())  # fmt: skip
    share = Share(get_tensor_model_parallel_rank(), parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
    found = Session(
        model, share, made.dtype, torch.device(config.device_config.device or "cpu"), impl.scale,
        tokens=config.scheduler_config.max_num_batched_tokens, keys=made.max_model_len, settings=settings, log=log,
    )  # fmt: skip
    found.owner = owner  # so that its address stays its own
    _sessions[key] = found
    return found


# ---- a step ----------------------------------------------------------------------------------------------------------


class _Batch:
    """What hangs on a step's metadata: what is ours of it, and the parent's parts once they are known."""

    def __init__(self, session: Session, starts: list[int], layers: tuple[int, ...]) -> None:
        self.session, self.starts, self.layers = session, starts, layers
        self.step = self.target = None
        self.parts: list[tuple[slice, object]] | None = None

    def cut(self, meta) -> None:
        """The parent's parts, each with metadata of its own."""
        self.parts = []
        for first, end in gaps(self.step.rows, self.starts):
            here = slice(self.starts[first], self.starts[end])
            part = copy.copy(meta)
            part.num_actual_tokens = here.stop - here.start
            part.max_query_len = max(b - a for a, b in zip(self.starts[first:end], self.starts[first + 1 : end + 1]))
            part.query_start_loc = meta.query_start_loc[first : end + 1]
            if here.start:
                part.query_start_loc = part.query_start_loc - here.start
            part.seq_lens, part.block_table = meta.seq_lens[first:end], meta.block_table[first:end]
            part.slot_mapping = meta.slot_mapping[here]
            part.scheduler_metadata = None  # of the whole batch; the kernel schedules its part itself
            part.sale = None
            self.parts.append((here, part))


class Builder(FlashAttentionMetadataBuilder):
    # Only decoding is captured whole: FlashAttention 3 says ALWAYS, by which prompts would be captured too.
    _cudagraph_support = AttentionCGSupport.UNIFORM_BATCH
    supports_update_block_table = False  # what hangs on metadata belongs to one table
    reorder_batch_threshold = 1  # decoding first, so that the parent's rows are in one piece

    def __init__(self, kv_cache_spec, layer_names, vllm_config, *args, **kwargs):
        super().__init__(kv_cache_spec, layer_names, vllm_config, *args, **kwargs)
        self._session, claimed = None, []
        layers = vllm_config.compilation_config.static_forward_context
        for name in layer_names:
            impl = getattr(layers.get(name), "impl", None)
            if isinstance(impl, Impl) and impl.claim(name):
                self._session = self._session or impl.session
                impl.session.reserve([impl.layer])
                claimed.append(impl.layer)
        # Keys that come from elsewhere come past our slots: then what pages hold is not known.
        self._layers = () if vllm_config.kv_transfer_config is not None else tuple(claimed)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        meta = super().build(common_prefix_len, common_attn_metadata, fast_build)
        session, c = self._session, common_attn_metadata
        if session is not None:
            session.written(self._layers, c.slot_mapping)
        if session is None or session.state == IDLE or c.max_query_len < SHORTEST or common_prefix_len:
            return meta
        if c.causal is not True or c.seq_lens_cpu_upper_bound is None or c.is_prefilling is None:
            return meta
        if any(getattr(meta, name, None) is not None for name in ("mm_prefix_query_range_tensor", "rswa_prefix_lens")):
            return meta
        n = c.num_reqs
        starts = c.query_start_loc_cpu[: n + 1].tolist()
        rows = rows_of(starts, c.seq_lens_cpu_upper_bound[:n].tolist(), c.is_prefilling[:n].tolist())
        if rows:
            batch = _Batch(session, starts, self._layers)
            if session.state == MEASURING:
                page = lambda row: int(meta.block_table[row.request, 0])  # noqa: E731
                with session.guarded():
                    # Page 0 is nobody's: what has it is a warm-up.
                    batch.target = session.measuring.follow([r for r in rows if page(r) != 0], page)
            else:
                batch.step = session.step(rows)
            if batch.step is not None or batch.target is not None:
                meta.sale = batch
        return meta


# ---- a layer ---------------------------------------------------------------------------------------------------------


class Impl(FlashAttentionImpl):
    session: Session | None = None
    layer: int | None = None  # its number, once its name is known

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config()
        self.session = _session_of(config, self)
        self._cache = config.cache_config
        if self.session is not None and self.session.state != IDLE and (why := self._why_not()):
            self.session.say(f"{why}: left to the engine's own attention")
            self.session = None

    def _why_not(self) -> str:
        heads = self.session.heads
        if self.kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
            return f"layers with a KV cache of type {self.kv_cache_dtype}"
        if self.attn_type != AttentionType.DECODER:
            return f"layers of attention type {self.attn_type}"
        if self.sliding_window not in (None, (-1, -1)):
            return "layers with a sliding window"
        if self.alibi_slopes is not None or self.logits_soft_cap or getattr(self, "sinks", None) is not None:
            return "layers with ALiBi, soft-capped scores or learned sinks"
        if self.kv_sharing_target_layer_name is not None:
            return "layers that use another layer's cache"
        if (self.num_heads, self.num_kv_heads, self.head_size) != heads[:3]:
            return f"layers with {self.num_heads} and {self.num_kv_heads} heads of {self.head_size}"
        return ""

    @property
    def _room(self) -> int:
        """Bytes that the engine, which is about to measure what is free, will give its cache."""
        if not torch.cuda.is_available() or getattr(self._cache, "kv_cache_memory_bytes", None):
            return 0
        free, total = torch.cuda.mem_get_info()
        return int(total * self._cache.gpu_memory_utilization) - (total - free)

    def claim(self, name: str) -> bool:
        """Whether this is a layer of the session's, by its name; where it is, `layer` is its number."""
        if self.session is not None and self.layer is None:
            number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
            if number is None or not self.session.claims(int(number[1]), name):
                self.session = None
            else:
                self.layer = int(number[1])
        return self.session is not None

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None,
                output_block_scale=None):  # fmt: skip
        rest = (kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if attn_metadata is None:  # the engine measures its model: what we take belongs to that
            if self.claim(layer.layer_name):
                self.session.reserve([self.layer])
                self.session.set_aside(self._room)
            return super().forward(layer, query, key, value, *rest)
        batch = getattr(attn_metadata, "sale", None)
        if (
            batch is None or self.session is not batch.session
            or output_scale is not None or output_block_scale is not None
            or not self.claim(layer.layer_name) or (query.is_cuda and torch.cuda.is_current_stream_capturing())
        ):  # fmt: skip
            return super().forward(layer, query, key, value, *rest)
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)  # views [page, token, head, coordinate]
        if batch.target is not None:
            self._show(batch, query, keys, values, attn_metadata)
        elif self._ours(batch, query, keys, values, attn_metadata, output):
            for here, part in batch.parts:
                super().forward(layer, query[here], key[here], value[here], kv_cache, part, output[here])
            return output
        return super().forward(layer, query, key, value, *rest)

    def _show(self, batch: _Batch, query, keys, values, meta) -> None:
        session = self.session
        if session.state == MEASURING:
            with session.guarded():
                session.measuring.look(batch.target, self.layer, query, keys, values, meta.block_table, self.scale)

    def _ours(self, batch: _Batch, query, keys, values, meta, output) -> bool:
        """Whether the step's rows were done by us."""
        step, session = batch.step, self.session
        if step is None:
            return False
        out = output.view(query.shape)
        if batch.parts is None:
            if not session.begin(step, self.layer, query, keys, values, meta.block_table, out, batch.layers):
                batch.step = None
                return False
            batch.cut(meta)
        if session.run(step, self.layer, query, keys, values, out):
            return True
        batch.step = None
        return False


# ---- the backend -----------------------------------------------------------------------------------------------------


class Custom(FlashAttentionBackend):
    """Under the name that every release has for backends from elsewhere."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls():
        return Impl

    @staticmethod
    def get_builder_cls():
        return Builder

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        # Pages of codes hold whole blocks of keys. Who asks for 16 gets them, and no such pages.
        return max(32, super().get_preferred_block_size(default_block_size))


class Sale(Custom):
    """Under a name of its own, where the release takes one."""

    @staticmethod
    def get_name() -> str:
        return "SALE"
