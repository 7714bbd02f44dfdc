"""The loop of `models.trees`: rows walk down trees. See there for what the arrays hold.

Every comparison is one of integers: a float32 is mapped to a uint32 that is ordered alike. The only arithmetic
is a sum of int64. So a result depends on its row alone: not on batch, order or machine.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cdef enum:
    LANES = 8   # rows that walk at a time, so that one waits for memory while the others compute
    ROWS = 256  # rows of a block: their keys and a tree stay in the first-level cache together
    LEFT_BITS = 24
    LEFT = (1 << 24) - 1


cdef inline uint32_t _key(uint32_t bits) noexcept nogil:
    """The bits of a float32 as an integer that is ordered alike; NaN is above nothing, as with floats."""
    if bits & <uint32_t> 0x7FFFFFFF > <uint32_t> 0x7F800000:
        return 0
    if bits == <uint32_t> 0x80000000:  # -0.0 is 0.0
        return bits
    return ~bits if bits >> 31 else bits | <uint32_t> 0x80000000


cdef inline uint32_t _next(const uint64_t* tree, uint32_t node, const uint32_t* row) noexcept nogil:
    cdef uint64_t here = tree[node]
    cdef uint32_t where = <uint32_t> here
    return (where & LEFT) + (<uint32_t> (here >> 32) < row[where >> LEFT_BITS])


cdef void _walk(
    const uint64_t* tree, const int64_t* value, int64_t depth,
    const uint32_t* rows, Py_ssize_t width, Py_ssize_t count, int64_t* sums,
) noexcept nogil:
    """Add to each row's sum the value of its leaf in one tree."""
    cdef Py_ssize_t i = 0
    cdef int64_t step
    cdef int lane
    cdef uint32_t[LANES] at
    cdef const uint32_t* row
    while i + LANES <= count:
        row = rows + i * width
        for lane in range(LANES):
            at[lane] = 0
        for step in range(depth):
            for lane in range(LANES):
                at[lane] = _next(tree, at[lane], row + lane * width)
        for lane in range(LANES):
            sums[i + lane] += value[at[lane]]
        i += LANES
    while i < count:
        row = rows + i * width
        at[0] = 0
        for step in range(depth):
            at[0] = _next(tree, at[0], row)
        sums[i] += value[at[0]]
        i += 1


def keys(const uint32_t[::1] bits, uint32_t[::1] out):
    """Write to `out` the ordered integers of float32 values, given as their bits."""
    cdef Py_ssize_t i
    if out.shape[0] != bits.shape[0]:
        raise ValueError(f"{bits.shape[0]} values do not fit into {out.shape[0]} places")
    for i in range(bits.shape[0]):
        out[i] = _key(bits[i])


def add_values(
    const uint64_t[::1] nodes, const int64_t[::1] values, const int64_t[::1] starts,
    const int64_t[::1] depths, const uint32_t[:, ::1] rows, int64_t[::1] sums,
):
    """Add to `sums` the values of the leaves that each row reaches, one leaf a tree.

    `rows`: the bits of float32. Nothing is checked but what a caller can get wrong per batch.
    """
    cdef Py_ssize_t count = rows.shape[0], width = rows.shape[1], trees = starts.shape[0]
    cdef Py_ssize_t start, size, i, n
    cdef const uint32_t* bits
    cdef uint32_t* block
    if sums.shape[0] != count:
        raise ValueError(f"{count} rows do not fit into {sums.shape[0]} sums")
    if count == 0 or width == 0:
        return
    with nogil:
        block = <uint32_t*> malloc(ROWS * width * sizeof(uint32_t))
        if block == NULL:
            raise MemoryError
        start = 0
        while start < count:
            size = count - start
            if size > ROWS:
                size = ROWS
            bits = &rows[start, 0]
            for i in range(size * width):
                block[i] = _key(bits[i])
            for n in range(trees):
                _walk(&nodes[starts[n]], &values[starts[n]], depths[n], block, width, size, &sums[start])
            start += size
        free(block)
