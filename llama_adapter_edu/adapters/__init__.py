"""Adaption prompts inside a transformers model: add them, choose among them, look inside.

`manage.py` is the way in, `attach.py` is where they meet the model's attention.
"""
