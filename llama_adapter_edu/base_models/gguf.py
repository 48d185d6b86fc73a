"""From one GGUF file of a Llama to the folder of files that transformers loads.

A GGUF file keeps weights, settings and vocabulary together, the weights in a few bits each. The
`gguf` package reads it and restores the numbers. This module gives them the names, the row order
and the settings that transformers expects. transformers can read GGUF files too, but what it then
saves depends on its version, and another version may read it wrongly: with 4.56, a config saved
with 5.24 has another `rope_theta`. These files are the same whatever the version:

    model.safetensors        float16 weights; the output head is tied to the embedding, stored once
    config.json              the model's settings
    generation_config.json   where an answer ends
    tokenizer.json           vocabulary, merges, splitting rule
    tokenizer_config.json    special tokens, chat template
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from einops import rearrange

WEIGHT_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model in the file `gguf` into the existing, empty `folder`, as listed above.

    The file is a Llama with tied embeddings, without biases, with a "smollm" tokenizer.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(str(gguf))
    about = {key.removeprefix("llama."): field.contents() for key, field in reader.fields.items()}
    save_file(_weights(reader, about), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(about).save(str(folder / "tokenizer.json"))
    for name, content in _settings(about).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # safetensors keeps its file to the user. A class may share one cache folder.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def _weights(reader, about: dict) -> dict[str, np.ndarray]:
    """Every weight by the name transformers has for it, in float16."""
    from gguf.quants import dequantize

    heads = {"attn_q": about["attention.head_count"], "attn_k": about["attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        layer, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()
        weight = dequantize(tensor.data, tensor.tensor_type)
        if part in heads:
            # GGUF puts the two rows that rotate together next to each other; transformers
            # puts them half a head apart.
            rows = "(heads pairs two) m -> (heads two pairs) m"
            weight = rearrange(weight, rows, heads=heads[part], two=2)
        prefix = "model." if layer is None else f"model.layers.{layer}."
        weights[f"{prefix}{WEIGHT_NAMES[part]}.weight"] = weight.astype(np.float16)
    return weights


def _tokenizer(about: dict):
    """Byte-level BPE that sets every digit apart, then splits as GPT-2 does: SmolLM2's own rule.

    transformers' reader of GGUF files leaves the digits out, and splits "x  7" in another way.
    """
    from gguf import TokenType
    from tokenizers import Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokens, kinds = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    splits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    special = [i for i, kind in enumerate(kinds) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([tokens[i] for i in special])
    return tokenizer


def _settings(about: dict) -> dict[str, dict]:
    """The JSON files: file name -> content."""
    tokens, context = about["tokenizer.ggml.tokens"], about["context_length"]
    bos, eos = about["tokenizer.ggml.bos_token_id"], about["tokenizer.ggml.eos_token_id"]
    # The file pads with its end-of-turn token. A pad token of its own keeps the two apart.
    pad = tokens.index("<|endoftext|>")
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    heads, width = about["attention.head_count"], about["embedding_length"]
    theta = about["rope.freq_base"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": len(tokens),
        "hidden_size": width,
        "intermediate_size": about["feed_forward_length"],
        "num_hidden_layers": about["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": about["attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": context,
        "rms_norm_eps": about["attention.layer_norm_rms_epsilon"],
        # transformers 4 reads the first, transformers 5 the second.
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "pad_token": tokens[pad],
        "unk_token": tokens[pad],
        "chat_template": about["tokenizer.chat_template"],
    }
    files = "config.json", "generation_config.json", "tokenizer_config.json"
    return dict(zip(files, (config, ids, tokenizer_config), strict=True))
