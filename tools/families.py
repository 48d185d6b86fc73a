"""Which model families of transformers take prompts, and why the others do not: docs/families.md.

    python -m tools.families            look at all, print the table
    python -m tools.families --write    and write it into the page

Each family is built small, with random weights. "Exact" means: the keys and values of prompts equal
those that the model itself puts into its cache for the same input, on a position where a rotary
embedding turns nothing.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.adapters.layers.keys import layer_keys_values

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
START, END = "<!-- families -->\n", "<!-- end of families -->"
LARGEST = 30_000_000  # parameters of what still counts as small
SIZES = {
    **dict(hidden_size=48, intermediate_size=64, num_hidden_layers=4, vocab_size=96, head_dim=8),
    **dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64),
    **dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=5),
    **dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, n_routed_experts=4),
    **dict(moe_intermediate_size=16, d_model=48, n_layer=4, n_head=6, num_layers=4, num_heads=6),
    **dict(ffn_dim=64, word_embed_proj_dim=48),
}
# What a family needs besides, where it cannot be built from these.
MORE = {
    "gemma4_text": dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=96),
    "llama4_text": dict(intermediate_size_mlp=64, num_local_experts=2),
    "minimax": dict(num_local_experts=2),
    "olmo": dict(clip_qkv=0.05),
    "olmoe": dict(clip_qkv=0.5),
    "phi": dict(qk_layernorm=True),
    "cohere": dict(use_qk_norm=True),
}


class NotSmallError(Exception):
    """transformers cannot build or run the family from the sizes above."""


def small(name: str) -> PreTrainedModel:
    """A small random model of the family, the same each time.

    Raises:
        NotSmallError: it cannot be built or run so.
    """
    try:
        known = AutoConfig.for_model(name)
        sizes = {key: size for key, size in SIZES.items() if hasattr(known, key)}
        if getattr(known, "head_dim", 0) is None:
            del sizes["head_dim"]
        config = AutoConfig.for_model(name, **sizes | MORE.get(name, {}))
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise NotSmallError(f"{size / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            model(input_ids=torch.tensor([[3, 4, 5]]))
    except NotSmallError:
        raise
    except Exception as error:  # whatever an unusual family does with sizes that are not its own
        raise NotSmallError(f"{type(error).__name__}") from error
    return model


def difference(model: PreTrainedModel) -> float:
    """The largest difference between prompts' keys and values and those in the model's cache."""
    inputs: dict[nn.Module, torch.Tensor] = {}

    def keep(attention: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs[attention] = args[0] if args else kwargs["hidden_states"]

    layers = attention_layers(model)
    hooks = [a.register_forward_pre_hook(keep, with_kwargs=True) for a in layers]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = model(input_ids=torch.tensor([[3], [40]]), use_cache=True).past_key_values
        pairs = [layer_keys_values(a, inputs[a][:, 0]) for a in layers]
    for hook in hooks:
        hook.remove()
    found = []
    for attention, pair, layer in zip(layers, pairs, cache.layers, strict=False):
        adapted = hasattr(attention, "adaption_prompts")
        if adapted and getattr(layer, "keys", None) is not None:
            for ours, theirs in zip(pair, (layer.keys, layer.values), strict=True):
                found.append((ours.transpose(0, 1) - theirs[:, :, -1]).abs().max().item())
    return max(found, default=math.nan)  # without a cache there is nothing to compare with


def judge(name: str) -> str:
    """ "exact", or why the family is refused; with the difference, should it be neither.

    Raises:
        NotSmallError: it cannot be built or run small.
    """
    model = small(name)
    try:
        add_adaption_prompts(model, AdaptionPromptConfig(4, 3))
    except ValueError as error:
        return str(error)
    worst = difference(model)
    return "exact" if worst < 1e-5 else f"DIFFERS by {worst:.1e}"


def verdicts() -> Iterator[tuple[str, str]]:
    """(family, verdict) of all that transformers can build small, in the order of their names."""
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            yield name, judge(name)
        except NotSmallError as error:
            print(f"{name}: not built, {error}", file=sys.stderr)


def table(found: list[tuple[str, str]]) -> str:
    """The page's part that is generated."""
    exact = [name for name, verdict in found if verdict == "exact"]
    refused: dict[str, list[str]] = {}
    for name, verdict in found:
        if verdict != "exact":
            reason = verdict.partition(": ")[2] if ": layers [" in verdict else verdict
            reason = "some layers have no self_attn" if reason.startswith("layers [") else reason
            kind, _, rest = reason.partition(" ")
            reason = reason if kind in ("some", "layer", "DIFFERS") else f"it {rest}"
            refused.setdefault(reason.replace("|", "\\|"), []).append(name)
    rows = "\n".join(f"| {reason} | {', '.join(names)} |" for reason, names in refused.items())
    return (
        f"With transformers {transformers.__version__}, {len(exact)} families take prompts:\n"
        f"{', '.join(exact)}.\n\n"
        "The others are refused, and the model stays as it was:\n\n"
        f"| why | families |\n|---|---|\n{rows}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/families.md")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    found = list(verdicts())
    text = table(found)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(START)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{START}{text}{END}{after}", encoding="utf-8")
    else:
        print(text)
    return int(any("DIFFERS" in verdict for _, verdict in found))


if __name__ == "__main__":
    raise SystemExit(main())
