"""vLLM's CPU platform without its compiled extension and without its choice of an attention backend."""

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backends.registry import AttentionBackendEnum

_library = torch.library.Library("_C", "FRAGMENT")


def _operator(schema: str):
    """Defines an operator of the extension, unless it is there."""

    def define(function):
        name = schema.partition("(")[0]
        if not hasattr(torch.ops._C, name):
            _library.define(schema)
            _library.impl(name, function, "CompositeExplicitAutograd")
        return function

    return define


@_operator("init_cpu_memory_env(int[] nodes) -> ()")
def _nodes(nodes):
    pass


@_operator(
    "compute_slot_mapping_kernel_impl(Tensor starts, Tensor positions, Tensor table, Tensor(a!) slots, int page) -> ()"
)
def _slots(starts, positions, table, slots, page):
    tokens = int(starts[-1])
    request = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff().long())
    at = positions[:tokens].long()
    slots[:tokens] = table[request, at // page].long() * page + at % page
    slots[tokens:] = -1


@_operator("silu_and_mul(Tensor(a!) out, Tensor x) -> ()")
def _silu_and_mul(out, x):
    gate, up = x.chunk(2, dim=-1)
    torch.mul(torch.nn.functional.silu(gate), up, out=out)


@_operator("greedy_argmax(Tensor logits) -> Tensor")
def _greedy(logits):
    return logits.argmax(-1)


class OnCpu(CpuPlatform):
    @classmethod
    def import_kernels(cls) -> None:
        pass

    @classmethod
    def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None) -> str:
        """The backend that was asked for, where it takes this configuration on an H100."""
        made = (selected_backend or AttentionBackendEnum.FLASH_ATTN).get_class()
        why = made.validate_configuration(device_capability=DeviceCapability(9, 0), **attn_selector_config._asdict())
        if why:
            raise ValueError(f"{made.get_name()}: {'; '.join(why)}")
        return f"{made.__module__}.{made.__qualname__}"

    @classmethod
    def check_and_update_config(cls, vllm_config) -> None:
        cache = vllm_config.cache_config
        asked = cache.user_specified_block_size
        super().check_and_update_config(vllm_config)
        if not asked:
            cache.block_size = 16  # as on GPUs
        vllm_config.parallel_config.distributed_executor_backend = "uni"
