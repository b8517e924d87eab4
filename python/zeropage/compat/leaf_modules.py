"""Leaf modules of stage 3. Operators gather the parameters that they use, so no module needs the mark. It is stored,
and programs can read it.

Each function returns the modules that it has marked, and raises UsageError when there are none, for example after a
misspelled name.
"""

from collections.abc import Callable, Iterable

import torch

from ..errors import UsageError

_MARK = "_z3_leaf"


def z3_leaf_module(model: torch.nn.Module) -> bool:
    """Whether this module is marked."""
    return bool(getattr(model, _MARK, False))


def set_z3_leaf_module(model: torch.nn.Module, flag: bool) -> None:
    """Marks this module, or removes the mark."""
    setattr(model, _MARK, flag)


def get_z3_leaf_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if z3_leaf_module(module)]


def set_z3_leaf_modules(
    model: torch.nn.Module, leaf_module_classes: Iterable[type[torch.nn.Module] | str], raise_if_not_found: bool = True
) -> list[torch.nn.Module]:
    """Marks modules by class; a string is the name of a class."""
    return _by_class(model, list(leaf_module_classes), True, raise_if_not_found)


def unset_z3_leaf_modules(
    model: torch.nn.Module, leaf_module_classes: Iterable[type[torch.nn.Module] | str], raise_if_not_found: bool = True
) -> list[torch.nn.Module]:
    return _by_class(model, list(leaf_module_classes), False, raise_if_not_found)


def set_z3_leaf_modules_by_name(
    model: torch.nn.Module, module_names: Iterable[str], raise_if_not_found: bool = True
) -> tuple[list[torch.nn.Module], list[str]]:
    """Marks modules by full name. Returns (modules, names that were not found)."""
    return _by_name(model, list(module_names), lambda name, wanted: name == wanted, raise_if_not_found)


def set_z3_leaf_modules_by_suffix(
    model: torch.nn.Module, module_name_suffixes: Iterable[str], raise_if_not_found: bool = True
) -> tuple[list[torch.nn.Module], list[str]]:
    """Marks modules by the end of their names. Returns (modules, suffixes that were not found)."""
    return _by_name(model, list(module_name_suffixes), lambda name, wanted: name.endswith(wanted), raise_if_not_found)


def _by_class(model: torch.nn.Module, classes: list, flag: bool, raise_if_not_found: bool) -> list[torch.nn.Module]:
    names = {wanted for wanted in classes if isinstance(wanted, str)}
    types = tuple(wanted for wanted in classes if isinstance(wanted, type))
    if len(names) + len(types) < len(classes):
        raise UsageError("leaf_module_classes: expected classes of modules, or names of classes")

    def is_wanted(module: torch.nn.Module) -> bool:
        kind = type(module)
        return isinstance(module, types) or bool({kind.__name__, f"{kind.__module__}.{kind.__qualname__}"} & names)

    found = [module for module in model.modules() if is_wanted(module)]
    if not found and raise_if_not_found:
        shown = ", ".join(wanted if isinstance(wanted, str) else wanted.__name__ for wanted in classes)
        raise UsageError(f"{type(model).__name__} has no module of the classes {shown}")
    for module in found:
        set_z3_leaf_module(module, flag)
    return found


def _by_name(
    model: torch.nn.Module, names: list[str], fits: Callable[[str, str], bool], raise_if_not_found: bool
) -> tuple[list[torch.nn.Module], list[str]]:
    found: dict[int, torch.nn.Module] = {}
    missing = []
    for wanted in names:
        matches = [module for name, module in model.named_modules() if fits(name, wanted)]
        found.update({id(module): module for module in matches})
        if not matches:
            missing.append(wanted)
    if not found and raise_if_not_found:
        raise UsageError(f"{type(model).__name__} has no module called {', '.join(names)}")
    for module in found.values():
        set_z3_leaf_module(module, True)
    return list(found.values()), missing
