from .load import load_llama as load_llama
