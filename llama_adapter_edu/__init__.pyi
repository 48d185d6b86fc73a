from .adapters.choice import disable_adapter as disable_adapter
from .adapters.choice import use_adapter as use_adapter
from .adapters.config import AdaptionPromptConfig as AdaptionPromptConfig
from .adapters.inspect import count_parameters as count_parameters
from .adapters.inspect import gate_openings as gate_openings
from .adapters.inspect import parameter_report as parameter_report
from .adapters.inspect import prompt_weights as prompt_weights
from .adapters.manage import add_adaption_prompts as add_adaption_prompts
from .adapters.manage import remove_adapter as remove_adapter
from .adapters.manage import set_adapter as set_adapter
from .base_models.load import load_llama as load_llama
from .data.encoding import encode_dataset as encode_dataset
from .data.evaluate import generate_answers as generate_answers
from .data.instructions import load_instructions as load_instructions
from .files.official import load_official_adapter as load_official_adapter
from .files.save_load import load_adapter as load_adapter
from .files.save_load import save_adapter as save_adapter
from .files.share import from_pretrained as from_pretrained
from .files.share import push_to_hub as push_to_hub
from .method.gated_prompts import AdaptionPrompt as AdaptionPrompt
from .method.gated_prompts import gated_prompt_attention as gated_prompt_attention
from .training.config import TrainingConfig as TrainingConfig
from .training.loop import finetune as finetune
from .vision.attach import add_vision as add_vision

__version__: str
