"""Small random models of every family that the installed transformers can make from a shrunken configuration."""

import inspect
import os

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

# Whether more is tried, slowly, to make and run models: their inputs are guessed, their axes of positions shrunken.
WIDE = bool(os.environ.get("SALE_FAMILY_WIDE"))
# What a configuration's numbers are shrunken to, by name: small enough to be quick, head dimensions that SALE takes.
SIZES = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "embed_dim": 64, "dim": 64, "embedding_size": 64, "hidden_dim": 64,
    "projection_dim": 64, "intermediate_size": 96, "ffn_dim": 96, "d_ff": 96, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "n_inner": 96, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "feed_forward_dim": 96,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "d_kv": 16,
    "attention_head_dim": 16, "vocab_size": 128, "vocab_size_per_layer_input": 128, "num_local_experts": 4,
    "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "num_experts_per_token": 2, "n_group": 1,
    "topk_group": 1, "max_position_embeddings": 512, "n_positions": 512, "max_source_positions": 256,
    "max_target_positions": 512, "image_size": 64, "patch_size": 8, "num_mel_bins": 16, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32, "sliding_window": 48,
    "attention_chunk_size": 64, "first_k_dense_replace": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "depth": 2, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0,
}  # fmt: skip
LISTS = ("layer_types", "mlp_layer_types")


def shrink(config):
    """The same kind of configuration, small; of its parts too."""
    said = config.to_dict()
    parts = {}
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            parts[name] = shrink(value)
    changes = {name: SIZES[name] for name in said if name in SIZES and isinstance(said[name], int)}
    if "kv_lora_rank" in said and "num_key_value_heads" in changes:  # of a latent, as many as query heads
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    for name in LISTS:
        if isinstance(said.get(name), list):
            changes[name] = [said[name][0], said[name][-1]]
    for name in ("rope_parameters", "rope_scaling"):
        rope = said.get(name)
        if WIDE and isinstance(rope, dict) and isinstance(rope.get("mrope_section"), list):
            changes[name] = {**rope, "mrope_section": sections(rope["mrope_section"], rope.get("partial_rotary_factor") or 1)}
    own = {n: v for n, v in said.items() if n not in changes and n not in parts and n in accepted(type(config))}
    return type(config)(**{**own, **changes, **parts})


def sections(of: list[int], share: float) -> list[int]:
    """Frequencies of each axis of positions, for heads as small as those here."""
    whole = int(SIZES["head_dim"] * share) // 2
    made = [max(1, n * whole // sum(of)) for n in of]
    return [*made[:-1], whole - sum(made[:-1])]


def accepted(kind) -> set[str]:
    found = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__dataclass_fields__", ()))
    return found - {"self", "kwargs", "args", "transformers_version", "model_type", "dtype", "architectures"}


def names() -> list[str]:
    return sorted(set(MODEL_MAPPING_NAMES) | set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def build(kind: str):
    """A model of that type, random, in eval mode, with eager attention."""
    torch.manual_seed(0)
    config = shrink(CONFIG_MAPPING[kind]())
    config._attn_implementation = "eager"
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (config.is_encoder_decoder and kind in MODEL_MAPPING_NAMES)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = auto.from_config(config, attn_implementation="eager").eval()
    for p in model.parameters():  # initial weights are so small that attention would hardly matter
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=1.5 * p[0].numel() ** -0.5)
    return model


TOKENS = 150


def inputs(model) -> dict:
    """Of one forward, two sequences."""
    name = model.main_input_name
    torch.manual_seed(1)
    given = {}
    if name == "input_ids":
        given["input_ids"] = torch.randint(5, 100, (2, TOKENS))
    elif name == "pixel_values":
        size = getattr(model.config, "image_size", 64)
        size = size if isinstance(size, (list, tuple)) else (size, size)
        given["pixel_values"] = torch.randn(2, getattr(model.config, "num_channels", 3), *size)
    elif name == "input_features" and hasattr(model.config, "num_mel_bins"):
        frames = 2 * getattr(model.config, "max_source_positions", TOKENS)
        given["input_features"] = torch.randn(2, model.config.num_mel_bins, frames)
    elif name == "input_values":
        given["input_values"] = torch.randn(2, 16000)
    else:
        raise NotImplementedError(name)
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.randint(5, 100, (2, 70))
    return given


def other_inputs(model):
    """What else a forward may want, where `inputs` was not enough: one guess after the other."""
    takes = inspect.signature(model.forward).parameters
    torch.manual_seed(1)
    image = torch.randn(2, 3, 64, 64)
    if "pixel_values" in takes and "input_ids" in takes:  # towers side by side
        yield {"input_ids": torch.randint(5, 100, (2, 40)), "pixel_values": image}
        yield {"input_ids": torch.randint(5, 100, (2, 40)), "pixel_values": image, "attention_mask": torch.ones(2, 40, dtype=torch.long)}
    if "grid_thw" in takes:  # towers that take patches: of two images
        c = model.config
        patch = getattr(c, "patch_size", 8) ** 2 * getattr(c, "temporal_patch_size", 1)
        channels = getattr(c, "in_channels", None) or getattr(c, "in_chans", None) or getattr(c, "num_channels", 3)
        grid = torch.tensor([[1, 8, 8], [1, 4, 8]])
        for first in ("hidden_states", "pixel_values"):
            if first in takes:
                yield {first: torch.randn(96, channels * patch), "grid_thw": grid}
    if "pixel_values" in takes:
        yield {"pixel_values": image}
        yield {"pixel_values": image[:, None], "pixel_attention_mask": torch.ones(2, 1, 64, 64, dtype=torch.bool)}
    if "input_features" in takes:
        for shape in ((2, 200, 16), (2, 16, 200), (2, 200, 80), (2, 200, 128)):
            yield {"input_features": torch.randn(shape)}
            yield {"input_features": torch.randn(shape), "input_features_mask": torch.ones(shape[:2], dtype=torch.long)}
    if "bbox" in takes:
        yield {"input_ids": torch.randint(5, 100, (2, 40)), "bbox": torch.randint(0, 100, (2, 40, 1)).expand(2, 40, 4)}
    if "past_values" in takes:
        yield {"past_values": torch.randn(2, getattr(model.config, "context_length", 64), getattr(model.config, "num_input_channels", 1))}
    if "input_values" in takes:
        yield {"input_values": torch.randn(2, 1, 16000)}


def run(model, wide: bool = True) -> tuple[dict, torch.Tensor]:
    """Inputs that the model takes, guessed if need be and `wide`, and what it makes of them."""
    with torch.no_grad():
        try:
            given = inputs(model)
            return given, made_of(model, given)
        except Exception as first:
            for given in other_inputs(model) if wide else ():
                try:
                    return given, made_of(model, given)
                except Exception:
                    continue
            raise first


def made_of(model, given) -> torch.Tensor:
    """Of the same random numbers each time: some models draw what they hide."""
    torch.manual_seed(1)
    return first_tensor(model(**given))


def first_tensor(output) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    for x in output.values() if hasattr(output, "values") else output:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            return x
    raise NotImplementedError("no tensor")
