from .float8 import to_float8 as to_float8
from .fused import fuse_base as fuse_base
from .fused import unfuse_base as unfuse_base
from .load import load_llama as load_llama
from .sharded import load_sharded as load_sharded
from .sharded import shard_base as shard_base
