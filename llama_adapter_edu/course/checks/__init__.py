"""Checks of exercises: what they compare, under which conditions, and what they say.

`checker.py` is the way in: `with check("1.1", "split_heads"):` around a check's asserts.
"""

from .asserts import assert_close as assert_close
from .asserts import assert_shape as assert_shape
from .checker import check as check
