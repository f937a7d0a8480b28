#!/usr/bin/env python3
"""Good inputs for the fuzz targets, small ones, so that a minute of fuzzing starts behind the first checks.

usage: seeds.py OUT      writes OUT/TARGET/* and OUT/TARGET.dict; `SALE_FUZZ_ACCEPT=1 TARGET OUT/TARGET/*` says that each
                         is accepted. And OUT/TARGET.known/*, good or bad: what tests/fuzz/corpus/TARGET.zip keeps of
                         earlier runs
       seeds.py --keep FOLDER ZIP   packs the files of a folder, the same bytes for the same files
"""
import json
import pathlib
import struct
import sys
import zipfile

root = pathlib.Path(__file__).resolve().parents[2]
if sys.argv[1] == "--keep":
    with zipfile.ZipFile(sys.argv[3], "w", zipfile.ZIP_DEFLATED, compresslevel=9) as kept:
        for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
            kept.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    sys.exit()
out = pathlib.Path(sys.argv[1])
for target in ("args_fuzz", "calibration_fuzz", "model_files_fuzz"):
    (out / f"{target}.known").mkdir(parents=True, exist_ok=True)
    kept = pathlib.Path(__file__).parent / "corpus" / f"{target}.zip"
    if kept.exists():
        zipfile.ZipFile(kept).extractall(out / f"{target}.known")


def put(target, name, data):
    folder = out / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def put_words(target, words):
    quoted = ("".join(f"\\x{b:02x}" for b in w.encode()) for w in sorted(set(words)))
    (out / f"{target}.dict").write_text("".join(f'"{w}"\n' for w in quoted))


def keys(tree):
    """Every name and short text in a JSON tree."""
    if isinstance(tree, dict):
        return [k for k in tree] + [w for v in tree.values() for w in keys(v)]
    if isinstance(tree, list):
        return [w for v in tree for w in keys(v)]
    return [tree] if isinstance(tree, str) and 0 < len(tree) < 30 else []


extremes = ["-1", "18446744073709551615", "9223372036854775807", "2147483648", "1e308", "null", "[]", "{}", '""', "true"]

# ---- args_fuzz: odd first byte, a problem line (of at most 64 KB a tensor); even, edits to a good problem (args_fuzz.cpp)
lines = [
    "q=100 k=120 d=64",
    "batch=2 qheads=4 kvheads=2 q=20 k=40 offset=auto d=32 type=bf16 tau=0.004 estimator=int8:16 data=real-like seed=7",
    "batch=3 qheads=2 qlens=5,7,9 klens=10,20,30 offsets=auto,3,0 taus=0.1,0 type=f16 estimator=int4 layout=packed",
    "q=40 k=40 d=96 type=f32 compute=int8 sink=64 local=256 densebelow=100 index=1 layout=fused data=nan-k threads=2",
]
for i, line in enumerate(lines):
    put("args_fuzz", f"line{i}", b"\1" + line.encode())
put("args_fuzz", "good", bytes(2))  # no edit: the good problem itself
for slot in range(0, 60, 3):  # one edit, of the problem: (which struct, slot, kind, value)
    put("args_fuzz", f"edit{slot}", bytes([0, 1, 1, slot, 0, 16, 0, 0]))
put_words("args_fuzz", [w for line in lines for part in line.split() for w in (part, part.split("=")[0] + "=")] + extremes)

# ---- calibration_fuzz: the JSON, a zero byte, the projections (fingerprints are made to fit by the target)
bundled = json.loads((root / "models/tiny-llama-128k/calibration.json").read_text())
layers, q_heads, kv_heads, d, rank = 2, 2, 1, 32, 16


def calibration(projected):
    c = json.loads(json.dumps(bundled))
    c["model"].update(layers=layers, q_heads=q_heads, kv_heads=kv_heads, head_dim=d)
    c["estimator"]["rank"] = rank if projected else d
    c["thresholds"] = [[0.004] * q_heads] * layers
    c["provenance"].update(prompts=[{"text": "a", "tokens": 4096}], command="c", note="n")
    if not projected:
        c["projections"] = None
    return json.dumps(c, indent=1).encode()


def safetensors(tensors):
    """[(name, type, shape, bytes)]"""
    header, data = {}, b""
    for name, dtype, shape, content in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


matrix = struct.pack(f"<{d * rank}f", *[(i % 7 - 3) / 8 for i in range(d * rank)])
projections = safetensors([(f"layer.{i}.{w}_projection", "F32", [kv_heads, d, rank], matrix) for i in range(layers) for w in "qk"])
put("calibration_fuzz", "projected", calibration(True) + b"\0" + projections)
put("calibration_fuzz", "whole", calibration(False))
int4 = json.loads(calibration(False))
int4["estimator"]["format"] = "int4"
put("calibration_fuzz", "int4", json.dumps(int4).encode())
put_words("calibration_fuzz", keys(bundled) + ["int4", "int8", "F32", "__metadata__", "data_offsets", "shape"] + extremes)

# ---- model_files_fuzz: the first byte picks the reader
put("model_files_fuzz", "safetensors", b"\0" + safetensors(
    [("a", "BF16", [3, 4], bytes(24)), ("b", "F32", [2], bytes(8)), ("empty", "I64", [0, 5], b"")]))
words = ["BF16", "F16", "I8", "U8", "I32", "dtype", "__metadata__", "weight_map"]
for name in ("models/tiny-llama-128k/config.json", "tests/lm/data/tiny_qwen2/config.json"):
    config = json.loads((root / name).read_text())
    put("model_files_fuzz", name.split("/")[-2], b"\1" + json.dumps(config).encode())
    words += keys(config)
rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}
llama3 = json.loads((root / "models/tiny-llama-128k/config.json").read_text())
llama3.pop("rope_parameters")
llama3["rope_scaling"] = rope
put("model_files_fuzz", "llama3", b"\1" + json.dumps(llama3).encode())
tokenizer = json.loads((root / "models/tiny-llama-128k/tokenizer.json").read_text())
merges = tokenizer["model"]["merges"][:20]
made = {"".join(m) if isinstance(m, list) else m.replace(" ", "") for m in merges}
vocab = {w: i for w, i in tokenizer["model"]["vocab"].items() if len(w) == 1 or w in made}
tokenizer["model"].update(merges=merges, vocab=vocab)
put("model_files_fuzz", "tokenizer", b"\2" + json.dumps(tokenizer, ensure_ascii=False).encode())
tokenizer["model"].update(merges=[], ignore_merges=True)
tokenizer["normalizer"] = {"type": "NFC"}
put("model_files_fuzz", "tokenizer_nfc", b"\2" + json.dumps(tokenizer, ensure_ascii=False).encode())
tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True},
    {"type": "Split", "pattern": {"String": "e"}, "behavior": "MergedWithNext", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}]}
put("model_files_fuzz", "tokenizer_digits", b"\2" + json.dumps(tokenizer, ensure_ascii=False).encode())
spm = {"normalizer": {"type": "Sequence", "normalizers": [
           {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
       "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
       "decoder": {"type": "Sequence", "decoders": [
           {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
           {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
       "model": {"type": "BPE", "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>", "merges": [["t", "h"]],
                 "vocab": {w: i for i, w in enumerate(["<unk>", "<0x2C>", "t", "h", "th", "\u2581"])}}}
put("model_files_fuzz", "tokenizer_spm", b"\2" + json.dumps(spm, ensure_ascii=False).encode())
words += keys(spm) + ["NFKC", "MergedWithPrevious", "Contiguous", "Removed", "always", "never"]
tokenizer["model"]["vocab"] = {}
gguf = (root / "tests/lm/data/tiny_llama.gguf").read_bytes()
put("model_files_fuzz", "gguf", b"\3" + gguf)
words += ["GGUF", "general.architecture", "general.alignment", "tokenizer.ggml.model", "tokenizer.ggml.pre", "qwen2", "smollm"]
chat = """{%- set ns = namespace(found=false) %}{% for m in messages if m.role != 'system' %}{# #}
{{- '<|' + m['role'] + '|>' ~ m.content | trim }}{% if not loop.last and m.content[1:] is defined %}, {% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ bos_token }}{% else %}{{ raise_exception('x') }}{% endif %}"""
put("model_files_fuzz", "chat", b"\4" + chat.encode())
words += ["{%", "%}", "{{", "}}", "-%}", "{%-", "endfor", "endif", "elif", "endset", "loop.index", "[::-1]", "range(", ".items()", "|join", "is none"]
put_words("model_files_fuzz", words + list(rope) + keys(tokenizer) + extremes)
