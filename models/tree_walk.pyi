import numpy as np
import numpy.typing as npt

def keys(bits: npt.NDArray[np.uint32], out: npt.NDArray[np.uint32]) -> None: ...
def add_values(
    nodes: npt.NDArray[np.uint64],
    values: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    depths: npt.NDArray[np.int64],
    rows: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.int64],
) -> None: ...
