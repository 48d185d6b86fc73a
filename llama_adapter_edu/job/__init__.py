"""The job of `python -m llama_adapter_edu finetune`, from a model and rows to an adapter's folder.

`run.py` is the job, `score.py` its test before and after, `own_data.py` takes rows of one's own.
"""
