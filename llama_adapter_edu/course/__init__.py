"""What only the course needs: checks, progress, tasks, the demo, the doctor, figures.

Nothing else of the library imports this folder, except the command line.
"""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # the doctor also runs where nothing is installed
    import lazy_loader

    __getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
