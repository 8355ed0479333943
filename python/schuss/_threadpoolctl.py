"""Lets threadpoolctl, where it is installed, see and limit the threads of steps."""

import threadpoolctl

from schuss import _core


class _Controller(threadpoolctl.LibController):  # type: ignore[misc]
    user_api = "schuss"
    internal_api = "schuss"
    filename_prefixes = ("_core.",)  # others have such a file too: the symbols tell
    check_symbols = ("schuss_get_num_threads",)

    def get_num_threads(self) -> int:
        threads: int = self.dynlib.schuss_get_num_threads()
        return threads

    def set_num_threads(self, num_threads: int) -> None:
        # As with BLAS, what is too many is as many as there can be.
        self.dynlib.schuss_set_num_threads(num_threads)

    def get_version(self) -> str:
        return _core.__version__


def register() -> None:
    threadpoolctl.register(_Controller)
