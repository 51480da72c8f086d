"""One tensor of a model file as its header lists it: dtype, shape, byte range."""

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
    """A tensor stored in bytes `start` to `stop` (exclusive) of a file.

    dtype    safetensors' name: "F16"
    strides  in elements; None for a contiguous (row-major) tensor
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None

    def side(self, axis: int) -> int:
        """Return the size of dimension `axis`; 0 if the tensor does not have it."""
        return self.shape[axis] if -len(self.shape) <= axis < len(self.shape) else 0
