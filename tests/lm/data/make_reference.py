#!/usr/bin/env python3
"""Makes the reference files of this folder with transformers, tokenizers and torch.

    python3 make_reference.py MODEL_FOLDER     (writes next to itself)

tokens.json       texts and the ids that tokenizers gives for MODEL_FOLDER; the pre-tokenizer pieces of the published
                  Llama-3 and Qwen2.5 patterns on the same texts (byte-level alphabet undone, so plain text)
rope.json         inverse frequencies and attention factors of each rope type
logits.bin        int32 n, int32 rows, int32 vocab; n ids; `rows` positions; then rows x vocab float32 twice: the
                  fp32 model, and the fp32 model whose attention reads q, k, v and writes its result rounded to bf16
                  (what sale::lm's f32 mode does, since attention is called with bf16 tensors)
logits_1.bin      the same of the model cut to its first layer: over eight layers rounding to bf16 turns differences of
                  1e-6 into differences of bf16 size, over one it does not yet, so the comparison can be strict
logits.json       mean |bf16 - fp32| of transformers on the same rows, as a yardstick
tiny_qwen2/       a random two-layer Qwen2 with biases, untied head, yarn, in several shards
tiny_qwen2.bin    its logits, same layout as logits.bin
tiny_qwen3/, tiny_mistral/, .bin    the same of a Qwen3 (norms of q and k, tied) and a Mistral (window as wide as its positions)

make_gguf.py makes the GGUF files.
"""
import json, os, struct, sys
import torch, tokenizers, transformers
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import AttentionInterface

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "", " ", "\n", "a", "Hello, world!", "It's what they've said: I'LL go, WE'D stay, he'S here'Re.",
    "The special magic number for Lisbon is 7301946. 12 345 6789 0.5 1,000,000",
    "def f(x):\n\treturn {k: v**2 for k, v in x.items()}  # square\n\n\n    if x != 0 and y <= 3:\n        pass\n",
    "trailing spaces   \n   leading\t\ttabs \r\n\r\nmixed \n \n  end   ",
    "                                                                x                         ",
    "na\u00efve caf\u00e9 \u00dcber stra\u00dfe \u017e\u0161 \u0141\u00f3d\u017a \u2014 \u201cquoted\u201d \u2018single\u2019 \u2026",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442, \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac, \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u4e2d\u6587\u6587\u672c\uff0c\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\ud55c\uad6d\uc5b4 \u3000full\u3000width\uff11\uff12\uff13",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 flags \U0001f1eb\U0001f1f7 \u2764\ufe0f skin \U0001f44d\U0001f3fd",
    "\u0663\u0664\u0665 \u00bd \u2167 \u00b2\u00b3 numbers \u0967\u0968\u0969 x\u0301 combining",
    "odd spaces: a\u00a0b\u2003c\u2028d\u0085e\u180ef\u200bg\u202fh\ufeffi",
    "it'\u017f long s, K\u212aelvin, '\u017fo", "<|begin_of_text|>inside<|end_of_text|> and <|pad|><|pa d|>",
    "JSON data:\n{\"1a2b3c4d\": \"deadbeef\",\n \"00ff00ff\": \"cafebabe\"}\n\nKey: \"1a2b3c4d\"\nValue: \"",
    "http://example.org/path?x=1&y=%20#frag foo_bar-baz::qux->quux a/b\\c ~~~ ==== ++--",
    "\x00\x01\x7f control", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism Llanfairpwllgwyngyll",
    "\U00020000\U0002a6d6 rare \U0010ffff last \ue000 private", "\n\n\n \n\n  \n", "''''s ''S 'x 'll'll",
]


def byte_decoder():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, n = {}, 0
    for b in range(256):
        if b in keep: table[chr(b)] = b
        else: table[chr(256 + n)] = b; n += 1
    return table


def pieces(pattern, text):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    table = byte_decoder()
    return [bytes(table[c] for c in p).decode() for p, _ in pre.pre_tokenize_str(text)]


def tokens(folder):
    tok = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    auto = AutoTokenizer.from_pretrained(folder)
    rows = []
    for t in TEXTS:
        ids = tok.encode(t).ids
        assert ids == auto(t).input_ids, t
        rows.append({"text": t, "ids": ids, "llama3": pieces(LLAMA3, t), "qwen2": pieces(QWEN2, t)})
    json.dump({"llama3": LLAMA3, "qwen2": QWEN2, "rows": rows}, open(HERE + "/tokens.json", "w"), indent=0)


def rope():
    cases = {
        "default": dict(rope_theta=1e6, rope_type="default"),
        "linear": dict(rope_theta=1e4, rope_type="linear", factor=4.0),
        "llama3": dict(rope_theta=5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=8192),
        "yarn": dict(rope_theta=1e6, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768),
        "yarn_mscale": dict(rope_theta=1e4, rope_type="yarn", factor=40.0, original_max_position_embeddings=4096,
                            beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.707),
    }
    out = []
    for name, p in cases.items():
        c = LlamaConfig(hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=131072, rope_parameters=dict(p))
        if p["rope_type"] == "default":
            inv, factor = 1.0 / (p["rope_theta"] ** (torch.arange(0, 64, 2, dtype=torch.float) / 64)), 1.0
        else:
            inv, factor = ROPE_INIT_FUNCTIONS[p["rope_type"]](c, "cpu")
        out.append({"name": name, "head_dim": 64, "rope_parameters": p, "attention_factor": float(factor),
                    "inv_freq": [float(x) for x in inv.float()]})
    json.dump(out, open(HERE + "/rope.json", "w"), indent=0)


def bf16_io(module, query, key, value, attention_mask, scaling=None, **_):
    """Causal attention in fp32 on bf16-rounded inputs, result rounded to bf16."""
    r = lambda x: x.to(torch.bfloat16).float()
    q, k, v = r(query), r(key), r(value)
    g = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(g, 1), v.repeat_interleave(g, 1)
    s = (q @ k.transpose(2, 3)) * scaling
    n = q.shape[2]
    s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
    return r(torch.softmax(s, -1) @ v).transpose(1, 2).contiguous(), None


@torch.no_grad()
def logits(model, ids, rows, path):
    x = torch.tensor([ids])
    model.set_attn_implementation("eager")
    plain = model(x).logits[0, rows].float()
    model.set_attn_implementation("bf16_io")
    rounded = model(x).logits[0, rows].float()
    with open(path, "wb") as f:
        f.write(struct.pack("<3i", len(ids), len(rows), plain.shape[1]))
        f.write(struct.pack(f"<{len(ids)}i", *ids) + struct.pack(f"<{len(rows)}i", *rows))
        f.write(plain.numpy().tobytes() + rounded.numpy().tobytes())
    print(path, "mean |bf16 io - fp32|", (plain - rounded).abs().mean().item())
    return plain


def bundled(folder):
    book = open(os.path.join(folder, "../text/moby_dick.txt"), encoding="utf-8").read()
    at = book.index("Call me Ishmael")
    ids = AutoTokenizer.from_pretrained(folder)(book[at:at + 4000]).input_ids[:300]
    rows = [100, 200, 299]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = logits(model, ids, rows, HERE + "/logits.bin")
    one = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, num_hidden_layers=1).eval()
    logits(one, ids, rows[1:], HERE + "/logits_1.bin")
    with torch.no_grad():
        half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        diff = (half(torch.tensor([ids])).logits[0, rows].float() - plain).abs()
    json.dump({"transformers": transformers.__version__, "torch": torch.__version__, "bf16_mean_abs": diff.mean().item(),
               "bf16_max_abs": diff.max().item()}, open(HERE + "/logits.json", "w"))
    print("bf16 against fp32", diff.mean().item(), diff.max().item())


SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)


def tiny_qwen2():
    tiny("tiny_qwen2", Qwen2ForCausalLM, Qwen2Config(
        **SIZES, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)), 1)


def families():
    tiny("tiny_qwen3", Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e4)), 2)
    tiny("tiny_mistral", MistralForCausalLM, MistralConfig(**SIZES, head_dim=8, sliding_window=256, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1e4)), 3)


def tiny(name, family, c, seed):
    torch.manual_seed(seed)
    model = family(c).eval()
    for which, p in model.named_parameters():
        p.data = (torch.randn_like(p) * (0.3 if "norm" not in which else 0.1) + (1 if "norm" in which else 0))
        p.data = p.data.to(torch.bfloat16).float()
    model.to(torch.bfloat16).save_pretrained(f"{HERE}/{name}", max_shard_size="16KB" if seed == 1 else "1GB")
    os.path.exists(f"{HERE}/{name}/generation_config.json") and os.remove(f"{HERE}/{name}/generation_config.json")
    model = family.from_pretrained(f"{HERE}/{name}", dtype=torch.float32).eval()
    logits(model, [(7 * i * i + 3) % 96 for i in range(150)], [10, 80, 149], f"{HERE}/{name}.bin")


if __name__ == "__main__":
    AttentionInterface.register("bf16_io", bf16_io)
    tokens(sys.argv[1]); rope(); bundled(sys.argv[1]); tiny_qwen2(); families()
