import numpy as np
import numpy.typing as npt

WHOLE_CHOICES: int

def keys(bits: npt.NDArray[np.uint32], out: npt.NDArray[np.int32]) -> None: ...
def add_values(
    nodes: npt.NDArray[np.uint64],
    values: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    trees: npt.NDArray[np.int64],
    rows: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.int64],
) -> None: ...
def use_vectors(bytes_most: int) -> None: ...
