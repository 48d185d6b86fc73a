"""llama_adapter_edu: LLaMA-Adapter's gated soft prompts for any transformers decoder.

    model, tokenizer = load_llama()
    model = add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=10, adapter_layers=30))

Names are imported on first use, so `import llama_adapter_edu` alone does not load torch.
"""

import warnings
from importlib import import_module

# transformers loads tqdm's bars, which warn in a notebook without ipywidgets; they do without them.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOME = {
    "AdaptionPrompt": "adaption_prompt",
    "AdaptionPromptConfig": "adapt",
    "add_adaption_prompts": "adapt",
    "count_parameters": "adapt",
    "disable_adapter": "adapt",
    "from_pretrained": "hub",
    "gated_prompt_attention": "adaption_prompt",
    "load_adapter": "checkpoint",
    "load_llama": "llama",
    "load_official_adapter": "official_format",
    "parameter_report": "adapt",
    "push_to_hub": "hub",
    "remove_adapter": "adapt",
    "save_adapter": "checkpoint",
    "set_adapter": "adapt",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
