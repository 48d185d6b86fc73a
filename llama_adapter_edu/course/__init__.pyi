from .checks.asserts import assert_close as assert_close
from .checks.asserts import assert_results as assert_results
from .checks.asserts import assert_shape as assert_shape
from .checks.asserts import unpacked as unpacked
from .checks.behaviour import assert_any_device as assert_any_device
from .checks.behaviour import assert_gradients as assert_gradients
from .checks.checker import check as check
from .predictions import predict as predict
