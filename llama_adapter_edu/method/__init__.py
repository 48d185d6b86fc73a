"""The papers, in torch and einops: attention, gated prompts, pictures, bias and scale.

Read this first. Nothing here knows transformers or the rest of the project.
"""

from .attention import AttentionLayer as AttentionLayer
from .attention import KeyValueCache as KeyValueCache
from .bias_scale import BiasScale as BiasScale
from .bias_scale import biased_and_scaled as biased_and_scaled
from .cartridge import Cartridge as Cartridge
from .gated_prompts import AdaptionPrompt as AdaptionPrompt
from .gated_prompts import gated_prompt_attention as gated_prompt_attention
from .image_prompts import add_image as add_image
from .wrapped_layer import AdaptationPromptAttentionLayer as AdaptationPromptAttentionLayer
