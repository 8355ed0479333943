"""What the tests share: arrays, a table of the optimizers, kernel cases, threads and processes."""

import pytest

pytest.register_assert_rewrite("support.optimizers", "support.processes", "support.threads")
