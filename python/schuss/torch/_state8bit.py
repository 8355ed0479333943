"""A state in 8 bits as a tensor."""

from typing import Any, Self

import torch
from torch.utils._pytree import tree_leaves, tree_map

from schuss._arrays import Array
from schuss.reference._square_code import block_dtype, blocks_of, decode, encode

_OPS = torch.ops.aten
_ALIASES = (_OPS.detach.default, _OPS.alias.default)
_READ_MEMORY = tuple(
    getattr(torch.Tensor, name) for name in ("float", "numpy", "tolist", "__array__")
)


class State8bit(torch.Tensor):  # type: ignore[misc]  # Any, as mypy has no torch
    """A state of a parameter in 8 bits, which is read as a float32 tensor of the same shape.

    Optimizers with ``state_dtype="8bit"`` make it. Every operation of PyTorch computes with the
    float32 values, and returns an ordinary tensor. Operations in place, such as ``zero_()`` and
    ``state[index] = 0``, round the results to nearest. A view, such as ``state[index]``, is a
    copy. ``to(dtype)``, ``float()`` and `dequantize` return the values, which is also what
    `torch.optim` loads from a state dict. ``clone()``, ``to(device)``, copies and pickles keep the
    8 bits. `torch.load` reads them once `schuss.torch` is imported.

    Attributes
    ----------
    blocks : torch.Tensor
        What is in memory: uint8 of shape (ceil(n / 128), 132), for each 128 elements in the order
        of the parameter's memory a scale in float32 and 128 codes of one byte. See
        `schuss.reference.decode`.
    nonnegative : bool
        Whether no element is negative, so that codes have no sign.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(64, 64, requires_grad=True)
    >>> opt = schuss.torch.Adam([w], state_dtype="8bit")
    >>> w.sum().backward()
    >>> opt.step()
    >>> m = opt.state[w]["exp_avg"]
    >>> m.blocks.nbytes, round(m.norm().item(), 2)
    (4224, 6.4)
    """

    blocks: Any
    nonnegative: bool

    @staticmethod
    def __new__(cls, blocks: Any, shape: Any, stride: Any, nonnegative: bool) -> Self:
        """Return a state with these blocks; `stride` is dense."""
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=stride, dtype=torch.float32, device=blocks.device
        )
        if blocks.shape != (blocks_of(made.numel()), block_dtype(nonnegative).itemsize):
            raise ValueError(
                f"State8bit: blocks have shape {tuple(blocks.shape)}, expected those of "
                f"{made.numel()} elements"
            )
        made.blocks, made.nonnegative = blocks, nonnegative
        return made

    def dequantize(self) -> torch.Tensor:
        """Return the values as a new tensor.

        Returns
        -------
        torch.Tensor
            In float32, in the memory order of the parameter.
        """
        flat = decode(array_of_blocks(self), self.numel())
        values = torch.from_numpy(flat).as_strided(self.shape, self.stride())
        return values.to(self.device)

    def __repr__(self, **options: Any) -> str:
        return f"State8bit({self.dequantize()!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the blocks."""
        stride = tuple(self.stride())
        return State8bit, (self.blocks, tuple(self.shape), stride, self.nonnegative)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle the functions of Python that do not become operations."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, State8bit):
            names_dtype = func is torch.Tensor.to and _names_dtype(*args[1:], *kwargs.values())
            if names_dtype or func in _READ_MEMORY:
                return func(first.dequantize(), *args[1:], **kwargs)
            if func is torch.Tensor.share_memory_:
                first.blocks.share_memory_()
                return first
            if func is torch.Tensor.__setitem__:
                values = first.dequantize()
                values[args[1]] = args[2]
                return first.copy_(values)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with the values; what is written is rounded again."""
        kwargs = kwargs or {}
        first: Any = args[0] if args else None
        if func in _ALIASES:
            return first._with(first.blocks)
        if func is _OPS.clone.default and _keeps_format(kwargs):
            return first._with(first.blocks.clone())
        if func is _OPS._to_copy.default and _keeps_format(kwargs):
            device = kwargs.get("device") or first.device
            return first._with(first.blocks.to(device, copy=True))
        values: dict[int, Any] = {}

        def value(argument: Any) -> Any:
            if not isinstance(argument, State8bit):
                return argument
            if id(argument) not in values:
                values[id(argument)] = argument.dequantize()
            return values[id(argument)]

        result = func(*tree_map(value, args), **tree_map(value, kwargs))
        written = [each for each in _written(func, args, kwargs) if isinstance(each, State8bit)]
        for state in written:
            again = encoded(values[id(state)], state, nonnegative=state.nonnegative)
            state.blocks.copy_(again.blocks)
        originals = {id(values[id(state)]): state for state in written}
        return tree_map(lambda each: originals.get(id(each), each), result)

    def _with(self, blocks: Any) -> "State8bit":
        return State8bit(blocks, self.shape, self.stride(), self.nonnegative)


State8bit.__module__ = "schuss.torch"  # pickles name the public module
torch.serialization.add_safe_globals([State8bit])


def encoded(
    values: Any, like: Any, *, nonnegative: bool, name: str = "a state in 8 bits"
) -> State8bit:
    """Return values in 8 bits, rounded to nearest, in the order of the memory of `like`.

    Values of blocks in the same order stay exactly as they are. `name` begins messages.
    """
    stride = dense_stride(like)
    ordered = torch.empty_strided(like.shape, stride, dtype=torch.float32).copy_(values)
    flat = ordered.as_strided((ordered.numel(),), (1,))
    if nonnegative and (flat < 0).any():
        raise ValueError(f"{name} has elements less than 0, expected none in a second moment")
    array = encode(flat.numpy(), nonnegative)
    blocks = torch.from_numpy(array.view("u1").reshape(len(array), array.itemsize))
    return State8bit(blocks.to(like.device), like.shape, stride, nonnegative)


def filled(value: float, like: Any, *, nonnegative: bool) -> State8bit:
    """Return a state whose elements all have one value."""
    if value != 0:
        return encoded(torch.full_like(like, value), like, nonnegative=nonnegative)
    shape = (blocks_of(like.numel()), block_dtype(nonnegative).itemsize)
    blocks = torch.zeros(shape, dtype=torch.uint8, device=like.device)
    return State8bit(blocks, like.shape, dense_stride(like), nonnegative)


def is_for(param: Any, state: Any, *, nonnegative: bool) -> bool:
    """Return whether a tensor is a state in 8 bits in the order of a parameter's memory."""
    if not isinstance(state, State8bit) or state.shape != param.shape:
        return False
    strides = zip(state.stride(), dense_stride(param), param.shape, strict=True)
    is_same_order = all(own == stride for own, stride, size in strides if size > 1)
    is_same_kind = state.nonnegative == nonnegative and state.device == param.device
    return is_same_order and is_same_kind


def dense_stride(tensor: Any) -> tuple[int, ...]:
    """Return the strides of a tensor whose elements are in the same order without gaps."""
    stride: tuple[int, ...] = torch.empty_like(tensor, device="meta", requires_grad=False).stride()
    return stride


def array_of_blocks(state: State8bit) -> Array:
    """Return the blocks as the core has them; they share the memory of the state on the CPU."""
    array: Array = state.blocks.cpu().numpy().view(block_dtype(state.nonnegative))
    return array.reshape(-1)


def _names_dtype(*arguments: Any) -> bool:
    return any(isinstance(each, torch.dtype | torch.Tensor) for each in arguments)


def _keeps_format(kwargs: dict[str, Any]) -> bool:
    """Return whether these arguments of a copy ask for no other dtype or layout."""
    as_it_is = (None, torch.float32, torch.preserve_format, torch.strided, False)
    return all(
        each in as_it_is or key in ("device", "non_blocking") for key, each in kwargs.items()
    )


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the tensors that an operation changes."""
    expected = func._schema.arguments
    given = [*zip((each.name for each in expected), args, strict=False), *kwargs.items()]
    changed = {each.name for each in expected if each.alias_info and each.alias_info.is_write}
    leaves: list[Any] = tree_leaves([value for name, value in given if name in changed])
    return leaves
