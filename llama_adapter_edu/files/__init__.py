"""Adapters on disk and on the hub, in this library's format and in those of others.

`save_load.py` is the way in. The formats are in `formats/`.
"""

from .download import download_adapter as download_adapter
from .formats.official import load_official_adapter as load_official_adapter
from .safe_files import AdapterFileError as AdapterFileError
from .save_load import load_adapter as load_adapter
from .save_load import save_adapter as save_adapter
from .share import from_pretrained as from_pretrained
from .share import push_to_hub as push_to_hub
