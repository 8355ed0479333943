"""Loading of states without the conversions of `torch.optim`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_Convert = Callable[[Any, str, dict[str, Any]], dict[str, Any]]


class _AsItIs:
    """A value that `torch.optim` does not convert, since it is not a tensor."""

    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def converting(optimizer: Any, convert: _Convert) -> Iterator[None]:
    """Convert states that are loaded in this context with a function.

    `torch.optim` would convert them to the dtypes of the parameters. ``convert(param, name,
    state)`` returns a new state of a parameter, which `name` names in messages. Hooks of the user
    see neither state otherwise than `torch.optim` shows it.
    """

    def before(_: Any, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        groups = zip(state_dict["param_groups"], optimizer.param_groups, strict=False)
        states = dict(state_dict["state"])
        for saved, group in groups:
            if len(saved["params"]) != len(group["params"]):
                return None  # torch.optim refuses it
            for key, param in zip(saved["params"], group["params"], strict=True):
                if key in states:
                    name = f"state_dict['state'][{key!r}]"
                    states[key] = _kept(states[key], convert(param, name, states[key]))
        return {**state_dict, "state": states}

    def after(_: Any) -> None:
        for state in optimizer.state.values():
            state.update({k: v.value for k, v in state.items() if isinstance(v, _AsItIs)})

    # The first hook is called after those of the user, and the second one before them.
    hooks = [
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after, prepend=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kept(given: dict[str, Any], converted: dict[str, Any]) -> dict[str, Any]:
    """Return converted values; those that are the given ones are left to `torch.optim`."""
    return {
        key: value if value is given.get(key) else _AsItIs(value)
        for key, value in converted.items()
    }
