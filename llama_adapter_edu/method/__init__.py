"""The paper, in torch and einops: attention, gated prompts, prompts with pictures.

Read this first. Nothing here knows transformers or the rest of the project.
"""

from .attention import AttentionLayer as AttentionLayer
from .attention import KeyValueCache as KeyValueCache
from .gated_prompts import AdaptionPrompt as AdaptionPrompt
from .gated_prompts import gated_prompt_attention as gated_prompt_attention
from .image_prompts import add_image as add_image
from .wrapped_layer import AdaptationPromptAttentionLayer as AdaptationPromptAttentionLayer
