"""Rows of text -> token ids -> batches; and answers of a model, compared with the right ones."""
