"""The text that the trainings read: the topics of Python's `help`, about 460,000 characters.

It comes with Python, and differs a little between its versions.
"""

from functools import cache

HELD_OUT = 10
"""Each tenth part is not learned from."""
PARTS = 200


@cache
def texts() -> tuple[str, str]:
    """Return the text to learn from, and the text to test on."""
    from pydoc_data import topics

    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    size = len(whole) // PARTS + 1
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    tested = parts[::HELD_OUT]
    learned = [part for i, part in enumerate(parts) if i % HELD_OUT]
    return "".join(learned), "".join(tested)
