"""`load_llama`: the course's Llama, or any other from the hub or a folder.

`load.py` is the way in. `sources.py` says where the course's Llama may come from.
"""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # the doctor also runs where nothing is installed
    import lazy_loader

    __getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
