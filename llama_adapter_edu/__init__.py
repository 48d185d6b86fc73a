"""llama_adapter_edu: LLaMA-Adapter's gated soft prompts for any transformers decoder.

    model, tokenizer = load_llama()
    model = add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=10, adapter_layers=30))

The public names stand in `__init__.pyi`, where editors and type checkers read them. They are
imported on first use, so `import llama_adapter_edu` alone does not load torch.
"""

import warnings
from contextlib import suppress

# transformers loads tqdm's bars, which warn in a notebook without ipywidgets; they do without them.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"

with suppress(ModuleNotFoundError):  # the doctor also runs where nothing is installed
    import lazy_loader

    __getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
