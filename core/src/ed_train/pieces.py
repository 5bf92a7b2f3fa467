"""Help for plugins that bring a faster step than their library's: walk over tensors in pieces that stay in the cache.

On a CPU a step is bound by memory: whoever applies ten operations to a large tensor, one after the other, reads and
writes it ten times. Applied piece by piece, nine of them find their data in the cache. A GPU has no such cache; there
the pieces are large, and only bound what an operation over many tensors allocates.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from ed_train.parameters import tensors_of
from ed_train.specs import Params

if TYPE_CHECKING:
    from torch import Tensor

CPU_PIECE = 2**19
"""Elements: 2 MB of float32. Half of it gains as much on one core, but two need enough work for each."""
SMALL = 16
"""Tensors of less than this part of a piece come together on a CPU; others alone, as `Scratch` serves only these."""
DEVICE_PIECE = 2**25
"""Elements on any other device: 128 MB of float32."""
FUSED_DEVICES = frozenset({"cpu", "cuda"})
LATE = 1e30
"""A number of steps after which Adam's averages have no bias left: 1 - beta ** LATE is 1 for every beta."""

Row: TypeAlias = "tuple[Tensor, ...]"
Columns: TypeAlias = "tuple[list[Tensor], ...]"
Weighted: TypeAlias = "list[tuple[float, Tensor]]"
"""Scalars on a device, each with a factor."""


def pieces(rows: Iterable[Row], size: int | None = None) -> Iterator[Columns]:
    """Cut tensors into pieces of about `size` elements, and put small ones together.

    Args:
        rows: tensors that belong together, such as a parameter, its gradient and its momentum: equally many in each
            row, of one shape within a row. Large tensors are flattened, and split above `size`, where all of a row lie
            in memory in the same way; else they are taken whole.
        size: elements of a piece; by default what suits the device.

    Yields:
        Lists of equal length for ``torch._foreach_`` functions, one for each column, all of one device and of one
        dtype within a column. They share memory with the given tensors, and together cover each element once.
    """
    held: dict[tuple[Any, ...], tuple[list[Row], int]] = {}
    for row in rows:
        first = row[0]
        on_cpu = first.device.type == "cpu"
        limit = size or (CPU_PIECE if on_cpu else DEVICE_PIECE)
        elements = first.numel()
        if elements > (limit // SMALL if on_cpu else limit) and (flat := _flat(row)):
            if elements <= limit:
                yield tuple([tensor] for tensor in flat)
                continue
            for parts in zip(*(tensor.split(limit) for tensor in flat), strict=True):  # type: ignore[no-untyped-call]
                yield tuple([part] for part in parts)
            continue
        key = (first.device, *(tensor.dtype for tensor in row))
        waiting, total = held.pop(key, ([], 0))
        waiting.append(row)
        if total + elements >= limit:
            yield _columns(waiting)
        else:
            held[key] = waiting, total + elements
    for waiting, _ in held.values():
        yield _columns(waiting)


class Scratch:
    """Memory for the results of operations on one piece after another.

    New memory, which a CPU first has to clear, costs as much as another operation. Each optimizer has its own, since
    they may step in different threads.
    """

    def __init__(self) -> None:
        self._memory: dict[Any, Tensor] = {}

    def of(self, operation: str, tensors: list[Tensor], *operands: Any) -> list[Tensor]:
        """The results of an elementwise operation, such as ``mul``, which are valid until the next call.

        Args:
            operation: a function of torch that has a ``_foreach_`` form.
            tensors: of one device and dtype.
            operands: numbers, or lists of tensors; also what the last call returned.
        """
        import torch

        first = tensors[0]
        if len(tensors) > 1 or first.dim() != 1 or first.device.type != "cpu" or first.numel() > CPU_PIECE:
            return list(getattr(torch, f"_foreach_{operation}")(tensors, *operands))
        if first.dtype not in self._memory:
            self._memory[first.dtype] = torch.empty(CPU_PIECE, dtype=first.dtype)
        out = self._memory[first.dtype][: first.numel()]
        others = [operand[0] if isinstance(operand, list) else operand for operand in operands]
        getattr(torch, operation)(first, *others, out=out)
        return [out]


def scale_(tensors: list[Tensor], factor: float) -> None:
    """Multiply tensors of one device and dtype by a number, in place.

    On a CPU ``torch._foreach_mul_`` (of torch 2.13) rounds the number to the dtype of the tensors: 0.999 is 1 in
    bfloat16.
    """
    import torch

    if tensors[0].device.type == "cpu" and tensors[0].element_size() < 4:
        for tensor in tensors:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factor)


def add_scaled_(tensors: list[Tensor], factor: float, others: list[Tensor], alpha: float) -> None:
    """Set tensors to ``factor * tensors + alpha * others``, in one pass over the memory on a CPU.

    Args:
        tensors: of one device and dtype; changed in place.
        factor: of what they are.
        others: of the same shapes.
        alpha: of these.
    """
    import torch

    first, other = tensors[0], others[0]
    alone = len(tensors) == 1 and first.dim() == 1 and first.device.type == "cpu"
    if alone and first.dtype == other.dtype == torch.float32:
        # the outer product with a vector of one element
        column = first.unsqueeze(1)
        torch.addr(column, other, first.new_ones(1), beta=factor, alpha=alpha, out=column)
        return
    scale_(tensors, factor)
    torch._foreach_add_(tensors, others, alpha=alpha)


def total(tensors: list[Tensor]) -> Tensor:
    """The sum of all elements of some tensors of one device, a scalar on that device; in float32 or better.

    ``torch.linalg.vector_norm`` and ``torch._foreach_norm`` (of torch 2.13) are off by some 1e-4 on a CPU for a million
    elements.
    """
    import torch

    together = tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])
    return together.sum(dtype=torch.promote_types(together.dtype, torch.float32))


def dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The sum of the products of all elements, as `total`."""
    import torch

    if len(first) == 1 and first[0].dim() == 1 and first[0].dtype == second[0].dtype == torch.float32:
        return torch.dot(first[0], second[0])
    return total(list(torch._foreach_mul(first, second)))


def read_sums(*sums: Weighted) -> list[float]:
    """The sum of factor x scalar of each list; a device is waited for once."""
    import torch

    by_device: dict[Any, list[tuple[int, float, Tensor]]] = {}
    for number, members in enumerate(sums):
        for factor, scalar in members:
            by_device.setdefault(scalar.device, []).append((number, factor, scalar))
    results = [0.0] * len(sums)
    for found in by_device.values():
        values = torch.stack([scalar for _, _, scalar in found]).tolist()
        for (number, factor, _), value in zip(found, values, strict=True):
            results[number] += factor * value
    return results


def fits_fused(columns: Columns) -> bool:
    """Whether `fused_adam_` can work on these: its kernel pairs elements by where they lie in memory."""
    import torch

    first = columns[0][0]
    return (
        first.device.type in FUSED_DEVICES
        and first.dtype in (torch.float32, torch.float64)
        and all(column[0].dtype == first.dtype for column in columns)
        and all(_lie_alike(row) for row in zip(*columns, strict=True))
    )


def fused_adam_(columns: Columns, lr: float, betas: tuple[float, float], eps: float) -> None:
    """A step of Adam without bias correction, as torch's fused kernel does it, in one pass over the memory.

    Args:
        columns: parameters, gradients, and their running averages and those of their squares; see `fits_fused`.
        lr: the step size.
        betas: decay rates of the averages.
        eps: added to the denominator.

    The kernel's own weight decay is not used: it rounds ``1 - lr * weight_decay`` to the dtype of the parameters, and
    1 - 1e-7 comes out as 1 - 1.2e-7 in float32.
    """
    import torch

    params, grads, averages, squares = columns
    late = torch.full((), LATE, device=params[0].device)
    torch._fused_adamw_(
        params, grads, averages, squares, [], [late] * len(params), lr=lr, beta1=betas[0], beta2=betas[1],
        weight_decay=0.0, eps=eps, amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
    )  # fmt: skip


def fast_fits(name: str, params: Params, reference_only: Collection[str] = ()) -> bool:
    """Whether a fast step can be used for these parameters; warns with the reason if it cannot.

    Args:
        name: the optimizer's, for the warning.
        params: as given to a spec's `build`.
        reference_only: options in parameter groups that only the library's class follows.
    """
    import torch

    plain = (torch.Tensor, torch.nn.Parameter)
    reasons = [f"a group sets {k}" for g in params if isinstance(g, dict) for k in reference_only if g.get(k)]
    for tensor in tensors_of(params):
        if type(tensor) not in plain or hasattr(tensor, "_fsdp_flattened"):
            reasons.append(f"a parameter is sharded or of a special kind ({type(tensor).__name__})")
        elif not tensor.is_floating_point() or tensor.layout != torch.strided:
            reasons.append(f"a parameter is no dense tensor of real numbers ({tensor.dtype}, {tensor.layout})")
    if reasons:
        warnings.warn(f"{name}: implementation is reference, not fast: {reasons[0]}", stacklevel=2)
    return not reasons


def _columns(rows: list[Row]) -> Columns:
    return tuple(map(list, zip(*rows, strict=True)))


def _lie_alike(row: Row) -> bool:
    """Whether the tensors have their elements in memory in one order, without gaps."""
    import torch

    if any(tensor.layout != torch.strided for tensor in row):
        return False
    in_rows = all(tensor.is_contiguous() for tensor in row)
    return in_rows or (
        row[0].dim() == 4 and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in row)
    )


def _flat(row: Row) -> Row | None:
    """Views of one dimension, in the order of the memory; None if the tensors of the row lie in different orders."""
    if any(tensor.is_sparse for tensor in row):
        return None
    if row[0].dim() == 1:
        return row
    if all(tensor.is_contiguous() for tensor in row):
        return tuple([tensor.view(-1) for tensor in row])
    if not _lie_alike(row):
        return None
    return tuple(tensor.permute(0, 2, 3, 1).reshape(-1) for tensor in row)
