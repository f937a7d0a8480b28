#!/usr/bin/env python3
"""GGUF files for SALE's llama.cpp backend; the standard library only, and the sale program for calibrations.

  gguf.py convert MODEL_DIR OUT.gguf             a Llama folder (BF16 safetensors, tokenizer.json) as F16 GGUF
  gguf.py fingerprint FILE.gguf                  what the backend knows a model by
  gguf.py calibration CAL.json FILE.gguf FOLDER  a calibration of `sale calibrate` for use with that GGUF:
                                                 FOLDER/FINGERPRINT.json and, with projections, FINGERPRINT.tensors;
                                                 SALE_PROGRAM names the sale program (default: sale)
"""
import array
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

ALIGNMENT = 32
F32, F16 = 0, 1  # ggml's tensor types
# GGUF value types: number -> (struct format, bytes)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MASK = (1 << 64) - 1
# Architectures whose converters reorder the rows of Q and K, half by half to pair by pair, and those that do not.
PAIRED, HALVES = {"llama"}, {"qwen2", "qwen3"}


def fail(text):
    sys.exit(f"gguf.py: {text}")


def fnv(data, value=0xCBF29CE484222325):
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


# ---- safetensors ----------------------------------------------------------------------------------------------


def read_safetensors(path):
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    return {n: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for n, t in header.items()}


def floats_of_bf16(body):
    wide = bytearray(2 * len(body))
    wide[2::4], wide[3::4] = body[0::2], body[1::2]
    numbers = array.array("f")
    numbers.frombytes(bytes(wide))
    return numbers


def pair_rows(body, heads, rows, row_bytes):
    """Rows of each head from halves (0, 1, .. | n/2, ..) to pairs (0, n/2, 1, n/2 + 1, ..), as llama.cpp rotates them."""
    out, half = bytearray(), rows // 2
    for head in range(heads):
        for i in range(half):
            for part in range(2):
                at = (head * rows + part * half + i) * row_bytes
                out += body[at : at + row_bytes]
    return bytes(out)


# ---- GGUF -----------------------------------------------------------------------------------------------------


def text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(v):
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + text(v)
    if isinstance(v[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(v)) + b"".join(map(text, v))
    return struct.pack(f"<IIQ{len(v)}i", ARRAY, 5, len(v), *v)


def write_gguf(path, meta, tensors):
    """tensors: name -> (type, extents with the contiguous one first, bytes)."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(meta))
    head += b"".join(text(k) + value(v) for k, v in meta.items())
    offset = 0
    for name, (kind, extents, body) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)
        offset += len(body) + -len(body) % ALIGNMENT
    with open(path, "wb") as out:
        out.write(head + bytes(-len(head) % ALIGNMENT))
        for _, _, body in tensors.values():
            out.write(body + bytes(-len(body) % ALIGNMENT))


class Gguf:
    """Metadata and tensor places of a GGUF file; arrays are skipped."""

    def __init__(self, path):
        self.file, self.meta, self.tensors = open(path, "rb"), {}, {}
        magic, version, tensors, entries = self.take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            fail(f"{path} is not a GGUF file of version 2 or 3")
        if tensors > 1 << 20 or entries > 1 << 20:
            fail(f"{path} claims {tensors} tensors and {entries} entries")
        for _ in range(entries):
            key = self.text()
            self.meta[key] = self.value(*self.take("<I"))
        for _ in range(tensors):
            name = self.text()
            (axes,) = self.take("<I")
            if axes > 4:
                fail(f"{path}: tensor {name} has {axes} axes")
            *extents, kind, offset = self.take(f"<{axes}QIQ")
            self.tensors[name] = (kind, extents, offset)
        alignment = self.meta.get("general.alignment", ALIGNMENT)
        self.data = self.file.tell() + -self.file.tell() % alignment

    def take(self, form):
        size = struct.calcsize(form)
        raw = self.file.read(size)
        if len(raw) < size:
            fail("the GGUF file ends early")
        return struct.unpack(form, raw)

    def text(self):
        (length,) = self.take("<Q")
        if length > 1 << 24:
            fail(f"the GGUF file has a text of {length} bytes")
        return self.take(f"<{length}s")[0].decode(errors="replace")

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            if kind not in SCALARS:
                fail(f"the GGUF file has a value of unknown type {kind}")
            return self.take("<" + SCALARS[kind])[0]
        inner, count = self.take("<IQ")
        if inner in SCALARS:
            self.file.seek(count * struct.calcsize("<" + SCALARS[inner]), 1)
        else:
            for _ in range(count):
                self.value(inner)
        return None

    def first_bytes(self, name, count):
        self.file.seek(self.data + self.tensors[name][2])
        return self.take(f"<{count}s")[0]


# ---- the commands ---------------------------------------------------------------------------------------------


def fingerprint(gguf):
    """FNV-1a over the attention norms, as integrations/ggml/layers.hpp has it."""
    prefix, suffix, found = "blk.", ".attn_norm.weight", {}
    for name in gguf.tensors:
        number = name[len(prefix) : -len(suffix)]
        if name.startswith(prefix) and name.endswith(suffix) and number.isdigit():
            found[int(number)] = name
    if not found:
        fail("no attention norms (blk.N.attn_norm.weight): the backend will not know this model")
    hash_value = fnv(b"")
    for _, name in sorted(found.items()):
        kind, extents, _ = gguf.tensors[name]
        if kind != F32:
            fail(f"{name} is not F32")
        count = min(64, 4 * extents[0])
        hash_value = fnv(name.encode() + b"\0F32\0" + b"%d," % extents[0] + gguf.first_bytes(name, count), hash_value)
    return f"{hash_value:016x}"


def convert(folder, out):
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    if config["architectures"] != ["LlamaForCausalLM"] or config.get("rope_scaling"):
        fail(f"{folder}: only LlamaForCausalLM without rope scaling is converted")
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    tokens = [special.get(i, content) for content, i in vocabulary]
    if [i for _, i in vocabulary] != list(range(len(tokens))) or len(tokens) != config["vocab_size"]:
        fail(f"{folder}: the vocabulary has gaps")
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    meta = {
        "general.architecture": "llama",
        "general.name": folder.resolve().name,
        "general.file_type": 1,  # mostly F16
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.key_length": dim,
        "llama.attention.value_length": dim,
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": dim,
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",  # the split pattern of the bundled tokenizer: digits one by one
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(tokens))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
        "tokenizer.ggml.add_bos_token": True,
    }
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    for layer in range(config["num_hidden_layers"]):
        names |= {f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}" for theirs, ours in parts.items()}
    tensors = {}
    for name, (dtype, shape, body) in read_safetensors(folder / "model.safetensors").items():
        if dtype != "BF16" or not name.endswith(".weight") or name[:-7] not in names:
            fail(f"{folder}: tensor {name} of type {dtype} is not expected")
        body = bytes(body)
        for which, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if which in name:
                body = pair_rows(body, count, dim, 2 * shape[1])
        numbers = floats_of_bf16(body)
        if len(shape) == 1:  # norms stay F32
            kind, raw = F32, numbers.tobytes()
        else:
            kind, raw = F16, struct.pack(f"<{len(numbers)}e", *numbers)
        tensors[names[name[:-7]] + ".weight"] = (kind, shape[::-1], raw)
    write_gguf(out, meta, tensors)


def calibration(source, model, folder):
    """What the file says is the library's to read and write; here is what the GGUF says."""
    gguf, folder = Gguf(model), Path(folder)
    architecture = gguf.meta.get("general.architecture")
    if architecture not in PAIRED | HALVES:
        fail(f"architecture {architecture} is not supported: how its converter orders Q and K is not known")
    name, folder = fingerprint(gguf), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = [os.environ.get("SALE_PROGRAM", "sale"), "adopt", source, "--fingerprint", name, "--out", folder / f"{name}.json"]
    for option, field in (("--layers", "block_count"), ("--q-heads", "attention.head_count"), ("--kv-heads", "attention.head_count_kv")):
        if isinstance(theirs := gguf.meta.get(f"{architecture}.{field}"), int):
            command += [option, str(theirs)]
    try:
        done = subprocess.run(command + ["--pairs"] * (architecture in PAIRED), stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        fail(f"{command[0]}: no such program; let SALE_PROGRAM name the sale program")
    if done.returncode:
        sys.exit(done.returncode)
    print(folder / f"{name}.json")


def main():
    commands = {"convert": (convert, 2), "fingerprint": (lambda f: print(fingerprint(Gguf(f))), 1), "calibration": (calibration, 3)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands or len(sys.argv) - 2 != commands[sys.argv[1]][1]:
        sys.exit(__doc__.strip())
    commands[sys.argv[1]][0](*sys.argv[2:])


if __name__ == "__main__":
    main()
