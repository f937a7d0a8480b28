"""SALE: sparse attention by low-bit estimation, for the prefill of long prompts.

    out = sale.attention(q, k, v)                  # numpy arrays or torch tensors, [batch, heads, tokens, head_dim]

    import sale.transformers                       # then attn_implementation="sale"
    import sale.parallel                           # one sequence over several processes
    python -m sale.eval --help                     # quality: dense and SALE side by side

A thin layer over the C library of the same name; numpy is all it needs. docs/python.md has the whole story.
"""

from ._c import VERSION as __version__
from ._c import InternalError
from ._call import Stats
from .attention import attention, backends, explain, machine, select, stats
from .blocks import BlockList, plot_mask
from .calibration import Calibration
from .index import KeyIndex
from .options import Options

__all__ = [
    "BlockList",
    "Calibration",
    "InternalError",
    "KeyIndex",
    "Options",
    "Stats",
    "__version__",
    "attention",
    "backends",
    "explain",
    "machine",
    "plot_mask",
    "select",
    "stats",
]
