"""Ours over one of SGLang's attention backends: `Over` is put before the base's class, and takes the prefill steps in
which a prompt is long. Such a step is ours as a whole, its short rows densely: the base takes whole steps only."""

from __future__ import annotations

import logging

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from ..serving import Model, Row, Session, Settings, Share
from ..serving.batch import rows_of
from ..serving.session import IDLE, MEASURING

_logger = logging.getLogger("sale.sglang")
_logger.setLevel(logging.INFO)


def _session_of(runner) -> Session:
    config, parallel, server = runner.model_config, runner.ps, runner.server_args
    text = config.hf_text_config
    page = runner.page_size
    if page % 16:
        raise ValueError(f"page size {page}: keys are read in pages of a multiple of 16; start with --page-size 16")
    if runner.token_to_kv_pool.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"a KV cache of type {runner.token_to_kv_pool.dtype} is not supported")
    if getattr(runner, "dcp_size", 1) > 1:
        raise ValueError("decode context parallel is not supported")
    model = Model(config.model_path, text.num_hidden_layers, text.num_attention_heads, config.get_total_num_kv_heads(),
                  config.head_dim)  # fmt: skip
    share = Share(parallel.tp_rank, parallel.tp_size, getattr(parallel, "pp_size", 1))
    chunk = server.chunked_prefill_size
    device = torch.device("cuda", torch.cuda.current_device()) if runner.device == "cuda" else torch.device("cpu")
    return Session(
        model, share, config.dtype, device, config.head_dim**-0.5,
        tokens=chunk if chunk and chunk > 0 else server.max_prefill_tokens, keys=config.context_len,
        settings=Settings.read(), log=_logger.info,
    )  # fmt: skip


def put_over(base, runner):
    """The base, become one of ours. ValueError, AttributeError: it cannot be."""
    if not isinstance(base, AttentionBackend):
        raise ValueError(f"{type(base).__name__} is no attention backend of SGLang's")
    session = _session_of(runner)
    base.__class__ = type(f"Sale{type(base).__name__}", (Over, type(base)), {})
    base._sale, base._sale_batch = session, None
    base._sale_page, base._sale_tables = runner.page_size, runner.req_to_token_pool.req_to_token
    base._sale_pool = runner.token_to_kv_pool
    first = getattr(base._sale_pool, "start_layer", 0) or 0
    session.reserve(range(first, min(first + getattr(base._sale_pool, "layer_num", 0), session.model.layers)))
    return base


class _Batch:
    """A prefill step: what is ours of it, and its page table."""

    def __init__(self, table: torch.Tensor) -> None:
        self.step = self.target = None
        self.table = table
        self.begun = False


class Over(AttentionBackend):  # as the base is: a class can become another one of the same layout only
    def init_forward_metadata(self, forward_batch):
        super().init_forward_metadata(forward_batch)
        self._sale_batch = None
        session = self._sale
        if session.state == IDLE or forward_batch.forward_mode not in (ForwardMode.EXTEND, ForwardMode.MIXED):
            return
        lengths, before = forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu
        if lengths is None or before is None or 0 in lengths:
            return
        starts = [0]
        for n in lengths:
            starts.append(starts[-1] + n)
        keys = [a + b for a, b in zip(before, lengths)]
        rows = rows_of(starts, keys, None)
        if not rows:
            return
        batch = _Batch(self._sale_table(forward_batch, max(keys)))
        if session.state == MEASURING:
            with session.guarded():
                batch.target = session.measuring.follow(rows, lambda row: int(batch.table[row.request, 0]))
        else:
            every = [Row(i, starts[i], n, k) for i, (n, k) in enumerate(zip(lengths, keys))]
            batch.step = session.step(rows, every)
        if batch.step is not None or batch.target is not None:
            self._sale_batch = batch

    def _sale_table(self, forward_batch, keys: int) -> torch.Tensor:
        """Pages of each request, from the table of its tokens."""
        page = self._sale_page
        tokens = self._sale_tables[forward_batch.req_pool_indices.long(), : -(-keys // page) * page : page]
        return torch.div(tokens, page, rounding_mode="floor").to(torch.int32).contiguous()

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **more):
        batch, session = self._sale_batch, self._sale
        if (
            batch is None or any(x is not None for x in more.values()) or self._sale_why_not(layer)
            or (q.is_cuda and torch.cuda.is_current_stream_capturing())
        ):  # fmt: skip
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **more)
        if save_kv_cache and k is not None:
            self._sale_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        heads = session.heads
        queries = q.view(-1, heads.q_heads, heads.head_dim)
        cached = lambda x: x.view(-1, self._sale_page, heads.kv_heads, heads.head_dim)  # noqa: E731
        keys = cached(self._sale_pool.get_key_buffer(layer.layer_id))
        values = cached(self._sale_pool.get_value_buffer(layer.layer_id))
        if batch.target is not None:
            if session.state == MEASURING:
                with session.guarded():
                    session.measuring.look(batch.target, layer.layer_id, queries, keys, values, batch.table,
                                           layer.scaling)  # fmt: skip
        elif (out := self._sale_run(batch, layer, queries, keys, values)) is not None:
            return out.view(q.shape)
        return super().forward_extend(q, k, v, layer, forward_batch, False, **more)

    def _sale_run(self, batch: _Batch, layer, q, keys, values) -> torch.Tensor | None:
        step, session = batch.step, self._sale
        if step is None:
            return None
        out = q.new_empty(q.shape)
        if not batch.begun:
            batch.begun = session.begin(step, layer.layer_id, q, keys, values, batch.table, out)
        if batch.begun and session.run(step, layer.layer_id, q, keys, values, out):
            return out
        batch.step = None
        return None

    def _sale_why_not(self, layer) -> bool:
        """Whether a layer is the base's; said once."""
        session = self._sale
        window = layer.sliding_window_size
        heads = (layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim)
        why = ""
        if window is not None and window > -1:
            why = "layers with a sliding window"
        elif layer.logit_cap:
            why = "layers with soft-capped scores"
        elif layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
            why = "attention that is not a decoder's"
        elif heads != session.heads[:3] or layer.v_head_dim != layer.qk_head_dim:
            why = f"layers with {heads[0]} and {heads[1]} heads of {heads[2]}"
        elif abs(layer.scaling - session.scale) > 1e-6 * session.scale:
            why = f"layers with scores scaled by {layer.scaling}"
        elif not session.claims(layer.layer_id, f"layer {layer.layer_id}"):
            why = "layers that the calibration has not"
        if why:
            session.say(f"{why}: left to the base")
        return bool(why)
