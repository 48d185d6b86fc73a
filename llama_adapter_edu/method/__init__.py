"""The paper, in torch and einops: attention, gated prompts, prompts with pictures.

Read this first. Nothing here knows transformers or the rest of the project.
"""
