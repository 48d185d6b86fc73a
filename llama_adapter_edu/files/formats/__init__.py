"""One file for each format of adapters: this library's own, PEFT's, litgpt's, the authors'.

Each turns a file into `AdapterWeights` (see `weights.py`) and back; `save_load.py` chooses.
"""
