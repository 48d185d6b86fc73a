"""A Llama that sees: an image encoder whose features are added to an adapter's prompts.

`attach.py` is the way in, `encoders.py` turns images into features.
"""

from .attach import add_vision as add_vision
from .encoders import ClipEncoder as ClipEncoder
from .encoders import DigitEncoder as DigitEncoder
