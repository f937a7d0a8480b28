#!/usr/bin/env python3
"""Makes the GGUF files of this folder with PyPI's gguf, torch and transformers.

    python3 make_gguf.py     (writes next to itself)

quantized.gguf   one tensor of two rows of 512 weights of every type that is read, of random blocks
quantized.json   FNV-1a over the float bits of each, as gguf.dequantize has them (4 bytes each, little endian)
tiny_llama.gguf  a random two-layer llama in Q8_0, rows of q and k in pairs as llama.cpp's converter puts them, and a
                 SentencePiece tokenizer
tiny_llama.bin   the logits of the same weights by transformers, laid out as logits.bin (make_reference.py)
tiny_llama.json  what the tokenizers package makes of some texts with that tokenizer
"""
import json, os, re
import numpy as np
import gguf
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import AttentionInterface
import make_reference

HERE = os.path.dirname(os.path.abspath(__file__))
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Where a block's f16 scales are; random bits there could be infinities.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def quantized():
    random = np.random.default_rng(16)
    writer, expected = gguf.GGUFWriter(HERE + "/quantized.gguf", "llama"), {}
    for name in TYPES:
        block, size = gguf.GGML_QUANT_SIZES[Type[name]]
        rows = random.integers(0, 256, (2, 512 // block, size), dtype=np.uint8)
        for at in SCALES.get(name, []):
            scale = random.normal(0, 0.1, rows.shape[:2]).astype(np.float16)
            rows[:, :, at:at + 2] = scale[..., None].view(np.uint8).reshape(*rows.shape[:2], 2)
        if name in ("F32", "F16", "BF16"):
            values = random.normal(0, 1, (2, 512)).astype(np.float32)
            rows = {"F32": values, "F16": values.astype(np.float16), "BF16": (values.view(np.uint32) >> 16).astype(np.uint16)}[name].view(np.uint8)
        rows = rows.reshape(2, -1)
        writer.add_tensor(name, rows, raw_shape=rows.shape, raw_dtype=Type[name])
        expected[name] = fnv(gguf.dequantize(rows, Type[name]).astype("<f4").tobytes())
    finish(writer)
    json.dump(expected, open(HERE + "/quantized.json", "w"), indent=0)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pieces():
    """Tokens, scores and types of a small SentencePiece vocabulary: 96 tokens would not hold all bytes, so 300 do."""
    words = ["▁t", "▁a", "he", "▁the", "in", "er", "an", "▁s", "re", "on", "▁w", "▁▁", "th"]
    letters = ["▁", *"etaoinshrdlucmfwygpbvk.,:é"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + words + letters
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) + len(letters))]
    return tokens, scores, [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))


def tiny_llama():
    tokens, scores, types = pieces()
    torch.manual_seed(4)
    c = LlamaConfig(**make_reference.SIZES | {"vocab_size": len(tokens), "intermediate_size": 64}, head_dim=16, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1e4))
    model = LlamaForCausalLM(c).eval()
    writer = gguf.GGUFWriter(HERE + "/tiny_llama.gguf", "llama")
    writer.add_context_length(256), writer.add_embedding_length(32), writer.add_block_count(2), writer.add_feed_forward_length(64)
    writer.add_head_count(4), writer.add_head_count_kv(2), writer.add_key_length(16), writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps), writer.add_rope_freq_base(1e4), writer.add_rope_dimension_count(16), writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama"), writer.add_token_list(tokens), writer.add_token_scores(scores), writer.add_token_types(types)
    writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_unk_token_id(0), writer.add_add_bos_token(True)
    writer.add_chat_template("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}")
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}
    for name, p in model.named_parameters():
        w = (torch.randn_like(p) * (0.3 if "norm" not in name else 0.1) + (1 if "norm" in name else 0)).detach().numpy()
        name = name.removeprefix("model.").removesuffix(".weight")
        layer = re.match(r"layers\.(\d+)\.(.*)", name)
        theirs = f"blk.{layer[1]}.{names[layer[2]]}" if layer else {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name]
        if w.ndim == 1:
            p.data = torch.tensor(w)
            writer.add_tensor(theirs + ".weight", w)
            continue
        w = gguf.dequantize(gguf.quantize(w, Type.Q8_0), Type.Q8_0)
        p.data = torch.tensor(w)
        if theirs.endswith(("attn_q", "attn_k")):  # (head, half, place in the half) -> (head, place, half)
            heads = 4 if theirs.endswith("q") else 2
            w = w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        q = gguf.quantize(w, Type.Q8_0)
        assert (gguf.dequantize(q, Type.Q8_0) == w).all()
        writer.add_tensor(theirs + ".weight", q, raw_shape=q.shape, raw_dtype=Type.Q8_0)
    finish(writer)
    AttentionInterface.register("bf16_io", make_reference.bf16_io)
    make_reference.logits(model, [(7 * i * i + 3) % len(tokens) for i in range(150)], [10, 80, 149], HERE + "/tiny_llama.bin")
    texts = ["the rain in the north", "  two  spaces", "naïve café", "the<s>the</s> end", "日本", "", " ", "anthem, other: rather"]
    tokenizer = Tokenizer.from_str(json.dumps(sentence_piece(tokens, scores)))
    json.dump([{"text": t, "ids": tokenizer.encode(t).ids, "decoded": tokenizer.decode(tokenizer.encode(t, add_special_tokens=False).ids, skip_special_tokens=False)}
               for t in texts], open(HERE + "/tiny_llama.json", "w"), indent=0)


def sentence_piece(tokens, scores):
    """tokenizer.json as transformers converts a SentencePiece model of BPE to."""
    ids = {t: i for i, t in enumerate(tokens)}
    merges = []
    for whole in tokens[259:]:
        ways = [(whole[:i], whole[i:]) for i in range(1, len(whole)) if whole[:i] in ids and whole[i:] in ids]
        merges += [(scores[ids[whole]], w) for w in sorted(ways, key=lambda w: (ids[w[0]], ids[w[1]]))]
    merges = [w for _, w in sorted(merges, key=lambda m: m[0], reverse=True)]
    import make_tokenizers
    kind = make_tokenizers.kinds(0)["llama2"]
    return make_tokenizers.built(kind, {"pieces": {"vocab": ids, "merges": merges}})


if __name__ == "__main__":
    quantized()
    tiny_llama()
