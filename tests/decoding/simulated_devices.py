"""Devices that are not there: tensors that say ``cuda:N`` while their numbers lie on the CPU.

Between a call of torch and its work stands `SimulatedDevices`: it refuses, as CUDA would, operations over tensors of
two devices, CPU tensors among a device's, generators of another device, and turning a device's tensor into numpy; all
else is computed on the CPU. So a decoder that runs through gives the CPU's answers, and one that mixes devices stops.
"""

import contextlib
from typing import Any
from unittest import mock

import torch
from accelerate.hooks import AlignDevicesHook, attach_align_device_hook_on_blocks
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: May have tensors of several devices: it is their purpose.
_MOVING = {"to", "cpu", "cuda", "copy_", "type_as"}
_INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}


class MixedDevicesError(RuntimeError):
    """What a real device would have refused."""


class DeviceTensor(Tensor):
    """A tensor that says that it lies on a device; ``raw`` has its numbers."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor, device: torch.device) -> "DeviceTensor":
        made = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=device
        )  # fmt: skip
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise MixedDevicesError(f"{func} reached a tensor of a simulated device outside of the simulation")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.raw}, device={self.device})"


class SimulatedGenerator(torch.Generator):
    """A CPU's generator that says where it belongs."""

    home: torch.device


def _generator(device: torch.device | str = "cpu") -> SimulatedGenerator:
    made = SimulatedGenerator()
    made.home = _named(device)
    return made


class SimulatedDevices(TorchFunctionMode):
    """Active as a context; `put` moves a module's weights to a device."""

    def __enter__(self) -> "SimulatedDevices":
        self._patches = contextlib.ExitStack()
        self._patches.enter_context(mock.patch.object(torch, "Generator", _generator))
        self._patches.enter_context(mock.patch.object(torch.cuda, "synchronize", lambda device=None: None))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if name == "__get__" and isinstance(args[0], DeviceTensor):
            with torch._C.DisableTorchFunction():
                if not isinstance(found := func(args[0].raw), Tensor):
                    return func(*args)  # what the tensor says of itself, its device above all
            return DeviceTensor(found, args[0].device)
        if name in _MOVING:
            return self._move(func, name, args, kwargs)
        asked = _named(kwargs.pop("device")) if kwargs.get("device") is not None else None
        home = asked or self._common_home(name, args, kwargs)
        generator = kwargs.get("generator")
        if isinstance(generator, SimulatedGenerator) and generator.home != (home or torch.device("cpu")):
            raise MixedDevicesError(f"{name} on {home} with a generator of {generator.home}")
        if home is None or home.type != "cuda":
            return func(*_raw(args), **_raw(kwargs), **({} if asked is None else {"device": asked}))
        if name == "numpy":
            raise MixedDevicesError(f"a tensor on {home} cannot be read as numpy")
        known = {id(leaf.raw): leaf for leaf in _tensors((args, kwargs)) if isinstance(leaf, DeviceTensor)}
        with torch._C.DisableTorchFunction():
            found = func(*_raw(args), **_raw(kwargs))

        # What works in place returns what it was given.
        return _mapped(lambda t: known[id(t)] if id(t) in known else DeviceTensor(t, home), found)

    def _common_home(self, name: str, args: Any, kwargs: Any) -> torch.device | None:
        """The one device of all tensors; None where there are CPU tensors only."""
        tensors = _tensors((args, kwargs))
        homes = {leaf.device for leaf in tensors if isinstance(leaf, DeviceTensor)}
        if not homes:
            return None
        if name in _INDEXING:
            # An index of the CPU may point into a device; slices take values from anywhere, places given by an index
            # only from the tensor's own device.
            index = _tensors(args[1])
            homes = {args[0].device, *(leaf.device for leaf in index if isinstance(leaf, DeviceTensor))}
            if index and len(args) > 2 and isinstance(args[2], Tensor) and args[2].dim():
                homes.add(args[2].device)
        elif any(leaf.dim() for leaf in tensors if not isinstance(leaf, DeviceTensor)):
            homes.add(torch.device("cpu"))
        if len(homes) > 1:
            raise MixedDevicesError(f"{name} over tensors on {', '.join(sorted(map(str, homes)))}")
        return homes.pop()

    def _move(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "copy_":
            with torch._C.DisableTorchFunction():
                func(*_raw(args), **_raw(kwargs))
            return args[0]
        tensor, device, dtype = args[0], args[0].device, args[0].dtype
        if name in ("cpu", "cuda"):
            device = torch.device("cpu") if name == "cpu" else _named("cuda")
        for wish in (*args[1:], *kwargs.values()):
            if isinstance(wish, Tensor):
                device, dtype = wish.device, wish.dtype
            elif isinstance(wish, torch.dtype):
                dtype = wish
            elif isinstance(wish, str | torch.device):
                device = _named(wish)
        if (device, dtype) == (tensor.device, tensor.dtype):
            return tensor
        with torch._C.DisableTorchFunction():
            raw = _raw(tensor)
            moved = raw.to(dtype) if dtype != raw.dtype else raw.clone() if raw.device.type == "cpu" else raw
            return DeviceTensor(moved, device) if device.type == "cuda" else moved.to(device)


def _named(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device("cuda", 0) if found.type == "cuda" and found.index is None else found


def _mapped(change: Any, tree: Any) -> Any:
    """A tree of tuples, lists and dictionaries with its tensors changed (torch's own does more, and takes long)."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(change, value) for key, value in tree.items()}
    return type(tree)([_mapped(change, value) for value in tree]) if isinstance(tree, tuple | list) else tree


def _raw(tree: Any) -> Any:
    return _mapped(lambda tensor: tensor.raw if isinstance(tensor, DeviceTensor) else tensor, tree)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(found.append, tree)
    return found


def put(module: nn.Module, device: str) -> nn.Module:
    """Put a module's weights and buffers on a simulated device."""
    home = _named(device)
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not isinstance(tensor, DeviceTensor):
                    tensors[name] = DeviceTensor(tensor.detach(), home)  # type: ignore[assignment]
    return module


def spread(model: Any, device_map: dict[str, str]) -> Any:
    """Spread a ``transformers`` model as accelerate's ``dispatch_model`` does, with its hooks."""
    for name, device in device_map.items():
        put(model.get_submodule(name), device)
    with mock.patch.object(AlignDevicesHook, "init_hook", lambda hook, module: module):  # the weights are there
        attach_align_device_hook_on_blocks(
            model,
            execution_device={name: _named(device) for name, device in device_map.items()},
            offload=dict.fromkeys(["", *device_map], False),
            skip_keys=model._skip_keys_device_placement,
        )
    return model
