"""Handles of one bucket -> the pickle by which SGLang's `/update_weights_from_tensor` opens and reads it.

The call takes nothing but a pickle, which the engine reads with a list of allowed names. What comes from the trainer by
Redis is plain data, so that whoever writes there runs no code here; the pickle is made in this process, for the engine
beside it. It is written down as opcodes (`pickletools` describes them): the functions that it names are torch's, which
this process need not import. Of SGLang 0.5.17 to 0.5.23 and torch 2.11 to 2.13: `torch.multiprocessing.reductions` has
the functions, and SGLang reads name, shape, dtype, start_idx, end_idx and numel of each tensor.
"""

import base64
import re
import struct
from collections.abc import Mapping
from math import prod

from shared.memory_handle import MemoryHandle
from shared.messages import TensorSpec

Plain = int | str | bytes | tuple[int, ...]
PROTO, STOP, MARK, TUPLE, REDUCE, GLOBAL, BUILD = b"\x80\x03", b".", b"(", b"t", b"R", b"c", b"b"
EMPTY_DICT, SETITEMS, EMPTY_LIST, APPENDS = b"}", b"u", b"]", b"e"
TRUE, FALSE, INTEGER, TEXT, BYTES = b"\x88", b"\x89", b"\x8a", b"X", b"B"
ITEMSIZE = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
REDUCTIONS = "torch.multiprocessing.reductions"


def pickle_bucket(bucket: list[TensorSpec], handle: MemoryHandle) -> str:
    """In base64: `{"flattened_tensor": uint8 tensor, "metadata": [one object a tensor]}`.

    Raises:
        ValueError: a type that SGLang cannot load, or tensors that are not those of the handle.
    """
    metadata = list[bytes]()
    start = 0
    for spec in bucket:
        if spec.dtype not in ITEMSIZE:
            raise ValueError(f"{spec.name} has the type {spec.dtype!r}; one of {', '.join(ITEMSIZE)} was expected")
        end = start + prod(spec.shape) * ITEMSIZE[spec.dtype]
        metadata.append(_metadata(spec, start, end))
        start = end
    if start != handle.nbytes:
        raise ValueError(f"the tensors of a bucket have {start} bytes, its memory {handle.nbytes}")
    listed = EMPTY_LIST + MARK + b"".join(metadata) + APPENDS
    return base64.b64encode(PROTO + _dict({"flattened_tensor": _tensor(handle), "metadata": listed}) + STOP).decode()


def _metadata(spec: TensorSpec, start: int, end: int) -> bytes:
    fields = {
        "name": _plain(spec.name),
        "shape": _plain(tuple(spec.shape)),
        "dtype": _name("torch", spec.dtype),
        **{name: _plain(value) for name, value in (("start_idx", start), ("end_idx", end), ("numel", end - start))},
    }
    return _call(_name("types", "SimpleNamespace")) + _dict(fields) + BUILD


def _tensor(handle: MemoryHandle) -> bytes:
    size = (_plain((handle.nbytes,)), _plain((1,)))
    tensor, uint8 = _name("torch", "Tensor"), _name("torch", "uint8")
    if handle.kind == "cuda":
        return _call(
            _name(REDUCTIONS, "rebuild_cuda_tensor"),
            *(tensor, *size, _plain(0), _name("torch.storage", "TypedStorage"), uint8),
            *map(_plain, (handle.device, _bytes(handle.handle), handle.nbytes, handle.offset, False)),
            *map(_plain, (_bytes(handle.counter), handle.counter_offset, _bytes(handle.event), handle.event_required)),
        )
    names = map(_plain, (_bytes(handle.manager), _bytes(handle.handle), handle.nbytes))
    untyped = _call(_name(REDUCTIONS, "rebuild_storage_filename"), _name("torch.storage", "UntypedStorage"), *names)
    typed = _call(_name(REDUCTIONS, "rebuild_typed_storage"), untyped, uint8)
    place = MARK + _plain(0) + b"".join(size) + _plain(False) + TUPLE
    return _call(_name(REDUCTIONS, "rebuild_tensor"), tensor, typed, place)


def _bytes(encoded: str) -> bytes:
    return base64.b64decode(encoded, validate=True)


def _plain(value: Plain) -> bytes:
    match value:
        case bool():
            return TRUE if value else FALSE
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return INTEGER + bytes([len(raw)]) + raw
        case str():
            return TEXT + _counted(value.encode())
        case bytes():
            return BYTES + _counted(value)
        case _:
            return MARK + b"".join(map(_plain, value)) + TUPLE


def _counted(raw: bytes) -> bytes:
    return struct.pack("<I", len(raw)) + raw


def _name(module: str, name: str) -> bytes:
    assert NAME.fullmatch(module) and NAME.fullmatch(name), "names of a pickle are given by this file"
    return GLOBAL + f"{module}\n{name}\n".encode()


def _call(function: bytes, *arguments: bytes) -> bytes:
    return function + MARK + b"".join(arguments) + TUPLE + REDUCE


def _dict(items: Mapping[str, bytes]) -> bytes:
    return EMPTY_DICT + MARK + b"".join(_plain(k) + v for k, v in items.items()) + SETITEMS
