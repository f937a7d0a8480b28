#!/usr/bin/env python3
"""Makes tokenizers.json of this folder: kinds of tokenizers, and what the tokenizers package makes of many texts.

    python3 make_tokenizers.py [FILE.gguf ...]     (PyPI: tokenizers; writes next to itself)

models    "bytes" and "pieces": the vocabulary and merges of a small byte-level BPE and of a SentencePiece-like one, both
          trained here on `parts`
kinds     what a tokenizer.json of that name has besides; "model" says which of the models, and what is changed in it
          (`without`: characters whose tokens are renamed to something that no text leads to)
texts     how many texts the generator below is run for; it is written down again in tests/lm/texts.hpp
parts     what texts are made of, beside code points of `ranges`: runs of assigned code points of Unicode 9, the tables
          that the tokenizers package normalizes with
ids       per kind, for every hundred texts, FNV-1a over the ids (4 bytes each, little endian, a text ends with -1)
decoded   the same over the bytes of the decoded texts (a text ends with a zero byte)

With GGUF files it prints `ids` of the tokenizer.json that belongs to each instead (smollm and qwen2 are known), for
tests/lm/real_test.cpp.
"""
import json, os, subprocess, sys
from tokenizers import Tokenizer, Regex, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = 12_000
MASK = (1 << 64) - 1
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PARTS = [
    # code
    "def f(x, *, y=None):\n    return {k: v ** 2 for k, v in x.items() if k != y}  # squares\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i]*b[i];\n}\n\n", "#include <vector>\r\nint main() { return 0; }\r\n",
    "SELECT name, COUNT(*) FROM users WHERE id >= 10 GROUP BY 1;", "fn main() -> Result<(), Box<dyn Error>> { Ok(()) }",
    "x = np.zeros((128, 64), dtype=np.float32)[::-1, :-1]", "<div class=\"a b\">&nbsp;</div><!-- x -->", "if(a&&b||!c)d^=~e>>3;",
    "    if self.is_ready():\n        self.run()\n\n\n", "{\"a\": [1, 2.5e-3, null], \"b\": {\"c\": true}}", "git commit -m 'x' && cd ../..",
    "\t\t\tbreak;\n\t\tdefault:\n", "0xDEADBEEF 0b1010 1_000_000 3.14159 1e10 -42 +7", "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    # prose
    "The quick brown fox jumps over the lazy dog.", "It's what they've said: I'LL go, WE'D stay, he'S here'Re, don't.",
    "Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, ",
    "naïve café Über straße žš Łódź — “quoted” ‘single’ …", "São Paulo, Ångström, Dvořák, İstanbul, Đà Nẵng, ﬁ ﬂ ﬀ ½ ² ³ ™ №",
    "Привет, мир! Ёлки-палки, съешь же ещё этих мягких булок.", "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.", "cafe\u0301 re\u0301sume\u0301 A\u030a n\u0303 o\u0308",
    # scripts
    "今天天气很好，我们去公园吧。", "吾輩は猫である。名前はまだ無い。カタカナ　ﾊﾝｶｸ", "오늘 날씨가 좋다. 한국어 \u1112\u1161\u11ab\u1100\u1173\u11af", "繁體中文與簡體中文混排 ABC１２３",
    "আজ সকালে আকাশ পরিষ্কার ছিল", "आज मौसम बड़ा अच्छा है, क्या आप ठीक हैं? १२३", "தமிழ் மொழி மிகவும் பழமையானது", "తెలుగు భాష", "ಕನ್ನಡ ನುಡಿ", "മലയാളം ഭാഷ", "ગુજરાતી ભાષા", "ਪੰਜਾਬੀ ਬੋਲੀ", "සිංහල භාෂාව",
    "\u0995\u09cb \u0995\u09c7\u09be \u09a1\u09bc \u0958 \u0b95\u0bca", "ภาษาไทยไม่มีวรรค", "ພາສາລາວ", "မြန်မာဘာသာ", "བོད་སྐད་", "ភាសាខ្មែរ",
    "العربية لغة جميلة، أليس كذلك؟ ١٢٣", "فارسی زبان شیرینی است", "اردو ہماری زبان ہے", "עברית שפה יפה, נָכוֹן?", "አማርኛ ቋንቋ", "Հայերեն լեզու", "ქართული ენა", "ⲘⲉⲧⲢⲉⲙ̀ⲛⲭⲏⲙⲓ",
    # emoji
    "😀😃😄", "👨‍👩‍👧‍👦 family", "🇫🇷🇩🇪🇯🇵", "👍🏽👋🏿", "❤️ ☎️ ✈︎ ⌚", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣#️⃣", "🧑‍💻🫠🪿",
    # white space and controls
    " ", "  ", "    ", "        ", "\n", "\n\n", "\n\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2003\u2009", "\u2028\u2029", "\u0085", "\u180e", "\u200b\u200d\ufeff", "\x00\x01\x1b\x7f", "\u202f\u205f\u1680",
    # words of tokenizers
    "<|endoftext|>", "<|im_start|>user\n", "<|im_end|>\n", "<s>", "</s>", "<unk>", "<0x0A>", "<0x", "▁", "▁▁the", "Ġthe", "Ċ", " <mask> ", "<b>", "[INST] hi [/INST]",
    # odd ones
    "it'\u017f long s, K\u212aelvin, '\u017fo", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "!!!???...,,,;;;:::", "http://example.org/a?x=1&y=%20#frag", "ǅ ǈ ᾈ ⅷ Ⅷ ⓐ 🄰 𝐀𝑏𝟘 ꓐ ᴬ ʰ", "٣٤٥ ੩ ௧ 〇 ㊀ ½ Ⅻ", "\u0344 \u0f73 \u1e9b\u0323 \ufb1d \u2126 \u212b \uac01 \u2adc", "\U00020000\U0002a6d6 \U0010ffff \ue000",
]


def runs():
    """Runs of code points that Unicode 9 has assigned (no surrogates), from Perl's tables."""
    asked = r"for (0 .. 0x10FFFF) { print qq($_\n) if !($_ >= 0xD800 && $_ < 0xE000) && chr($_) =~ /\p{Present_In: 9.0}/ }"
    out = []
    for line in subprocess.run(["perl", "-e", "no warnings; " + asked], capture_output=True, text=True, check=True).stdout.split():
        c = int(line)
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


class Random:
    """splitmix64, as sale::lm::Random."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        return z ^ (z >> 31)

    def below(self, n):
        fair = MASK - MASK % n
        x = self.next()
        while x >= fair:
            x = self.next()
        return x % n


def text_of(index, parts, ranges):
    """A few parts one after another: whole ones, slices of them, random code points of one run or of all."""
    random, text = Random(index), ""
    for _ in range(1 + random.below(8)):
        kind = random.below(8)
        if kind < 4:
            text += parts[random.below(len(parts))]
        elif kind < 6:
            part = parts[random.below(len(parts))]
            begin = random.below(len(part))
            text += part[begin:begin + 1 + random.below(12)]
        else:
            first, last = ranges[random.below(len(ranges))]
            for _ in range(1 + random.below(6)):
                if kind == 7:
                    first, last = ranges[random.below(len(ranges))]
                text += chr(first + random.below(last - first + 1))
    return text


def trained(pre, alphabet, size, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, limit_alphabet=320, show_progress=False,
                                  special_tokens=["<unk>", "<s>", "</s>"] if alphabet == [] else [])
    tokenizer.train_from_iterator(PARTS * 3 + [a + b for a, b in zip(PARTS, PARTS[1:])], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": model["merges"]}


def with_bytes(model):
    """The vocabulary with <0x00> .. <0xFF> behind the three special tokens."""
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens = tokens[:3] + [f"<0x{b:02X}>" for b in range(256)] + tokens[3:]
    return {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": model["merges"]}


def added(content, id, **changes):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} | changes


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern} if len(pattern) > 1 else {"String": pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex, add_prefix_space=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def before(token, id):
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}}


def kinds(n):
    """n: the ids of "bytes", behind which its added tokens stand."""
    chat = [added("<|endoftext|>", n), added("<|im_start|>", n + 1), added("<|im_end|>", n + 2)]
    digits = {"type": "Digits", "individual_digits": True}
    space, spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    spm = [added(t, i) for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    fallback = {"base": "pieces", "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    end = {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    bytes_ = {"decoder": byte_level(True), "model": {"base": "bytes"}}
    metaspace = lambda scheme, cut: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}
    return {
        "gpt2": {"pre_tokenizer": byte_level(True), **bytes_},
        "smollm": {"pre_tokenizer": sequence(digits, byte_level(True)), "added_tokens": chat, "decoder": byte_level(True),
                   "model": {"base": "bytes", "without": ["Ā", "Ã", "ð", "Ģ"]}},
        "smollm_unknown": {"pre_tokenizer": sequence(digits, byte_level(True)), "added_tokens": chat, "decoder": byte_level(True),
                           "model": {"base": "bytes", "without": ["Ā", "Ã", "ð", "Ģ"], "unk_token": "!"}},
        "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": sequence(split(QWEN2), byte_level(False)), "added_tokens": chat, **bytes_},
        "llama3": {"pre_tokenizer": sequence(split(LLAMA3), byte_level(False)), "added_tokens": chat, "decoder": byte_level(True),
                   "model": {"base": "bytes", "ignore_merges": True}, "post_processor": before("<|endoftext|>", n)},
        "deepseek": {"pre_tokenizer": sequence(split("[\r\n]"), split("\\s?\\p{L}+"), split("\\s?\\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"),
                                               {"type": "Digits", "individual_digits": False}, byte_level(True)), **bytes_},
        "prefix": {"pre_tokenizer": byte_level(True, True), "normalizer": {"type": "NFKD"},
                   "added_tokens": chat[:1] + [added("<mask>", n + 1, lstrip=True), added("<b>", n + 2, rstrip=True, special=False, normalized=True)], **bytes_},
        "removed": {"pre_tokenizer": sequence(split(QWEN2, "Removed", True), byte_level(False)), "normalizer": {"type": "NFD"}, **bytes_},
        "behaviors": {"pre_tokenizer": sequence(split("\\p{Lu}", "MergedWithNext"), split("[aeiou ]", "MergedWithPrevious"), split("\\p{P}", "Contiguous"),
                                                split("x*"), split("e", "Contiguous"), split("t", "MergedWithNext", True), byte_level(False)), **bytes_},
        "llama2": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}, "pre_tokenizer": None, "added_tokens": spm,
                   "decoder": end, "model": fallback, "post_processor": before("<s>", 1)},
        "llama2_normalized": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}, "pre_tokenizer": None,
                              "added_tokens": [a | {"normalized": True} for a in spm], "decoder": end, "model": fallback},
        "mistral": {"pre_tokenizer": metaspace("first", False), "added_tokens": spm, "decoder": end, "model": fallback, "post_processor": before("<s>", 1)},
        "metaspace": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
                      "pre_tokenizer": metaspace("always", True), "added_tokens": spm, "decoder": metaspace("always", True),
                      "model": {"base": "pieces", "fuse_unk": True, "unk_token": "<unk>"}},
        "unknown": {"pre_tokenizer": metaspace("never", True), "added_tokens": spm, "decoder": metaspace("never", True), "model": {"base": "pieces", "unk_token": "<unk>"}},
    }


def built(kind, bases):
    """The whole tokenizer.json of a kind."""
    model = dict(kind["model"])
    base = bases[model.pop("base")]
    without = set(model.pop("without", []))
    vocab = {"\u2060" + t if without & set(t) else t: i for t, i in base["vocab"].items()}
    merges = [m for m in base["merges"] if not without & set(m[0] + m[1])]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None} | {k: v for k, v in kind.items() if k != "model"} | {
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges} | model}


def fnv(data, value=0xCBF29CE484222325):
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def hashes(tokenizer, texts):
    ids, decoded = [], []
    for at in range(0, len(texts), 100):
        made = [e.ids for e in tokenizer.encode_batch(texts[at:at + 100])]
        ends = [b"".join(i.to_bytes(4, "little") for i in t) + b"\xff" * 4 for t in made]
        ids.append(f"{fnv(b''.join(ends)):016x}")
        plain = [tokenizer.decode(t, skip_special_tokens=False) for t in made]
        decoded.append(f"{fnv(b''.join(p.encode() + bytes(1) for p in plain)):016x}")
    return ids, decoded


def of_gguf(path):
    """tokenizer.json as the model's own repository has it, from the vocabulary in the GGUF."""
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    get = lambda name: fields["tokenizer.ggml." + name].contents()
    tokens, types = get("tokens"), get("token_type")
    pre = {"smollm": (None, sequence({"type": "Digits", "individual_digits": True}, byte_level(True))),
           "qwen2": ({"type": "NFC"}, sequence(split(QWEN2), byte_level(False)))}[get("pre")]
    special = [added(t, i) for i, (t, k) in enumerate(zip(tokens, types)) if k in (3, 4)]
    return built({"normalizer": pre[0], "pre_tokenizer": pre[1], "added_tokens": special, "decoder": byte_level(True), "model": {"base": "it"}},
                 {"it": {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": [m.split(" ") for m in get("merges")]}})


def main():
    ranges = runs()
    texts = [text_of(i, PARTS, ranges) for i in range(TEXTS)]
    for path in sys.argv[1:]:
        whole = fnv("".join(hashes(Tokenizer.from_str(json.dumps(of_gguf(path))), texts)[0]).encode())
        print(path, f"{whole:016x}")
    if sys.argv[1:]:
        return
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bases = {"bytes": trained(pre_tokenizers.ByteLevel(add_prefix_space=False), sorted(alphabet), 700),
             "pieces": with_bytes(trained(pre_tokenizers.Metaspace(prepend_scheme="always"), [], 640, unk_token="<unk>"))}
    data = {"texts": TEXTS, "parts": PARTS, "ranges": ranges, "models": bases, "kinds": kinds(len(bases["bytes"]["vocab"])), "ids": {}, "decoded": {}}
    for name, kind in data["kinds"].items():
        tokenizer = Tokenizer.from_str(json.dumps(built(kind, bases)))
        data["ids"][name], decoded = hashes(tokenizer, texts)
        if "without" not in kind["model"]:  # else texts lose bytes, which decode() there makes replacement characters of
            data["decoded"][name] = decoded
    lines = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace('},"', '},\n"')
    open(os.path.join(HERE, "tokenizers.json"), "w").write(lines + "\n")


if __name__ == "__main__":
    main()
