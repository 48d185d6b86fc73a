from .checks.asserts import assert_close as assert_close
from .checks.asserts import assert_shape as assert_shape
from .checks.checker import check as check
