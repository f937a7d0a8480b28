# %% [markdown]
# SALE in Python: attention on arrays, then a model. Cells as Jupyter and editors read them; `make test` runs the file.
# Needs numpy; from the second part on torch and transformers.

# %%
import pathlib
import sys

import numpy as np
import sale

tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
print(sale.machine())
print({name: why or "usable" for name, why in sale.backends().items()})

# %% [markdown]
# ## Arrays
# The layout is [batch, heads, tokens, head_dim]; two query heads share a kv head here.

# %%
random = np.random.default_rng(0)
q = 3 * random.standard_normal((1, 4, tokens, 64), np.float32)
k, v = random.standard_normal((2, 1, 2, tokens, 64), np.float32)
out, lse, stats = sale.attention(q, k, v, thresholds=8.0, return_lse=True, return_stats=True)
print(f"{stats.backend}: {stats.density:.1%} of the blocks, {stats.select_s:.2f} s to select, {stats.attend_s:.2f} s to attend")

# %% [markdown]
# What was kept, as a picture and as compressed sparse rows.

# %%
blocks = sale.select(q, k, thresholds=8.0)
sale.plot_mask(blocks, "blocks.png", head=1)
print(blocks.row(0, 1, 20), "are the kept key blocks of head 1's query tile 20")

# %% [markdown]
# ## A model
# Importing sale.transformers is all it takes; the thresholds are those of the model's calibration.

# %%
import sale.transformers  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

root = pathlib.Path(__file__).resolve().parents[1]
folder = str(root / "models/tiny-llama-128k")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sale", dtype=torch.float32)

book = (root / "models/text/middlemarch.txt").read_text()
start, length = book.index("\n\n", 20000), int(3.2 * tokens)
hidden = book.index(". ", start + length // 2) + 1  # the fact comes after a sentence in the middle
prompt = (book[start:hidden] + " The special magic number for Oslo is 4518530." + book[hidden : start + length].rsplit(". ", 1)[0]
          + ". What is the special magic number for Oslo? The special magic number for Oslo is")  # fmt: skip
inputs = tokenizer(prompt, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=9, do_sample=False, pad_token_id=2)[0, inputs.input_ids.shape[1] :]
print(f"{inputs.input_ids.shape[1]} tokens:", tokenizer.decode(answer))
assert tokenizer.decode(answer) == " 4518530."
