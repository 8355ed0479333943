"""Ranks save what one process would save, byte for byte, and any number of them load it."""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _safetensors, schedules
from schuss.mpi import Sharded
from schuss.mpi._ranks import Ranks
from support.arrays import LAYOUTS, dtype_of, laid_out, leaves
from support.ranks import Comm, Network, run, shared

FORMS = ["c.safetensors", "c.safetensors.index.json"]
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let large arrays have many pieces, and ranks share some of them."""
    monkeypatch.setattr(_safetensors, "PIECE", 4096)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Return a folder of this process, for tests of one process."""
    folder = tmp_path / str(os.getpid())
    folder.mkdir()
    return folder


def new_params(layout: str = "c", dtype: Any = "float32") -> Any:
    """Return the same parameters at each call; the ranks cut the large ones."""
    rng, dtype = np.random.default_rng(0), dtype_of(dtype)

    def new(*shape: int, layout: str = layout) -> Any:
        values = rng.standard_normal(shape)
        complex_values = values + 1j if dtype.kind == "c" else values
        return laid_out(np.asarray(complex_values, dtype), layout)

    tiny = {str(i): new(i % 7, layout="c") for i in range(150)}
    scalar: Any = new(layout="c")
    return {"W": new(71, 90), "b": [new(5), None, scalar], "V": new(9, 40, 31), "tiny": tiny}


def grads_of(params: Any, seed: int, dtype: Any = None) -> Any:
    rng = np.random.default_rng(seed)
    if isinstance(params, dict):
        return {name: grads_of(each, seed + i) for i, (name, each) in enumerate(params.items())}
    if isinstance(params, list):
        return [grads_of(each, seed + i) for i, each in enumerate(params)]
    if params is None:
        return None
    wide = np.float32 if params.dtype.itemsize == 2 else params.dtype
    return np.asarray(rng.standard_normal(params.shape)).astype(wide)


def zeros_like(params: Any) -> Any:
    """Return parameters of zeros in the memory layouts of others."""
    for array in leaves(params):
        if array is not None:
            array[...] = 0
    return params


class Case:
    """A training, by one process or by ranks of which the first one has all gradients."""

    def __init__(self, name: str = "Adam", make: Any = new_params, **options: Any) -> None:
        self.kind, self.make, self.options = getattr(schuss, name), make, options

    def optimizer(self, comm: Any = None, params: Any = None) -> Any:
        params = self.make() if params is None else params
        given = {key: each() if callable(each) else each for key, each in self.options.items()}
        if comm is None:
            return self.kind(params, **given)
        return Sharded(self.kind, params, comm, reduction="sum", **given)

    def trained(self, comm: Any = None) -> Any:
        optimizer = self.optimizer(comm)
        for t in range(2):
            optimizer.step(self.grads(optimizer, t, comm))
        return optimizer

    def grads(self, optimizer: Any, t: int, comm: Any = None) -> Any:
        found = grads_of(optimizer.params, t)
        return found if comm is None or comm.Get_rank() == 0 else zeros_like(found)

    def save(self, path: Any, comm: Any = None) -> None:
        optimizer = self.trained(comm)
        schuss.save(path, optimizer.params, optimizer, extra={"epoch": 1, "more": np.arange(5)})

    def convert(self, path: Any, to: Any, comm: Any = None) -> None:
        """Load a file, and save what was loaded."""
        optimizer = self.optimizer(comm, zeros_like(self.make()))
        extra = schuss.load(path, optimizer.params, optimizer)
        assert extra["epoch"] == 1
        schuss.save(to, optimizer.params, optimizer, extra=extra)

    def bytes_of_one(self, folder: Path) -> bytes:
        path = folder / f"one-{threading.get_ident()}-{os.getpid()}"
        self.save(path)
        content = path.read_bytes()
        path.unlink()
        return content


def low_precision(dtypes: list[str]) -> Callable[[], Any]:
    return lambda: {name: new_params(dtype=name)["W"] for name in dtypes}


CASES = {
    "Adam": Case(),
    "average": Case("Momentum", average=0.9),
    "amsgrad": Case(amsgrad=True, weight_decay=0.1, clip_norm=1.0),
    "8-bit state": Case(state_dtype="8bit"),
    "bfloat16 state": Case(state_dtype="bfloat16", seed=1),
    "masters": Case(make=low_precision(["bfloat16", "float32"]), master="float32", average=0.5),
    "masters of 24 bits": Case(make=low_precision(["bfloat16"]), master="float24"),
    "float64": Case("RMSprop", lambda: new_params(dtype="float64"), centered=True, momentum=0.5),
    "complex": Case(make=lambda: new_params("fortran", "complex64")),
    "modulus": Case(make=lambda: new_params(dtype="complex128"), complex="modulus"),
    "schedule": Case("SGD", lr=lambda: schedules.Linear(0.1, 0.2, steps=3)),
    "groups": Case(groups=lambda: lambda name: {"lr": 0.5, "frozen": name == "V"}),
    "one array": Case(make=lambda: np.ones((100, 100), np.float32)),
    **{layout: Case(make=lambda layout=layout: new_params(layout)) for layout in LAYOUTS},
    "8-bit, fortran": Case(make=lambda: new_params("fortran"), state_dtype="8bit"),
}


@pytest.mark.parametrize(
    ("case", "ranks"),
    [(case, ranks) for case in CASES for ranks in (1, 3)] + [("Adam", 2), ("Adam", 4)],
)
def test_ranks_write_and_read_the_file_of_one_process(
    case: str, ranks: int, tmp_path: Path
) -> None:
    training, folder = CASES[case], shared(tmp_path)

    def program(comm: Any) -> None:
        for form in FORMS:
            training.save(folder / form, comm)
            training.convert(folder / form, folder / "again", comm)
            if comm.Get_rank() == 0:
                assert (folder / "again").read_bytes() == training.bytes_of_one(folder)
        if comm.Get_rank() == 0:
            training.convert(folder / FORMS[0], folder / "by one")
            assert (folder / "by one").read_bytes() == (folder / FORMS[0]).read_bytes()
            training.convert(folder / FORMS[1], folder / "by one")
            assert (folder / "by one").read_bytes() == (folder / FORMS[0]).read_bytes()

    run(program, ranks)


@every_form
@pytest.mark.parametrize("case", ["average", "8-bit, fortran", "complex"])
@pytest.mark.parametrize(("saved_by", "loaded_by"), [(4, 1), (1, 3), (2, 3), (4, 3)])
def test_another_number_of_ranks_loads_it(
    case: str, form: str, saved_by: int, loaded_by: int, tmp_path: Path
) -> None:
    training, folder = CASES[case], shared(tmp_path)
    run(lambda comm: training.save(folder / form, comm), saved_by)
    run(lambda comm: training.convert(folder / form, folder / "again", comm), loaded_by)
    assert (folder / "again").read_bytes() == training.bytes_of_one(folder)


def around_a_piece(piece: int) -> list[Any]:
    """Return arrays of which rank 1 of 2 has a few elements before a piece ends, and after."""
    before, after, size = piece // 512, piece // 1024, piece // 4
    return [np.ones(size + after, np.float32), np.ones(size - 2 * before - after, np.float32)]


@pytest.mark.parametrize(
    ("piece", "make"),
    [
        *((piece, lambda piece=piece: around_a_piece(piece)) for piece in (1 << 16, 1 << 22)),
        # The last round of the last rank has two elements, one before a piece ends.
        (4096, lambda: np.ones((1707, 3), np.float32, order="F")),
    ],
    ids=["64 KiB", "4 MiB", "exchanged"],
)
def test_few_elements_of_a_rank_can_lie_in_two_pieces(
    piece: int, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_safetensors, "PIECE", piece)
    training, folder, form = Case("Momentum", make), shared(tmp_path), FORMS[0]
    ranks = 2 if piece > 4096 else 3
    run(lambda comm: training.save(folder / form, comm), ranks)
    assert (folder / form).read_bytes() == training.bytes_of_one(folder)


@every_form
@pytest.mark.parametrize("layouts", [("c", "c"), ("fortran", "c"), ("c", "fortran")], ids=str)
@pytest.mark.parametrize("formats", [("8bit", None), (None, "8bit"), ("8bit", "8bit")], ids=str)
def test_ranks_convert_states_as_one_process_does(
    form: str, layouts: tuple[str, str], formats: Any, tmp_path: Path
) -> None:
    before, after = (
        Case(make=lambda layout=layout: new_params(layout), state_dtype=dtype)
        for layout, dtype in zip(layouts, formats, strict=True)
    )
    folder = shared(tmp_path)
    before.save(folder / "one")
    after.convert(folder / "one", folder / "expected")

    def program(comm: Any) -> None:
        before.save(folder / form, comm)
        after.convert(folder / form, folder / "found", comm)

    run(program, 3)
    assert (folder / "found").read_bytes() == (folder / "expected").read_bytes()


@every_form
def test_accumulated_gradients_are_saved_as_one_sum(form: str, tmp_path: Path) -> None:
    folder, grads = shared(tmp_path), [np.full((70, 70), 2.0**-rank) for rank in range(4)]

    def pending(params: Any, comm: Any = None, reduction: Any = "mean") -> Any:
        if comm is None:
            return schuss.SGD(params, lr=1.0)
        return Sharded(schuss.SGD, params, comm, lr=1.0, reduction=reduction)

    def program(comm: Any) -> Any:
        stepped = []
        for reduction in ("mean", "sum"):
            optimizer = pending({"w": np.ones((70, 70)), "none": np.ones(3)}, comm, reduction)
            optimizer.accumulate({"w": grads[comm.Get_rank()], "none": None})
            schuss.save(folder / f"{reduction}-{form}", optimizer.params, optimizer)
            for other in (pending(new_pair(), comm, reduction), pending(new_pair())):
                schuss.load(folder / f"{reduction}-{form}", other.params, other)
                assert other.accumulated == 1
                other.step()
                stepped.append(other.params["w"][3, 5])
                assert (other.params["none"] == 1).all()
        return stepped

    def new_pair() -> Any:
        return {"w": np.zeros((70, 70)), "none": np.zeros(3)}

    total = grads[0][0, 0] + grads[1][0, 0]
    for stepped in run(program, 2):
        assert stepped == [1 - total / 2] * 2 + [1 - total] * 2


def test_ranks_that_accumulated_different_numbers_of_gradients_are_refused(tmp_path: Path) -> None:
    def program(comm: Any) -> None:
        optimizer = Sharded(schuss.SGD, np.ones(300), comm)
        for _ in range(1 + comm.Get_rank()):
            optimizer.accumulate(np.ones(300))
        with pytest.raises(ValueError, match="rank 0 has accumulated 1 gradients, rank 1 2, exp"):
            schuss.save(shared(tmp_path) / "c", optimizer.params, optimizer)

    run(program, 2)
    assert os.listdir(tmp_path) == []


def test_batches_and_extra_are_those_of_the_first_rank(tmp_path: Path) -> None:
    path = shared(tmp_path) / "c"

    def program(comm: Any) -> Any:
        rank = comm.Get_rank()
        optimizer = Sharded(schuss.SGD, np.ones(300), comm)
        batches = schuss.minibatches(np.arange(10), rng=rank)
        extra = {"a": np.full(rank + 1, rank)}
        schuss.save(path, optimizer.params, optimizer, batches=batches, extra=extra)
        found = schuss.load(path, optimizer.params, optimizer, batches=batches)
        return found["a"].tolist(), next(iter(batches)).tolist()

    assert (
        run(program, 3)
        == [([0], next(iter(schuss.minibatches(np.arange(10), rng=0))).tolist())] * 3
    )


@every_form
def test_arrays_that_the_optimizer_does_not_have_are_those_of_the_first_rank(
    form: str, tmp_path: Path
) -> None:
    path = shared(tmp_path) / form

    def program(comm: Any) -> Any:
        own = float(comm.Get_rank())
        params = {"a": np.full(3000, own), "w": np.ones(3000), "z": np.full(3, own)}
        optimizer = Sharded(schuss.SGD, {"w": params["w"]}, comm)
        schuss.save(path, params, optimizer)
        params["a"][:] = -1
        schuss.load(path, params, optimizer)
        return params["a"].max(), params["a"].min(), *params["z"]

    assert run(program, 3) == [(0, 0, 0, 0, 0)] * 3


@every_form
def test_every_altered_byte_is_seen_by_all(form: str, tmp_path: Path) -> None:
    folder = shared(tmp_path)

    def program(comm: Any) -> None:
        ranks, rank = Ranks(comm, 300), comm.Get_rank()
        optimizer = Sharded(schuss.Momentum, np.arange(300.0), comm)
        optimizer.step(np.ones(300))
        schuss.save(folder / form, optimizer.params, optimizer)
        optimizer.step(np.ones(300))
        before = optimizer.params.tobytes(), optimizer.state["velocity"].tobytes()
        for name in sorted(os.listdir(folder)):
            whole = (folder / name).read_bytes()
            for i in [*range(0, len(whole), 7), len(whole) - 1]:
                altered = whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :]
                ranks.agree("read")
                if rank == 0:
                    (folder / name).write_bytes(altered)
                ranks.agree("altered")
                with pytest.raises(ValueError, match=r"^load: "):
                    schuss.load(folder / form, optimizer.params, optimizer)
            ranks.agree("read")
            if rank == 0:
                (folder / name).write_bytes(whole)
        assert before == (optimizer.params.tobytes(), optimizer.state["velocity"].tobytes())
        ranks.agree("whole")
        schuss.load(folder / form, optimizer.params, optimizer)
        assert optimizer.steps == 1

    run(program, 2)


@every_form
@pytest.mark.parametrize("what", ["pwrite", "fsync", "open", "replace"])
@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_rank_is_raised_by_all_and_the_old_checkpoint_stays(
    form: str, what: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "replace" and failing:
        pytest.skip("only the first rank renames")
    folder, real, fails = shared(tmp_path), getattr(os, what), threading.local()

    def fail(*arguments: Any, **options: Any) -> Any:
        if getattr(fails, "now", False) and not is_read(what, *arguments):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, what, fail)

    def program(comm: Any) -> None:
        optimizer = CASES["complex"].trained(comm)
        schuss.save(folder / form, optimizer.params, optimizer)
        Ranks(comm, 300).agree("saved")
        before = contents(folder)
        fails.now = comm.Get_rank() == failing
        with pytest.raises(OSError, match="No space left on device"):
            schuss.save(folder / form, optimizer.params, optimizer, extra={"new": 1})
        fails.now = False
        Ranks(comm, 300).agree("failed")
        after = contents(folder)
        assert before.items() <= after.items()
        if what != "replace" or form == FORMS[0]:
            assert before == after
        assert schuss.load(folder / form, optimizer.params, optimizer) == {}
        schuss.save(folder / form, optimizer.params, optimizer)
        assert len(os.listdir(folder)) == len(before)

    run(program, 3)


def is_read(what: str, *arguments: Any) -> bool:
    return what == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("call", "wrong", "words"),
    [
        (schuss.save, {"extra": [1]}, "extra is"),
        (schuss.save, {"batches": 3}, "batches is"),
        (schuss.save, {"path": 3}, "path is"),
        (schuss.load, {"batches": 3}, "batches is"),
        (schuss.load, {"path": 3}, "path is"),
    ],
)
def test_a_wrong_argument_of_one_rank_is_refused_by_all(
    call: Any, wrong: Any, words: str, tmp_path: Path
) -> None:
    path = shared(tmp_path) / "c"

    def program(comm: Any) -> None:
        optimizer = Sharded(schuss.SGD, np.ones(300), comm)
        schuss.save(path, optimizer.params, optimizer)
        given = {"path": path} | (wrong if comm.Get_rank() == 1 else {})
        with pytest.raises(TypeError, match=words):
            call(given.pop("path"), optimizer.params, optimizer, **given)
        schuss.load(path, optimizer.params, optimizer)

    run(program, 2)


@pytest.mark.parametrize("call", [schuss.save, schuss.load])
@pytest.mark.parametrize("at", range(4))
def test_ctrl_c_while_a_rank_waits_for_a_vote_is_raised_by_all(
    call: Any, at: int, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, network, ended = own_folder / "c", Network(2), [""] * 2
    schuss.save(path, w := np.ones(300), schuss.SGD(w))
    real, votes = Ranks.agree, iter(range(99))

    def agree(ranks: Ranks, *arguments: Any) -> bool:
        if ranks.rank == 0 and arguments[0] in ("save", "load") and next(votes) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(ranks, *arguments)

    def program(rank: int) -> None:
        optimizer = Sharded(schuss.SGD, np.ones(300), Comm(network, rank), timeout=20.0)
        try:
            call(path, optimizer.params, optimizer)
        except KeyboardInterrupt:
            ended[rank] = "interrupted"
        schuss.load(path, optimizer.params, optimizer)

    monkeypatch.setattr(Ranks, "agree", agree)
    other = threading.Thread(target=program, args=[1], daemon=True)
    other.start()
    program(0)
    other.join()
    assert ended == ["interrupted"] * 2


def test_an_error_of_one_rank_while_it_loads_is_raised_by_all_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, preadv, fails = shared(tmp_path) / "c", os.preadv, threading.local()

    def read(*arguments: Any) -> int:
        if getattr(fails, "after", 99) == 0:
            raise OSError(errno.EIO, "Input/output error")
        fails.after = getattr(fails, "after", 99) - 1
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", read)

    def program(comm: Any) -> None:
        optimizer = CASES["Adam"].trained(comm)
        schuss.save(path, optimizer.params, optimizer)
        optimizer.step(CASES["Adam"].grads(optimizer, 5, comm))
        for after in (0, 3):
            fails.after = after if comm.Get_rank() == 1 else 99
            with pytest.raises(OSError, match="Input/output error"):
                schuss.load(path, optimizer.params, optimizer)
            assert optimizer.steps == 3

    run(program, 2)


@every_form
def test_ranks_share_the_reading(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, preadv, counts = shared(tmp_path), os.preadv, threading.local()

    def read(descriptor: int, buffers: Any, start: int) -> int:
        count = preadv(descriptor, buffers, start)
        counts.read += count
        return count

    def program(comm: Any) -> Any:
        optimizer = Sharded(schuss.Adam, np.ones((500, 500)), comm)
        optimizer.step(np.ones((500, 500)))
        schuss.save(folder / form, optimizer.params, optimizer)
        counts.read = 0
        schuss.load(folder / form, optimizer.params, optimizer)
        return counts.read

    monkeypatch.setattr(os, "preadv", read)
    whole = 3 * 500 * 500 * 8
    for count in run(program, 4):
        assert 0.2 * whole < count < 0.3 * whole


def test_ranks_with_other_paths_or_files_are_refused(tmp_path: Path) -> None:
    folder = shared(tmp_path)

    def program(comm: Any) -> None:
        rank = comm.Get_rank()
        optimizer = Sharded(schuss.SGD, np.ones(300), comm)
        with pytest.raises(ValueError, match=r"^save: path is .*, expected the same name on all"):
            schuss.save(folder / f"c{rank}", optimizer.params, optimizer)
        schuss.save(folder / f"{rank}", np.full(300, float(rank)))
        with pytest.raises(ValueError, match=r"^load: .* differs among the ranks, expected the s"):
            schuss.load(folder / f"{rank}", optimizer.params, optimizer)
        assert (optimizer.params == 1).all()

    run(program, 2)


def test_ranks_without_a_shared_folder_write_a_file_and_the_index_each(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, is_other = shared(tmp_path), os.open, threading.local()

    def not_found(path: Any, flags: int, *mode: Any, **options: Any) -> int:
        if getattr(is_other, "machine", False) and str(path).endswith(".tmp"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return real(path, flags, *mode, **options)

    def program(comm: Any) -> None:
        own = folder / str(comm.Get_rank())
        own.mkdir()
        optimizer = Sharded(schuss.SGD, np.arange(300.0), comm)
        schuss.save(own / FORMS[1], optimizer.params, optimizer)
        is_other.machine = comm.Get_rank() == 1
        with pytest.raises(FileNotFoundError, match=r"path that ends in '\.safetensors\.index\."):
            schuss.save(own / FORMS[0], optimizer.params, optimizer)

    monkeypatch.setattr(os, "open", not_found)
    run(program, 2)
    assert [len(os.listdir(folder / rank)) for rank in "01"] == [2, 2]
    for rank in "01":
        shutil.copytree(folder / rank, own_folder, dirs_exist_ok=True)
    schuss.load(own_folder / FORMS[1], w := np.zeros(300))
    np.testing.assert_array_equal(w, np.arange(300.0))


# What other programs see.


def test_the_package_safetensors_reads_each_file(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    folder, case = shared(tmp_path), CASES["fortran"]

    def program(comm: Any) -> None:
        for form in FORMS:
            case.save(folder / form, comm)

    run(program, 3)
    whole = numpy.load_file(folder / FORMS[0])
    index = json.loads((folder / FORMS[1]).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    parts: dict[str, list[Any]] = {}
    for name, file in index["weight_map"].items():
        array = numpy.load_file(folder / file)[name]
        base, _, bounds = name.partition("[")
        parts.setdefault(base, []).append((int(bounds.split(":")[0] or 0), array))
    assert parts.keys() == whole.keys()
    assert len(parts["optimizer/m/W"]) == 3
    for name, each in parts.items():
        arrays = [array.reshape(-1) for _, array in sorted(each, key=lambda part: part[0])]
        np.testing.assert_array_equal(np.concatenate(arrays), whole[name].reshape(-1))


@pytest.mark.skipif(os.name != "posix", reason="there are no locks")
def test_files_of_killed_ranks_are_removed_and_those_of_other_saves_stay(own_folder: Path) -> None:
    optimizer = CASES["Adam"].trained()
    path = own_folder / FORMS[1]
    stale = ["c-0123456789abcdef-00001-of-00002.safetensors"]
    stay = ["d-0123456789abcdef-00001-of-00002.safetensors", "c-00001-of-00002.safetensors"]
    for name in stale + stay:
        (own_folder / name).write_text("")
    for _ in range(2):
        schuss.save(path, optimizer.params, optimizer)
        found = set(os.listdir(own_folder))
        assert found.issuperset(stay)
        assert len(found) == 2 + len(stay)
    schuss.load(path, optimizer.params, optimizer)


def test_failed_saves_leave_one_set_of_files_at_most(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, w = own_folder / FORMS[1], np.ones(3)
    schuss.save(path, w)

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                schuss.save(path, 2 * w)
            assert len(os.listdir(own_folder)) == 3
            schuss.load(path, w)
            assert w[0] == 1
    schuss.save(path, w)
    assert len(os.listdir(own_folder)) == 2


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege")
def test_an_index_can_be_loaded_through_a_link(own_folder: Path) -> None:
    link, w = own_folder / "latest.safetensors.index.json", np.ones(3)
    (own_folder / "run").mkdir()
    link.symlink_to(own_folder / "run" / FORMS[1])
    for _ in range(2):
        schuss.save(link, w)
        schuss.load(link, other := np.zeros(3))
        assert other[0] == 1
    assert len(os.listdir(own_folder)) == 2


@pytest.mark.parametrize("problem", ["another file", "no file", "a name outside"])
def test_an_index_with_other_files_is_refused(problem: str, own_folder: Path) -> None:
    optimizer = CASES["Adam"].trained()
    path = own_folder / FORMS[1]
    schuss.save(path, optimizer.params, optimizer)
    [name] = [name for name in os.listdir(own_folder) if name != path.name]
    other = own_folder / "d.safetensors.index.json"
    schuss.save(other, np.ones(3))
    [other_name] = [
        each for each in os.listdir(own_folder) if each[0] == "d" and each != other.name
    ]
    error: Any = ValueError
    if problem == "another file":
        os.replace(own_folder / other_name, own_folder / name)
        words = "is of another checkpoint than its index"
    elif problem == "no file":
        os.unlink(own_folder / name)
        error, words = FileNotFoundError, name
    else:
        path.write_bytes(path.read_bytes().replace(name.encode(), b"../" + name.encode()))
        words = "was altered"
    with pytest.raises(error, match=words):
        schuss.load(path, optimizer.params, optimizer)
