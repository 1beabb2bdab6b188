"""Missing GPU packages -> stand-ins, so that the real SGLang imports and runs on a machine without a GPU.

SGLang imports `triton`, `sgl_kernel` and `torchvision` at module level, whatever the device. On the CPU none of what
they offer is called: attention is torch's, sampling is torch's, and no image is read. Python runs this file on its own
in every process whose PYTHONPATH names this folder; only engines get that. A package that is really installed wins.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

STAND_INS = ("triton", "sgl_kernel", "torchvision")
VERSION = "3.6.0"
"""What the stand-ins say when a version is asked for; new enough for every check that SGLang and torch make."""


class _AnyAttribute(type):
    """Classes whose unknown attributes exist: default arguments read enumerations, `InterpolationMode.BICUBIC`."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _StandInClass(metaclass=_AnyAttribute):
    """A class that can be subclassed, annotated with and instantiated, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None: ...


class _StandInModule(types.ModuleType):
    """A module in which every name exists: capitalised names are classes, others are modules that can be called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__file__ = __file__
        self.__version__ = VERSION
        self.__spec__ = importlib.machinery.ModuleSpec(name, _FINDER, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        full_name = f"{self.__name__}.{name}"
        value: Any = (
            _AnyAttribute(name, (_StandInClass,), {})
            if name[0].isupper()
            else sys.modules.get(full_name) or _StandInModule(full_name)
        )
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Serve as a decorator, with or without arguments; refuse to stand in for a computation."""
        if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], _StandInModule):
            return args[0]
        if self.__name__.startswith("triton"):
            return _unchanged
        raise RuntimeError(f"{self.__name__} was called, but only a GPU engine has it; this engine runs on the CPU")

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins. It is the last finder, so that it is asked only for what is not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in STAND_INS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "triton":
            _give_arithmetic(module)


_FINDER = _Finder()


def _unchanged(function: Any) -> Any:
    return function


def _give_arithmetic(triton: Any) -> None:
    """The two functions of triton that are called on the CPU as well, and the class that decorators build."""

    class Config:
        def __init__(
            self, kwargs: dict[str, Any] | None = None, num_warps: int = 4, num_stages: int = 2, **_: Any
        ) -> None:
            self.kwargs, self.num_warps, self.num_stages = kwargs or {}, num_warps, num_stages

    triton.Config = Config
    triton.cdiv = lambda a, b: -(a // -b)  # pyright: ignore[reportUnknownLambdaType]
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1  # pyright: ignore[reportUnknownLambdaType]


def _answer_honestly_whether_installed() -> None:
    """Libraries that ask `importlib.util.find_spec` before they use a package are told that it is not there.

    Otherwise transformers believes in torchvision and builds its image classes on the stand-in.
    """
    really = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        spec = really(name, package)
        return None if spec is not None and spec.loader is _FINDER else spec

    importlib.util.find_spec = find_spec


class _PlainMemory(importlib.abc.MetaPathFinder):
    """Adapters are kept in pinned memory, which torch has with a GPU only; when their code comes in, it gets plain."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> None:
        if fullname == "sglang.srt.lora.layers":
            sys.meta_path.remove(self)
            _unpin()


def _unpin() -> None:
    import torch  # noqa: PLC0415

    def unpinned(make: Any) -> Any:
        @functools.wraps(make)
        def made(*given: Any, pin_memory: bool = False, **named: Any) -> Any:
            return make(*given, **named)

        return made

    def itself(tensor: Any, *_: Any) -> Any:
        return tensor

    for name in ("tensor", "empty", "zeros", "ones", "full"):
        setattr(torch, name, unpinned(getattr(torch, name)))
    setattr(torch.Tensor, "pin_memory", itself)  # noqa: B010


sys.meta_path.append(_FINDER)
sys.meta_path.insert(0, _PlainMemory())
_answer_honestly_whether_installed()
