"""Ctrl-C, where it must not leave anything half done."""

from collections.abc import Callable


def whole(work: Callable[[], None]) -> None:
    """Do work to its end; Ctrl-C is raised then. The work can be done twice: it is, if interrupted.

    Ctrl-C lands after any call, so no order of assignments is safe from it.
    """
    done = False
    pressed: KeyboardInterrupt | None = None
    while not done:
        try:
            work()
            done = True
        except KeyboardInterrupt as error:
            pressed = error
    if pressed is not None:
        raise pressed
