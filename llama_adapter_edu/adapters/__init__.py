"""Adaption prompts inside a transformers model: add them, choose among them, look inside.

`manage.py` is the way in, `choice.py` says which adapter acts, and in `attach.py` prompts meet the
model's attention.
"""

from .cartridge import add_cartridge as add_cartridge
from .cartridge import compose_cartridges as compose_cartridges
from .choice import active_adapter as active_adapter
from .choice import disable_adapter as disable_adapter
from .choice import use_adapter as use_adapter
from .config import AdaptionPromptConfig as AdaptionPromptConfig
from .config import CartridgeConfig as CartridgeConfig
from .inspect import count_parameters as count_parameters
from .inspect import gate_openings as gate_openings
from .inspect import parameter_report as parameter_report
from .inspect import prompt_weights as prompt_weights
from .manage import adapter_configs as adapter_configs
from .manage import adapter_prompts as adapter_prompts
from .manage import add_adaption_prompts as add_adaption_prompts
from .manage import remove_adapter as remove_adapter
from .manage import set_adapter as set_adapter
