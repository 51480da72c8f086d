"""One tensor of a model file, from its header."""

from dataclasses import dataclass

AGAIN = "download or copy the file again"
# safetensors' name of a dtype -> torch's, bytes per element.
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
}
TORCH_NAMES = {safe: name for safe, (name, _) in DTYPES.items()}
ITEM_BYTES = {safe: size for safe, (_, size) in DTYPES.items()}
FLOATS = {safe for safe, name in TORCH_NAMES.items() if "float" in name}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, from byte `start` to `stop`; `strides` (in elements) only if not row-major."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None

    def side(self, axis: int) -> int:
        """The length of an axis; 0 if there is none."""
        return self.shape[axis] if -len(self.shape) <= axis < len(self.shape) else 0
