"""The loops of `models.trees`. See there for what the arrays hold.

Every comparison is one of integers: a float32 is mapped to an int32 that is ordered alike. The only
arithmetic is a sum of integers. So a result depends on its row alone: not on batch, order or processor.

Rows come in tiles of 32, feature by feature. A small tree is evaluated whole: all its choices for all rows of
a tile, children first, with no branch and no address that depends on a row, which is what vector units are
made for; there is a copy for each kind of them. A larger tree, or one for a few rows, is walked from its
root, eight rows at a time, so that one waits for memory while the others compute.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdint.h>

    #define TILE 32
    #define WHOLE_CHOICES 48

    /* found[node]: what each row of the tile comes to from the node on; leaves are filled in once for all. */
    #define EVALUATE_WHOLE(NAME, TARGET, BYTES)                                                             \
        typedef int32_t NAME##_vector __attribute__((vector_size(BYTES), may_alias));                       \
        typedef struct { NAME##_vector part[4 * TILE / BYTES]; } NAME##_rows;                               \
        TARGET static void NAME(                                                                            \
            const int64_t *values, const int32_t *choices, int64_t choices_total,                           \
            const int32_t *tiles, int64_t width, int64_t tiles_total, int32_t *sums)                        \
        {                                                                                                   \
            NAME##_rows found[2 * WHOLE_CHOICES + 1];                                                       \
            const NAME##_vector nought = {0};                                                               \
            for (int64_t n = 0; n <= 2 * choices_total; n++)                                                \
                for (int part = 0; part < 4 * TILE / BYTES; part++)                                         \
                    found[n].part[part] = nought + (int32_t)values[n];                                      \
            for (int64_t t = 0; t < tiles_total; t++) {                                                     \
                const NAME##_rows *tile = (const NAME##_rows *)tiles + t * width;                           \
                for (const int32_t *choice = choices; choice < choices + 4 * choices_total; choice += 4) {  \
                    const NAME##_rows *left = found + choice[2], *row = tile + choice[1];                   \
                    NAME##_rows *out = found + choice[3];                                                   \
                    const NAME##_vector key = nought + choice[0];                                           \
                    for (int part = 0; part < 4 * TILE / BYTES; part++) {                                   \
                        const NAME##_vector above = row->part[part] > key;                                  \
                        out->part[part] = (above & left[1].part[part]) | (~above & left[0].part[part]);     \
                    }                                                                                       \
                }                                                                                           \
                for (int part = 0; part < 4 * TILE / BYTES; part++)                                         \
                    ((NAME##_rows *)sums)[t].part[part] += found[0].part[part];                             \
            }                                                                                               \
        }

    typedef void evaluate(
        const int64_t *, const int32_t *, int64_t, const int32_t *, int64_t, int64_t, int32_t *);
    EVALUATE_WHOLE(with_any, , 16)
    #if defined(__x86_64__) && defined(__GNUC__)
    EVALUATE_WHOLE(with_avx2, __attribute__((target("avx2"))), 32)
    EVALUATE_WHOLE(with_avx512, __attribute__((target("avx512f"))), 64)
    static evaluate *best(int64_t bytes_most)
    {
        __builtin_cpu_init();
        if (bytes_most >= 64 && __builtin_cpu_supports("avx512f"))
            return with_avx512;
        return bytes_most >= 32 && __builtin_cpu_supports("avx2") ? with_avx2 : with_any;
    }
    #else
    static evaluate *best(int64_t bytes_most) { return with_any; }
    #endif
    """
    enum:
        TILE
        WHOLE_CHOICES_MAX "WHOLE_CHOICES"
    ctypedef void evaluate(
        const int64_t* values, const int32_t* choices, int64_t choices_total,
        const int32_t* tiles, int64_t width, int64_t tiles_total, int32_t* sums,
    ) noexcept nogil
    evaluate* best(int64_t bytes_most)

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    LANES = 8
    STEPS = 4   # between two looks at whether all rows stand on leaves
    TILES = 16  # of a block: their keys and a tree stay in the first-level cache together
    LEFT_BITS = 24
    LEFT = (1 << 24) - 1

WHOLE_CHOICES = WHOLE_CHOICES_MAX
"""A tree of at most so many choices is evaluated whole, which takes all of them; a larger one is walked."""

cdef evaluate* evaluate_whole = best(64)


def use_vectors(bytes_most: int) -> None:
    """Use vector units of at most so many bytes (16, 32, 64): for tests, as every kind gives the same."""
    global evaluate_whole
    evaluate_whole = best(bytes_most)


cdef inline int32_t _key(uint32_t bits) noexcept nogil:
    """The bits of a float32 as an integer that is ordered alike; NaN is above nothing, as with floats."""
    if bits & <uint32_t> 0x7FFFFFFF > <uint32_t> 0x7F800000:
        return <int32_t> <uint32_t> 0x80000000
    if bits == <uint32_t> 0x80000000:  # -0.0 is 0.0
        return 0
    return <int32_t> (bits ^ <uint32_t> 0x7FFFFFFF if bits >> 31 else bits)


cdef inline uint32_t _next(const uint64_t* tree, uint32_t node, const int32_t* row) noexcept nogil:
    cdef uint64_t here = tree[node]
    cdef uint32_t where = <uint32_t> here
    return (where & LEFT) + (<int32_t> (here >> 32) < row[(where >> LEFT_BITS) * TILE])


cdef void _walk(
    const uint64_t* tree, const int64_t* value, int64_t depth, const int32_t* tile, int lanes, int64_t* sums,
) noexcept nogil:
    """Add to each row's sum the value of its leaf in one tree."""
    cdef int64_t step = 0
    cdef int lane, n
    cdef uint32_t moved
    cdef uint32_t[LANES] at
    cdef uint32_t after
    if lanes == LANES:
        for lane in range(LANES):
            at[lane] = 0
        while step < depth:
            for n in range(STEPS - 1):
                for lane in range(LANES):
                    at[lane] = _next(tree, at[lane], tile + lane)
            moved = 0
            for lane in range(LANES):
                after = _next(tree, at[lane], tile + lane)
                moved |= after ^ at[lane]
                at[lane] = after
            if moved == 0:
                break
            step += STEPS
        for lane in range(LANES):
            sums[lane] += value[at[lane]]
    else:
        for lane in range(lanes):
            at[0] = 0
            for step in range(depth):
                after = _next(tree, at[0], tile + lane)
                if after == at[0]:
                    break
                at[0] = after
            sums[lane] += value[at[0]]


def keys(const uint32_t[::1] bits, int32_t[::1] out):
    """Write to `out` the ordered integers of float32 values, given as their bits."""
    cdef Py_ssize_t i
    if out.shape[0] != bits.shape[0]:
        raise ValueError(f"{bits.shape[0]} values do not fit into {out.shape[0]} places")
    for i in range(bits.shape[0]):
        out[i] = _key(bits[i])


def add_values(
    const uint64_t[::1] nodes, const int64_t[::1] values, const int32_t[:, ::1] choices,
    const int64_t[:, ::1] trees,
    const uint32_t[:, ::1] rows, int64_t[::1] sums,
):
    """Add to `sums` the values of the leaves that each row reaches, one leaf a tree.

    `rows`: the bits of float32. Nothing is checked but what a caller can get wrong per batch.
    """
    cdef Py_ssize_t count = rows.shape[0], width = rows.shape[1]
    cdef Py_ssize_t start = 0, size, i, n, row, feature
    cdef int lanes
    cdef const uint64_t* tree
    cdef const int64_t* value
    cdef int32_t* tiles
    cdef int32_t* tile
    cdef int64_t[16 * 32] walked
    cdef int32_t* whole
    if sums.shape[0] != count:
        raise ValueError(f"{count} rows do not fit into {sums.shape[0]} sums")
    if count == 0 or width == 0:
        return
    with nogil:
        tiles = <int32_t*> aligned_alloc(TILE * sizeof(int32_t), TILES * TILE * (width + 1) * sizeof(int32_t))
        if tiles == NULL:
            raise MemoryError
        whole = tiles + TILES * TILE * width  # sums over the trees that are evaluated whole
        while start < count:
            size = count - start
            if size > TILES * TILE:
                size = TILES * TILE
            if size % TILE:  # what no row stands in is compared too
                memset(tiles + size // TILE * TILE * width, 0, TILE * width * sizeof(int32_t))
            for row in range(size):
                tile = tiles + row // TILE * TILE * width + row % TILE
                for feature in range(width):
                    tile[feature * TILE] = _key(rows[start + row, feature])
            memset(walked, 0, sizeof(walked))
            memset(whole, 0, TILES * TILE * sizeof(int32_t))
            for n in range(trees.shape[0]):
                tree = &nodes[trees[n, 0]]
                value = &values[trees[n, 0]]
                if trees[n, 4] and size > LANES:
                    evaluate_whole(
                        value, &choices[trees[n, 2], 0], trees[n, 3],
                        tiles, width, (size + TILE - 1) // TILE, whole,
                    )
                else:
                    row = 0
                    while row < size:
                        lanes = <int> (size - row) if size - row < LANES else LANES
                        tile = tiles + row // TILE * TILE * width + row % TILE
                        _walk(tree, value, trees[n, 1], tile, lanes, &walked[row])
                        row += LANES
            for row in range(size):
                sums[start + row] += walked[row] + whole[row]
            start += size
        free(tiles)
