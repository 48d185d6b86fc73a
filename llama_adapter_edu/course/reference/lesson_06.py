"""Solutions of lesson 06: what a failed check falls back to.

Generated from solutions/06_into_a_real_llama.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'6.1': 'top_layers', '6.2': 'freeze_all_but_prompts', '6.3': 'sdpa_with_prompts', '6.4': 'attach', '6.5': 'count_parameters', '6.6': 'save_prompts, load_prompts'}
CHECKS = {'6.1': '86b413198839', '6.2': 'c86184436e34', '6.3': '5a56d85d3fb5', '6.4': '11958f6ce50d', '6.5': '628e844e806c', '6.6': 'beced4b36c48'}
STUBS = {'6.1': '82ff37861989', '6.2': '8d680844b94f', '6.3': 'fd01a8621806', '6.4': '00d84b6f818c', '6.5': '6281341bbc1f', '6.6': 'dc16d7596b1d'}
GIVEN = ('_', 'adapted', 'added', 'after', 'answer', 'attention', 'ax', 'bare', 'batch', 'batches', 'biased', 'by_head', 'by_word', 'cached', 'choices', 'chosen', 'column', 'cos', 'count', 'difference', 'expected', 'extra', 'favourites', 'file', 'folder', 'greedy', 'has_peft', 'head_dim', 'heads', 'hidden', 'hook', 'i', 'implementation', 'key', 'largest', 'layer', 'layers', 'left', 'llama', 'llama_7b', 'loss', 'losses', 'mine', 'model', 'my_file', 'name', 'names', 'nothing', 'number', 'numbers', 'o_proj', 'opening', 'openings', 'optimizer', 'other', 'output', 'p', 'parameter', 'position', 'projections', 'prompt', 'prompt_key', 'prompt_value', 'query', 'question', 'recomputed', 'right', 'row', 'rows', 'same', 'saved', 'seen', 'settings', 'shape', 'short', 'sin', 'sizes', 'slots', 'sums', 'texts', 'theirs', 'theta', 'token', 'tokenizer', 'total', 'trainable', 'two_texts', 'unseen', 'value', 'weights', 'widest', 'words', 'wrong', 'x', 'yours')

from collections.abc import Sequence
from pathlib import Path
from einops import rearrange
from jaxtyping import Float
from llama_adapter_edu import AdaptionPrompt
from llama_adapter_edu import gated_prompt_attention
from llama_adapter_edu.method.gated_prompts import prompt_keys_values
from safetensors.torch import load_file
from safetensors.torch import save_file
from torch import Tensor
from torch import nn
from transformers import AttentionInterface
from transformers import AttentionMaskInterface
from transformers import LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from llama_adapter_edu.adapters.inspect import count_parameters


def top_layers(layers: Sequence, count: int) -> Sequence:
    """The topmost `count` of the layers, which are listed from the bottom up.

    Raises ValueError if there are not that many.
    """
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked for {count} layers, the model has {len(layers)}")
    return layers[len(layers) - count :]


def freeze_all_but_prompts(model: nn.Module) -> None:
    """Let the model's `AdaptionPrompt` modules train, and nothing else; in place."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, AdaptionPrompt):
            module.requires_grad_(True)


def sdpa_with_prompts(
    module: nn.Module,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Float[Tensor, "b s h d"], None]:
    """sdpa over the words, plus the gated prompts of the layer `module` if it has any (eq. 7, 8).

    `kwargs` is what else the model passes on. sdpa needs all of it; `scaling` is the scale of the
    scores. Returns the heads and what sdpa gave as weights.
    """
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    prompt_key, prompt_value = prompt_keys_values(
        prompt.prompts, module.k_proj, module.v_proj, module.head_dim
    )
    scale = kwargs["scaling"]
    added = gated_prompt_attention(query, prompt_key, prompt_value, prompt.gate, scale=scale)
    return output + rearrange(added, "b h s d -> b s h d"), weights


def attach(model: LlamaForCausalLM, adapter_layers: int, adapter_len: int = 10) -> None:
    """Add prompts (p m) and gates (h) to the topmost `adapter_layers` layers, in place.

    Only they train afterwards. Their gates are zero: the model computes what it did before. Prompts
    of an earlier call are taken off.
    """
    for layer in model.model.layers:  # prompts of an earlier call would go on training
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    width, n_heads = model.config.hidden_size, model.config.num_attention_heads
    for layer in top_layers(model.model.layers, adapter_layers):
        prompt = AdaptionPrompt(adapter_len, width, n_heads, device=model.device)
        layer.self_attn.adaption_prompt = prompt
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")


def save_prompts(model: nn.Module, path: Path) -> None:
    """Write the model's prompts (p m) and gates (h), and nothing of the base."""
    parameters = model.named_parameters()
    save_file({name: p.detach() for name, p in parameters if ".adaption_prompt." in name}, path)


def load_prompts(model: nn.Module, path: Path) -> None:
    """Read what `save_prompts` wrote into the model's own prompts, in place.

    Raises ValueError or RuntimeError if names or shapes are not those of the model.
    """
    tensors = load_file(path)
    expected = {name for name, _ in model.named_parameters() if ".adaption_prompt." in name}
    if different := sorted(expected ^ set(tensors)):
        raise ValueError(
            f"{path.name} is not for this model: {different[0]} is only in one of them"
        )
    model.load_state_dict(tensors, strict=False)
