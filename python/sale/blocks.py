"""The selection: which key blocks each query tile keeps."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import pathlib
import struct
import zlib

import numpy as np

from . import _c
from ._arguments import INT32, instance, integer
from ._arguments import path as path_of
from ._estimator import Estimator
from ._plan import Step


@dataclasses.dataclass(frozen=True)
class BlockList:
    """Kept blocks as compressed sparse rows. A row is one tile of `q_block` queries of one head of one sequence; rows
    are numbered sequence by sequence, head by head, tile by tile.

    indptr    [rows + 1] int64: row r's blocks are indices[indptr[r] : indptr[r + 1]]
    indices   int32, ascending within a row: block b is keys k_block * b .. k_block * b + k_block - 1 of the sequence
    visible   [rows] int64: blocks the tile could keep
    tiles     tiles of each sequence
    heads     query heads
    first     [rows] int64: with a window, the first block the tile sees besides the sink; None: 0
    sink      with a window: blocks at the start that are seen besides
    """

    indptr: np.ndarray
    indices: np.ndarray
    visible: np.ndarray
    tiles: tuple[int, ...]
    heads: int
    q_block: int
    k_block: int = _c.K_BLOCK
    first: np.ndarray | None = None
    sink: int = 0

    def row_number(self, sequence: int, head: int, tile: int) -> int:
        """Of a tile. IndexError when there is no such tile."""
        for name, x in (("sequence", sequence), ("head", head), ("tile", tile)):
            integer(name, x, -INT32, INT32)
        if not (0 <= sequence < len(self.tiles) and 0 <= head < self.heads and 0 <= tile < self.tiles[sequence]):
            raise IndexError(f"sequence {sequence}, head {head}, tile {tile}: there is no such tile")
        return sum(self.tiles[:sequence]) * self.heads + head * self.tiles[sequence] + tile

    def row(self, sequence: int, head: int, tile: int) -> np.ndarray:
        """Kept blocks of a tile."""
        r = self.row_number(sequence, head, tile)
        return self.indices[self.indptr[r] : self.indptr[r + 1]]

    @property
    def density(self) -> float:
        """Kept blocks by visible ones."""
        return len(self.indices) / int(self.visible.sum())

    def mask(self, sequence: int = 0, head: int = 0) -> np.ndarray:
        """[tiles, blocks] uint8 of one head: 0 what the tile cannot see, 1 dropped, 2 kept."""
        first = self.row_number(sequence, head, 0)
        rows = range(first, first + self.tiles[sequence])
        begin = np.zeros_like(self.visible) if self.first is None else self.first
        sink = np.minimum(self.sink, begin)
        end = begin + self.visible - sink
        picture = np.zeros((len(rows), int(end[first : first + len(rows)].max())), np.uint8)
        for line, r in zip(picture, rows):
            line[begin[r] : end[r]] = 1
            line[: sink[r]] = 1
            line[self.indices[self.indptr[r] : self.indptr[r + 1]]] = 2
        return picture


def read_blocks(step: Step, estimator: Estimator, blocks) -> BlockList:
    """What a sale_blocks of this step holds."""
    heads, q_block = step.heads.q_heads, estimator.q_block
    window = step.layout.window
    sink = estimator.options.sink // _c.K_BLOCK if step.layout.window_sink else 0
    tiles, visible, firsts = [], [], []
    for rows, keys, offset in step.layout.sequences():
        ends = np.minimum(np.arange(q_block, rows + q_block, q_block), rows)  # of each tile's rows
        tiles.append(len(ends))
        end = -(-np.minimum(ends + offset, keys) // _c.K_BLOCK)
        key = np.maximum(np.arange(0, rows, q_block) + offset + 1 - window, 0) if window else np.zeros_like(end)
        first = np.where(key < keys, key // _c.K_BLOCK, -(-keys // _c.K_BLOCK))
        visible.append(np.tile(end - first + np.minimum(sink, first), heads))
        firsts.append(np.tile(first, heads))
    seen = np.concatenate(visible)
    indptr, indices = np.empty(len(seen) + 1, np.int64), np.empty(int(seen.sum()), np.int32)
    counts = _c.CsrCounts()
    _c.check(_c.lib.sale_blocks_csr(blocks, indptr.ctypes.data, len(seen), indices.ctypes.data, len(indices),
                                    ctypes.byref(counts)))  # fmt: skip
    if counts.rows != len(seen) or counts.kept > len(indices):
        raise _c.InternalError(f"select: {counts.rows} rows of {counts.kept} blocks where {len(seen)} of at most "
                               f"{len(indices)} were expected")  # fmt: skip
    return BlockList(indptr, indices[: counts.kept].copy(), seen, tuple(tiles), heads, q_block,
                     first=np.concatenate(firsts) if window else None, sink=sink)  # fmt: skip


_PALETTE = bytes((246, 246, 244) + (255, 255, 255) + (33, 58, 102))  # cannot see, dropped, kept


def plot_mask(blocks: BlockList, path: str | os.PathLike, *, sequence: int = 0, head: int = 0, scale: int = 0) -> None:
    """Writes a PNG of one head's kept blocks: queries downwards, keys across; dark is computed, white is dropped, grey
    cannot be seen. One block is scale x scale pixels wide for every k_block keys (and as high for as many queries);
    0: so that the picture is about 1,000 pixels wide."""
    instance("blocks", blocks, BlockList, "a sale.BlockList")
    file = path_of("path", path)
    integer("scale", scale, 0, 4096)
    mask = blocks.mask(sequence, head)
    scale = scale or max(1, 1000 // mask.shape[1])
    picture = mask.repeat(scale * blocks.q_block // blocks.k_block, 0).repeat(scale, 1)
    height, width = picture.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture], 1)  # every line begins with its filter: none
    pathlib.Path(file).write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", _PALETTE)
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
