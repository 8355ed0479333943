"""The controller that lets threadpoolctl inspect and limit the thread pool."""

import threadpoolctl

from schuss import _core


class _Controller(threadpoolctl.LibController):  # type: ignore[misc]
    user_api = "schuss"
    internal_api = "schuss"
    filename_prefixes = ("_core.",)  # not unique: `check_symbols` decides
    check_symbols = ("schuss_get_num_threads",)

    def get_num_threads(self) -> int:
        threads: int = self.dynlib.schuss_get_num_threads()
        return threads

    def set_num_threads(self, num_threads: int) -> None:
        # A number that is too large is clipped, as with BLAS.
        self.dynlib.schuss_set_num_threads(num_threads)

    def get_version(self) -> str:
        return _core.__version__


def register() -> None:
    threadpoolctl.register(_Controller)
