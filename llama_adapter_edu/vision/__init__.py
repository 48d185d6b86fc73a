"""A Llama that sees: an image encoder whose features are added to an adapter's prompts."""
