#!/usr/bin/env python3
"""A GGUF file as a folder that transformers reads, weights dequantized to bfloat16: folder.py MODEL.gguf FOLDER

For llama and qwen2 models with byte-level vocabularies. Needs the packages gguf, numpy, torch, safetensors and tokenizers.
transformers has a reader of its own, but its tokenizers are not the models': normal forms and digits are lost.
"""
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gguf.gguf_reader import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# What splits a text before its bytes are merged.
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROL, OWN = 3, 4  # token types


def name_of(theirs):
    stem, _, kind = theirs.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


def weights(reader, field, architecture):
    heads = {"attn_q": field("attention.head_count"), "attn_k": field("attention.head_count_kv")}

    def one(tensor):
        w = dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in tensor.shape[::-1]])
        part = tensor.name.split(".")[-2]
        if architecture == "llama" and part in heads:  # rows of a head in pairs, as llama.cpp rotates them
            w = w.reshape(heads[part], -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        return name_of(tensor.name), torch.from_numpy(np.array(w, np.float32)).to(torch.bfloat16)

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(one, reader.tensors))


def tokenizer(reader):
    get = lambda name: reader.get_field(f"tokenizer.ggml.{name}").contents()  # noqa: E731
    words, types = get("tokens"), get("token_type")
    merges = [tuple(m.split(" ")) for m in get("merges")]
    made = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    if get("pre") == "qwen2":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    elif get("pre") == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])  # fmt: skip
    else:
        sys.exit(f"folder.py: tokenizer.ggml.pre is {get('pre')}; qwen2 and smollm are known")
    made.decoder = decoders.ByteLevel()
    special = [i for i, t in enumerate(types) if t in (CONTROL, OWN)]
    made.add_special_tokens([AddedToken(words[i], special=True, normalized=False) for i in special if types[i] == CONTROL])
    made.add_tokens([AddedToken(words[i], normalized=False) for i in special if types[i] == OWN])
    return made, words[get("eos_token_id")]


def main(model, folder):
    reader, folder = GGUFReader(model), Path(folder)
    architecture = reader.get_field("general.architecture").contents()
    if architecture not in ARCHITECTURES:
        sys.exit(f"folder.py: {model} is of architecture {architecture}; {', '.join(ARCHITECTURES)} are known")
    field = lambda name: reader.get_field(f"{architecture}.{name}").contents()  # noqa: E731
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights(reader, field, architecture)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": field("attention.head_count"),
        "num_key_value_heads": field("attention.head_count_kv"),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_theta": field("rope.freq_base"),
        "rope_parameters": {"rope_type": "default", "rope_theta": field("rope.freq_base")},
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    }
    made, end = tokenizer(reader)
    config["eos_token_id"] = made.token_to_id(end)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "model_max_length": config["max_position_embeddings"]}) + "\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
