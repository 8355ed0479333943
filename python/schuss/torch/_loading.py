"""Loading of states without the conversions of `torch.optim`."""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

Convert = Callable[[Any, str, dict[str, Any]], dict[str, Any]]


@contextmanager
def converting(optimizer: Any, convert: Convert, hidden: Set[str]) -> Iterator[None]:
    """Convert states that are loaded in this context.

    `torch.optim` converts them to the dtypes of the parameters. ``convert(param, name, state)``
    returns the entries of the state of a parameter that are loaded instead; `name` names it in
    messages. `torch.optim` does not see the entries that are `hidden`. The user's hooks do.
    """
    loaded: dict[Any, tuple[list[str], dict[str, Any]]] = {}  # the keys in order, and the entries

    def before(_: Any, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        states = dict(state_dict["state"])
        groups = zip(state_dict["param_groups"], optimizer.param_groups, strict=False)
        for saved, group in groups:
            if len(saved["params"]) != len(group["params"]):
                return None  # torch.optim refuses it
            for key, param in zip(saved["params"], group["params"], strict=True):
                state = states.get(key)
                if state is not None:
                    entries = convert(param, f"state_dict['state'][{key!r}]", state)
                    loaded[param] = list(state), entries
                    states[key] = {k: value for k, value in state.items() if k not in hidden}
        return {**state_dict, "state": states}

    def after(_: Any) -> None:
        for param, (keys, entries) in loaded.items():
            state = optimizer.state[param] | entries
            optimizer.state[param] = {key: state[key] for key in keys if key in state}

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
