"""Where generated weights stand in a network: in the ``__dict__`` of the modules that own the parameters.

Attribute look-up finds them there before the parameters: ``_parameters`` is never touched, so names, checkpoints, tied
weights and ``isinstance`` keep working.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip.selection import split_name

_REPLACED = (
    "a layer was replaced, wrapped, pruned or parametrized since. Do that before the network is hypernetized, or undo "
    "it, mip.dehypernetize, do it, and hypernetize anew."
)
# Names of modules, from the root down.
_Path = tuple[str, ...]


class Slots:
    """The attributes of a network that generated weights are put into.

    Args:
        root: the primary network.
        names: generated parameter -> all its names in the primary.
    """

    def __init__(self, root: nn.Module, names: Mapping[str, list[str]]) -> None:
        self.root = root
        # Split once, as they are walked at every generation.
        self._by_name = {name: [_split(alias) for alias in aliases] for name, aliases in names.items()}
        self._paths = {path for slots in self._by_name.values() for path, _ in slots}
        self._recurrent = [_split(f"{name}.")[0] for name, m in root.named_modules() if isinstance(m, nn.RNNBase)]
        self._filled = False

    def __getstate__(self) -> dict[str, Any]:
        """The modules of a copy may hold copies of generated weights."""
        return {**self.__dict__, "_filled": True}

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in the place of parameters: name -> tensor."""
        self._filled = True
        owners = self._owners()
        for name, weight in weights.items():
            for path, attribute in self._by_name[name]:
                owners[path].__dict__[attribute] = weight
        self._sync_recurrent()

    def empty(self) -> None:
        """Give the parameters their place back."""
        if not self._filled:
            return
        self._filled = False
        owners = self._owners()
        for slots in self._by_name.values():
            for path, attribute in slots:
                owners[path].__dict__.pop(attribute, None)
        self._sync_recurrent()

    def theta0(self) -> dict[str, nn.Parameter]:
        """The primary's own parameters that generated ones stand in for."""
        owners = self._owners()
        own: dict[str, nn.Parameter] = {}
        for name, slots in self._by_name.items():
            path, attribute = slots[0]
            found = owners[path]._parameters.get(attribute)
            if found is None:
                raise RuntimeError(
                    f"There is no parameter {name} to generate in {type(self.root).__name__}: {_REPLACED}"
                )
            own[name] = found
        return own

    def keys(self) -> set[tuple[int, str]]:
        """The first slot of each weight: id of the module, attribute."""
        owners = self._owners()
        return {(id(owners[path]), attribute) for (path, attribute), *_ in self._by_name.values()}

    def check_shape(self, name: str, parameter: Tensor, shape: torch.Size) -> None:
        """Raise RuntimeError for a parameter that has another shape than what is generated for it."""
        if parameter.shape != shape:
            raise RuntimeError(
                f"The parameter {name} has shape {tuple(parameter.shape)}, but {tuple(shape)} is generated: {_REPLACED}"
            )

    def _sync_recurrent(self) -> None:
        """RNNs read a list made from their attributes."""
        for path in self._recurrent:
            module: Any = self._module(path)
            module.__dict__["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]

    def _owners(self) -> dict[_Path, nn.Module]:
        # Looked up anew each time: SyncBatchNorm conversion and precision plug-ins replace submodules.
        return {path: self._module(path) for path in self._paths}

    def _module(self, path: _Path) -> nn.Module:
        module = self.root
        for name in path:
            child = module._modules.get(name)
            if child is None:
                raise RuntimeError(
                    f"There is no module {'.'.join(path)} to generate in {type(self.root).__name__}: {_REPLACED}"
                )
            module = child
        return module


def _split(name: str) -> tuple[_Path, str]:
    owner, attribute = split_name(name)
    return tuple(owner.split(".")) if owner else (), attribute
