"""Several processes that train one model: each holds a share of every weight, and sees a share of every batch.

Started by `torchrun --nproc-per-node N -m letheon forget ...`. PyTorch's FSDP2 cuts each weight along its first
dimension, puts it together where a block is about to run, and adds the gradients up over the processes. Here is only
what it cannot know:

    batches   process r of N takes records r, r + N, ... of a logical batch; one that is out of records goes along with
              a filler, which counts nothing, since every process has to be there when weights are put together
    counts    added up over the processes before the one division, so N processes give what one gives
    norms     the root of the sum of all squares over all processes; a product of two gradients in the same way
    files     the first process alone reads and writes the run folder and speaks to the person; what only one of them
              can decide (the clock, a look at the model) it decides for all

Weights are gathered on the first process to be saved, a checkpoint likewise, one tensor after the other: its host
memory has to hold the whole model, the memory of a device need not.

Source: FSDP2, PyTorch's torch.distributed.fsdp.fully_shard.
Checked against: a linear layer in closed form; one process, step by step, on every row that is not refused; a kill.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from letheon.errors import BadInput, CannotFinish, LetheonError
from letheon.models import ModelFolder, load_model, pick_device
from letheon.runs.environment import code_sha256, local_number, process_count, process_number
from letheon.runs.folder import sha256_file, sha256_folder
from letheon.runs.progress import Progress
from letheon.training.activations import blocks
from letheon.training.losses import Body

T = TypeVar("T")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes find one another; torchrun sets them."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default it is alone, and every method is then trivial."""

    number: int = 0
    """Which one this is, from 0."""
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.number == 0

    def share(self, items: Sequence[int], size: int) -> list[list[int]]:
        """This process's items of a logical batch in chunks of at most `size`; empty ones where others have more.

        >>> [Processes(number, 2).share([5, 6, 7], 1) for number in (0, 1)]
        [[[5], [7]], [[6], []]]
        """
        own, most = list(items[self.number :: self.count]), -(-len(items) // self.count)
        return [own[start : start + size] for start in range(0, most, size)]

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Each number added up over the processes, in float64."""
        if self.count == 1:
            return list(numbers)
        added = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(added)
        found: list[float] = added.tolist()
        return found

    def of_first(self, value: T) -> T:
        """What the first process has, on all of them."""
        return self.by_first(lambda: value)

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them. What it raises is raised on all, so that none waits for it."""
        if self.count == 1:
            return make()
        if not self.is_first:
            heard: list[Any] = [None, None]
            dist.broadcast_object_list(heard)
            made: T = heard[0]
            _raise(heard[1])
            return made
        try:
            made = make()
        except Exception as error:
            dist.broadcast_object_list([None, _told(error)])
            raise
        dist.broadcast_object_list([made, None])
        return made

    def agreed(self, check: Callable[[], T]) -> T:
        """What a check gives here, once it went well on every process.

        Raises:
            BadInput: on every process, with the faults of all, each once.
        """
        if self.count == 1:
            return check()
        problems: list[str] = []
        made: list[T] = []
        try:
            made.append(check())
        except BadInput as error:
            problems = error.problems
        found = [problem for problems in self._gathered(problems) for problem in problems]
        if found:
            raise BadInput(list(dict.fromkeys(found)))
        return made[0]

    def check_same(self, inputs: Mapping[str, Path | None]) -> None:
        """Raise BadInput unless every process reads the same bytes by the same paths, and runs the same letheon."""
        if self.count == 1:
            return
        own = {name: _sha256(path) for name, path in inputs.items() if path is not None}
        everywhere = self._gathered({**own, "letheon's own code": code_sha256()})
        problems = [
            f"{name}: process {number} has another content than process 0 ({there[name][:12]}, not {first[:12]}). "
            "Give every machine the same files"
            for name, first in everywhere[0].items()
            for number, there in enumerate(everywhere)
            if there[name] != first
        ]
        if problems:
            raise BadInput(problems)

    def voice(self, progress: Progress) -> Progress:
        """The first process's own; for the others one that nobody hears, not even warnings: they are the same ones."""
        return progress if self.is_first else Progress(quiet=True, stream=io.StringIO())

    @contextmanager
    def entered(self, stage: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
        """Open and enter a stage of a run on the first process alone, which holds its lock and writes its record.

        The others do not look at the run's folder, and are given a copy of the stage that is never written.
        """
        with ExitStack() as stack:
            yield self.by_first(lambda: stack.enter_context(stage()))

    def _gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


ALONE = Processes()


@contextmanager
def several_processes() -> Iterator[Processes]:
    """Take part in what the environment says was started together; nothing happens in a process of its own.

    Raises:
        BadInput: the environment does not say where the processes find one another.
    """
    if process_count() == 1:
        yield ALONE
        return
    if dist.is_initialized():  # whoever did that will end it
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if absent := [name for name in _ADDRESS if not os.environ.get(name)]:
        raise BadInput(
            f"WORLD_SIZE={process_count()} says that several processes work together, and {' and '.join(absent)} do "
            "not say where they meet. Start them with torchrun, or unset WORLD_SIZE"
        )
    # Numbers and objects of the host go through gloo, whatever the weights lie on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process, as `pick_device` names it; of several processes each has a GPU of its own.

    Raises:
        BadInput: one GPU was named for all, or there are fewer GPUs than processes on this machine.
    """
    found = pick_device(device)
    if process_count() == 1 or found == "cpu":
        return found
    if found != "cuda":
        raise BadInput(
            f"device {device!r} is one GPU, and there are {process_count()} processes. With --device cuda each takes "
            "its own"
        )
    if local_number() >= torch.cuda.device_count():
        raise BadInput(
            f"process {process_number()} has no GPU of its own: this machine has {torch.cuda.device_count()}. "
            "Give torchrun --nproc-per-node as many processes as there are GPUs, or use --device cpu"
        )
    return f"cuda:{local_number()}"


# --- weights


class _Whole(nn.Module):
    """What FSDP takes for the whole model. There are several ways into it (hidden states, logits, the head alone), and
    before each the weights outside the blocks have to be put together.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, way: Callable[..., Tensor], *given: Any) -> Tensor:
        """What the way finds."""
        return way(*given)


def shard(body: Body, processes: Processes, device: str) -> None:
    """Cut the weights of a model over the processes, in place, block by block. Nothing happens when alone.

    Parameters become `DTensor`s under their own names; tied ones stay one. All forward passes have to go through
    `body` afterwards.

    Args:
        body: of a model on the CPU that is the same on every process.
        processes: who takes part.
        device: where the shares of this process go.
    Raises:
        BadInput: blocks of the model share weights, which cannot be cut block by block.
    """
    if processes.count == 1:
        return
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(kind, (processes.count,))
    before = [name for name, _ in body.model.named_parameters()]
    root = _Whole(body.model)
    for block in _apart(body.model):
        fully_shard(block, mesh=mesh)
    # Cut again after every forward pass: a look between steps would else leave weights of before the step behind.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):  # sums over processes, not means: the division is by counts, and is made
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    after = dict(body.model.named_parameters())
    if before != list(after) or not all(isinstance(parameter, DTensor) for parameter in after.values()):
        raise BadInput(
            f"{type(body.model).__name__}: its blocks share weights, which cannot be cut over several processes. "
            "Run it in one process, without torchrun"
        )
    body.through = root


def _apart(model: nn.Module) -> Iterable[nn.Module]:
    """Blocks whose weights are put together one block at a time."""
    try:
        return blocks(model)
    except BadInput:  # they cannot be told from the rest: everything is put together at once, which gives the same
        return ()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a share, put together on all; any other as it is."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, cut as `like` is cut, on its device."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The shares of this process; tensors that are not cut as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def added(number: Tensor, over: Sequence[Tensor]) -> Tensor:
    """A number that was found from the local shares of these tensors, added up over the processes that have them."""
    if not over or not isinstance(over[0], DTensor):
        return number
    found: Tensor = DTensor.from_local(number, over[0].device_mesh, [Partial()], run_check=False).full_tensor()
    return found


def joined_norm(norm: Tensor, over: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all processes, from the norm over the local shares of these tensors."""
    if not over or not isinstance(over[0], DTensor):
        return norm
    return added(norm.double() ** 2, over).sqrt().to(norm.dtype)


# --- files


@torch.no_grad()
def gathered(model: Any, folder: ModelFolder, processes: Processes) -> Any:
    """On the first process an ordinary model with these weights, in its host memory; on the others the model itself."""
    if processes.count == 1:
        return model
    target = load_model(folder.path) if processes.is_first else None
    places = dict(target.named_parameters()) if target is not None else {}
    for name, parameter in model.named_parameters():
        found = whole(parameter)
        if target is not None:
            places[name].copy_(found)
    return model if target is None else target


class GatheredCheckpoints:
    """Checkpoints of several processes: whole tensors, which the first one writes and reads."""

    def __init__(self, store: Any, processes: Processes, moving: Mapping[str, Tensor], memory: Mapping[str, Tensor]):
        self._store = store
        self._processes = processes
        self._moving = moving
        self._memory = memory

    def save(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """One tensor after the other is put together, and goes to the first process's host memory."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            one = whole(tensor.detach())
            if self._processes.is_first:
                found[name] = one.cpu()
        self._processes.by_first(lambda: self._store.save(step, found, state))

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, cut as the tensors are that it belongs to. One tensor after the other is told."""
        read: list[tuple[int, dict[str, Tensor], dict[str, Any]] | None] = [None]

        def names() -> tuple[int, list[str], dict[str, Any]] | None:
            read[0] = self._store.load()
            return None if read[0] is None else (read[0][0], list(read[0][1]), read[0][2])

        found = self._processes.by_first(names)
        if found is None:
            return None
        step, keys, state = found
        tensors: dict[str, Tensor] = {}
        for key in keys:
            like = self._like(key)
            own = torch.empty(like.shape, dtype=like.dtype) if read[0] is None else read[0][1].pop(key)
            dist.broadcast(own, src=0)
            tensors[key] = laid_out(own, like)
        return step, tensors, state

    def _like(self, key: str) -> Tensor:
        """The tensor that this one of a checkpoint belongs to."""
        kind, _, name = key.partition("/")
        return self._memory[name] if kind == "memory" else self._moving[name]


class FirstLooks:
    """A look between steps that all processes take and the first one decides: the others do what it says."""

    def __init__(self, look: Any, processes: Processes) -> None:
        self._look = look
        self._processes = processes
        self.every: int = look.every
        self.state: dict[str, Any] = look.state

    def __call__(self, step: int, model: Any) -> Any:
        """What the first process found."""
        return self._processes.of_first(self._look(step, model))


def _sha256(path: Path) -> str:
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def _told(error: Exception) -> tuple[str, list[str]]:
    """An error as what another process can read: not every one survives being sent."""
    if isinstance(error, BadInput):
        return "BadInput", error.problems
    known = isinstance(error, LetheonError)
    return "CannotFinish", [str(error) if known else f"the first process ended with {type(error).__name__}: {error}"]


def _raise(told: tuple[str, list[str]] | None) -> None:
    if told is None:
        return
    kind, problems = told
    raise BadInput(problems) if kind == "BadInput" else CannotFinish(problems[0])
