"""The compiled form of `streams.fraud.history`: the same bounds, and more windows, for a batch at a time.

Cards, their transactions and the remembered ids live in C arrays and two dicts. A card's transactions lie in
one array in order of event time, ties in the order of the log; entries before `start` are forgotten. Amounts
are running totals modulo 2^64, so that a window's sum is one subtraction. Cards are linked in the order of
their last record. What would cost O(window) per record for a card with many records is kept ready:

- the largest amount of each block of entries, for maxima;
- from `TALLIED` entries in the window on, how often each merchant occurs between two positions. A query moves
  the positions to where it needs them: in order of event time as many steps as records came and went.
"""

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

cdef extern from "Python.h":
    PyObject* PyDict_SetDefault(object table, object key, object value) except NULL

from typing import NamedTuple

import msgspec
import numpy as np

from streams.fraud import history

CHUNK_BYTES = history.CHUNK_BYTES

WINDOWS = (
    "count_10m",
    "sum_10m_minor",
    "count_1h",
    "sum_1h_minor",
    "count_24h",
    "sum_24h_minor",
    "max_24h_minor",
    "merchants_24h",
    "count_7d",
    "sum_7d_minor",
    "max_7d_minor",
    "since_previous_ms",
    "late_ms",
    "windows_complete",
)


class Bounds(NamedTuple):
    """How far a partition's memory reaches. See `streams.fraud.history`, whose constants are the defaults.

    `widths_ms`: of the windows 10m, 1h, 24h and 7d, in this order.
    """

    widths_ms: tuple = tuple(history.WINDOWS_MS.values())
    lateness_ms: int = history.LATENESS_MS
    idle_ms: int = history.IDLE_MS
    cards_max: int = history.CARDS_MAX


class Inserted(NamedTuple):
    """What became of a batch.

    `windows`: int64 (rows, `WINDOWS`); zeros for a duplicate.
    `first`: int64 (rows,): the row itself where the transaction is new; an earlier row of this batch that it
    repeats; or -1, and `known[row]` is the answer that it got in an earlier batch.
    `named`: int64 (rows, 3 * widths that were named): count, sum and maximum of each; zeros for a duplicate.
    """

    windows: object
    first: object
    known: dict
    named: object


cdef enum:
    COLUMNS = 14
    BLOCK = 64         # entries whose largest amount is kept
    BLOCKED = 128      # room for entries from which on it is
    PLACES_MIN = 256   # of a tally's tables
    TALLIED = 128      # entries in a window from which on its merchants are tallied
    COMPACT_MIN = 16   # forgotten entries that are worth a move
    NONE = -1          # no card, no merchant
    NAMED_MAX = 16     # widths that may be named with a batch
    NAMED_COLUMNS = 3

cdef int64_t NEVER = -(<int64_t> 1 << 62)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


cdef struct Entry:
    int64_t at_ms
    uint64_t total     # of the amounts up to and including this one, modulo 2^64
    PyObject* id       # owned
    int32_t merchant

cdef struct Tally:
    int32_t first      # the entries counted: [first, end)
    int32_t end
    int32_t distinct
    int32_t used       # places of `counts` that ever held a merchant
    int32_t mask       # places - 1, a power of two less one
    int32_t* merchants
    int32_t* counts

cdef struct Card:
    Entry* entries
    int64_t* blocks    # largest amounts of the entries [64 n, 64 n + 64); NULL for a card of few
    Tally* tally
    PyObject* key      # owned; NULL: the slot is free
    uint64_t base      # total of what lay before entries[0]
    int64_t known_from_ms
    int64_t last_append_ms
    int32_t start
    int32_t end
    int32_t room
    int32_t before     # neighbours in the order of the last record
    int32_t after


cdef inline int32_t _after(const Entry* entries, int64_t at_ms, int32_t first, int32_t end) noexcept:
    """The first of the entries [first, end) that is later than `at_ms`; `end` where none is."""
    cdef int32_t middle
    while first < end:
        middle = first + ((end - first) >> 1)
        if entries[middle].at_ms > at_ms:
            end = middle
        else:
            first = middle + 1
    return first


cdef inline uint64_t _total_before(const Card* card, int32_t i) noexcept:
    return card.entries[i - 1].total if i else card.base


cdef inline int64_t _amount(const Card* card, int32_t i) noexcept:
    return <int64_t> (card.entries[i].total - _total_before(card, i))


cdef void _fill_blocks(Card* card, int32_t since) noexcept:
    """Find the largest amounts anew, of every block from the one of entry `since` on."""
    cdef int32_t i, block = since // BLOCK
    cdef int64_t amount, largest
    while block * BLOCK < card.end:
        largest = _amount(card, block * BLOCK)
        for i in range(block * BLOCK + 1, min(card.end, (block + 1) * BLOCK)):
            amount = _amount(card, i)
            if amount > largest:
                largest = amount
        card.blocks[block] = largest
        block += 1


cdef int64_t _largest(const Card* card, int32_t first, int32_t end) noexcept:
    """The largest amount of the entries [first, end), at least one."""
    cdef int64_t amount, largest = _amount(card, first)
    cdef int32_t i = first + 1
    while i < end:
        if card.blocks != NULL and i % BLOCK == 0 and i + BLOCK <= end:
            amount = card.blocks[i // BLOCK]
            i += BLOCK
        else:
            amount = _amount(card, i)
            i += 1
        if amount > largest:
            largest = amount
    return largest


# The tally

cdef inline int32_t _place(const Tally* tally, int32_t merchant) noexcept:
    cdef uint32_t i = <uint32_t> merchant * <uint32_t> 2654435769
    i = (i ^ (i >> 15)) & <uint32_t> tally.mask
    while tally.merchants[i] != merchant and tally.merchants[i] != NONE:
        i = (i + 1) & <uint32_t> tally.mask
    return <int32_t> i


cdef void _tally_free(Card* card) noexcept:
    if card.tally != NULL:
        PyMem_Free(card.tally.merchants)
        PyMem_Free(card.tally.counts)
        PyMem_Free(card.tally)
        card.tally = NULL


cdef int _tally_room(Tally* tally, int32_t places) except -1:
    """Move to tables of `places`, without the merchants that are no longer counted."""
    cdef int32_t* merchants = <int32_t*> PyMem_Malloc(places * sizeof(int32_t))
    cdef int32_t* counts = <int32_t*> PyMem_Malloc(places * sizeof(int32_t))
    cdef int32_t i, place, old = tally.mask + 1 if tally.merchants != NULL else 0
    cdef int32_t* old_merchants = tally.merchants
    cdef int32_t* old_counts = tally.counts
    if merchants == NULL or counts == NULL:
        PyMem_Free(merchants)
        PyMem_Free(counts)
        raise MemoryError
    memset(merchants, 0xFF, places * sizeof(int32_t))  # NONE
    memset(counts, 0, places * sizeof(int32_t))
    tally.merchants, tally.counts = merchants, counts
    tally.mask = places - 1
    tally.used = 0
    for i in range(old):
        if old_counts[i]:
            place = _place(tally, old_merchants[i])
            tally.merchants[place] = old_merchants[i]
            tally.counts[place] = old_counts[i]
            tally.used += 1
    PyMem_Free(old_merchants)
    PyMem_Free(old_counts)
    return 0


cdef inline int _tally_add(Tally* tally, int32_t merchant) except -1:
    cdef int32_t place
    if merchant == NONE:
        return 0
    if (tally.used + 1) * 2 > tally.mask:
        _tally_room(tally, 256 if tally.distinct < 64 else _power(tally.distinct * 4))
    place = _place(tally, merchant)
    if tally.merchants[place] == NONE:
        tally.merchants[place] = merchant
        tally.used += 1
    tally.counts[place] += 1
    if tally.counts[place] == 1:
        tally.distinct += 1
    return 0


cdef inline int32_t _power(int32_t least) noexcept:
    cdef int32_t power = 256
    while power < least:
        power *= 2
    return power


cdef inline void _tally_drop(Tally* tally, int32_t merchant) noexcept:
    cdef int32_t place
    if merchant == NONE:
        return
    place = _place(tally, merchant)
    tally.counts[place] -= 1
    if tally.counts[place] == 0:
        tally.distinct -= 1


cdef int _tally_move(Card* card, int32_t first, int32_t end) except -1:
    """Count the entries [first, end) and no others."""
    cdef Tally* tally = card.tally
    if first >= tally.end or end <= tally.first:  # nothing in common: begin anew
        while tally.first < tally.end:
            _tally_drop(tally, card.entries[tally.first].merchant)
            tally.first += 1
        tally.first = tally.end = first
    while tally.end < end:
        _tally_add(tally, card.entries[tally.end].merchant)
        tally.end += 1
    while tally.first > first:
        _tally_add(tally, card.entries[tally.first - 1].merchant)
        tally.first -= 1
    while tally.end > end:
        tally.end -= 1
        _tally_drop(tally, card.entries[tally.end].merchant)
    while tally.first < first:
        _tally_drop(tally, card.entries[tally.first].merchant)
        tally.first += 1
    return 0


cdef int _tally_begin(Card* card) except -1:
    cdef Tally* tally = <Tally*> PyMem_Malloc(sizeof(Tally))
    if tally == NULL:
        raise MemoryError
    memset(tally, 0, sizeof(Tally))
    card.tally = tally
    _tally_room(tally, PLACES_MIN)
    return 0


# A card's entries

cdef int _resize(Card* card, int32_t room) except -1:
    cdef void* moved = PyMem_Realloc(card.entries, room * sizeof(Entry))
    if moved == NULL:
        raise MemoryError
    card.entries = <Entry*> moved
    card.room = room
    if room >= BLOCKED:
        moved = PyMem_Realloc(card.blocks, ((room + BLOCK - 1) // BLOCK) * sizeof(int64_t))
        if moved == NULL:
            raise MemoryError
        if card.blocks == NULL:
            card.blocks = <int64_t*> moved
            _fill_blocks(card, 0)
        card.blocks = <int64_t*> moved
    elif card.blocks != NULL:
        PyMem_Free(card.blocks)
        card.blocks = NULL
    return 0


cdef int _put(
    Card* card, int32_t place, int64_t at_ms, int64_t amount, str event_id, int32_t merchant
) except -1:
    """Put an entry at `place`, before what is there."""
    cdef int32_t i
    cdef Entry* entries
    if card.end == card.room:
        _resize(card, card.room * 2 if card.room else 4)
    entries = card.entries
    if place < card.end:
        memmove(&entries[place + 1], &entries[place], (card.end - place) * sizeof(Entry))
        for i in range(place + 1, card.end + 1):
            entries[i].total += <uint64_t> amount
    entries[place].at_ms = at_ms
    entries[place].total = _total_before(card, place) + <uint64_t> amount
    entries[place].merchant = merchant
    entries[place].id = <PyObject*> event_id
    Py_INCREF(event_id)
    card.end += 1
    if card.blocks != NULL:
        if place == card.end - 1 and place % BLOCK:
            if amount > card.blocks[place // BLOCK]:
                card.blocks[place // BLOCK] = amount
        else:
            _fill_blocks(card, place)
    if card.tally != NULL:
        if place <= card.tally.first:
            card.tally.first += 1
            card.tally.end += 1
        elif place < card.tally.end:
            _tally_add(card.tally, merchant)
            card.tally.end += 1
    return 0


cdef int _compact(Card* card) except -1:
    """Cut off what is forgotten, now and then: at each record it would cost O(n)."""
    cdef int32_t start = card.start
    if start < COMPACT_MIN or start * 2 < card.end:
        return 0
    card.base = card.entries[start - 1].total
    memmove(card.entries, &card.entries[start], (card.end - start) * sizeof(Entry))
    card.end -= start
    card.start = 0
    if card.tally != NULL:
        card.tally.first -= start
        card.tally.end -= start
        if card.end < TALLIED // 4:
            _tally_free(card)
    if card.end * 4 < card.room:
        _resize(card, card.room // 2)
    if card.blocks != NULL:
        _fill_blocks(card, 0)
    return 0


cdef void _free(Card* card) noexcept:
    """Free what a card has allocated, and its key. Its entries' ids are let go of before."""
    _tally_free(card)
    PyMem_Free(card.entries)
    PyMem_Free(card.blocks)
    Py_DECREF(<object> card.key)
    card.key = NULL


cdef class Histories:
    """The cards of one partition and the answer to every transaction that is still remembered.

    A `streams.decide.State`. For each batch `insert`, then `keep` with the answers: the encoded results, with
    which duplicates are answered. Cards and ids are given scoped by their tenant. Whatever the cuts
    into batches, a log gives the same windows and the same state.
    """

    cdef int64_t _widths[4]
    cdef int64_t _named[NAMED_MAX]  # widths named with the batch in hand
    cdef int32_t _named_total
    cdef int64_t _horizon_ms, _lateness_ms, _idle_ms
    cdef int32_t _cards_max
    # Cards: slots, linked in the order of the last record from `_oldest` to `_newest`; free ones by `after`.
    cdef Card* _cards
    cdef int32_t _cards_room, _cards_used, _cards_free, _oldest, _newest
    cdef dict _slots
    # Merchants: numbers, counted by the entries that name them; free ones are used again.
    cdef list _merchant_names
    cdef dict _merchants
    cdef int32_t* _merchant_uses
    cdef int64_t* _merchant_seen  # the query that counted it last
    cdef int32_t _merchants_room
    cdef list _merchants_free
    cdef int64_t _queries
    # What was answered, or the row of the batch that is about to be.
    cdef dict _answers
    cdef int64_t _swept_through_ms, _newest_append_ms
    cdef tuple _batch
    cdef bint _has_lost_row  # a row of the batch was forgotten before it had its answer
    cdef list _applied

    def __cinit__(self):
        self._cards = NULL
        self._merchant_uses = NULL
        self._merchant_seen = NULL
        self._cards_room = self._cards_used = self._merchants_room = 0
        self._cards_free = self._oldest = self._newest = NONE

    def __init__(self, bounds=None):
        bounds = Bounds() if bounds is None else bounds
        widths = tuple(bounds.widths_ms)
        if len(widths) != 4 or not 0 < widths[0] <= widths[1] <= widths[2] <= widths[3]:
            raise ValueError(f"the windows are {widths} ms wide; give four above 0, the narrowest first")
        if bounds.lateness_ms < 0 or bounds.idle_ms <= 0 or not 0 < bounds.cards_max < 2**31:
            raise ValueError(f"{bounds} bounds nothing; give a lateness from 0, idleness and cards above 0")
        for n in range(4):
            self._widths[n] = widths[n]
        self._named_total = 0
        self._lateness_ms = bounds.lateness_ms
        self._horizon_ms = widths[3] + bounds.lateness_ms
        self._idle_ms = bounds.idle_ms
        self._cards_max = bounds.cards_max
        self._slots = {}
        self._merchant_names = []
        self._merchants = {}
        self._merchants_free = []
        self._queries = 0
        self._answers = {}
        self._swept_through_ms = self._newest_append_ms = NEVER
        self._batch = None
        self._applied = []

    def __dealloc__(self):
        cdef int32_t slot, i
        for slot in range(self._cards_used):
            if self._cards[slot].key != NULL:
                for i in range(self._cards[slot].start, self._cards[slot].end):
                    Py_DECREF(<object> self._cards[slot].entries[i].id)
                _free(&self._cards[slot])
        PyMem_Free(self._cards)
        PyMem_Free(self._merchant_uses)
        PyMem_Free(self._merchant_seen)

    def __len__(self):
        return len(self._answers)

    @property
    def cards_total(self):
        return len(self._slots)

    @property
    def merchants_total(self):
        return len(self._merchants)

    # The batch

    def insert(
        self, at_ms, amount_minor, append_ms, list cards not None, list ids not None, list merchants not None,
        named_ms=(),
    ):
        """Put a batch's transactions in their places, in the order of the log; returns `Inserted`.

        `named_ms`: widths of further windows, from 1 ms to the widest of the four, which are as exact.

        Columns of one length: event time, amount and append time as contiguous int64 (ms, minor units, ms);
        cards, ids (scoped by tenant) and merchants as str, None where the merchant is unknown. Every one is a
        valid transaction. An id that is remembered changes nothing: whether it is the same transaction is for
        the caller to see. Raises ValueError for columns of unlike lengths or another type, and while the
        batch before lacks its answers; TypeError for what is no str. The state has not changed then.
        """
        cdef const int64_t[::1] ats = at_ms
        cdef const int64_t[::1] amounts = amount_minor
        cdef const int64_t[::1] appends = append_ms
        cdef Py_ssize_t count = len(ids), i
        if self._batch is not None:
            raise ValueError("the batch before has no answers yet; give them with keep()")
        if not ats.shape[0] == amounts.shape[0] == appends.shape[0] == len(cards) == len(merchants) == count:
            raise ValueError(
                f"the columns have {ats.shape[0]}, {amounts.shape[0]}, {appends.shape[0]}, {len(cards)},"
                f" {count} and {len(merchants)} rows; give columns of one length"
            )
        for i in range(count):
            if type(cards[i]) is not str or type(ids[i]) is not str or not (
                merchants[i] is None or type(merchants[i]) is str
            ):
                raise TypeError(f"row {i} has a card, id or merchant that is no str; decode it")
        if len(named_ms) > NAMED_MAX or not all(0 < width <= self._widths[3] for width in named_ms):
            raise ValueError(
                f"windows {named_ms} ms wide cannot be named; name at most {NAMED_MAX} of 1 to {self._widths[3]} ms"
            )
        self._named_total = <int32_t> len(named_ms)
        for i in range(self._named_total):
            self._named[i] = named_ms[i]
        found = np.zeros((count, COLUMNS), dtype=np.int64)
        # One column more, so that there always is one to point at.
        named_found = np.zeros((count, NAMED_COLUMNS * self._named_total + 1), dtype=np.int64)
        named_columns = named_found[:, : NAMED_COLUMNS * self._named_total]
        firsts = np.empty(count, dtype=np.int64)
        remembered = np.zeros(count, dtype=np.uint8)
        if count == 0:
            self._batch = ((), remembered, ())
            return Inserted(found, firsts, {}, named_columns)
        cdef int64_t[:, ::1] windows = found
        cdef int64_t[:, ::1] named = named_found
        cdef int64_t[::1] first = firsts
        cdef unsigned char[::1] is_remembered = remembered
        cdef dict known = {}
        cdef PyObject* before
        cdef object row
        self._has_lost_row = False
        for i in range(count):
            row = i
            before = PyDict_SetDefault(self._answers, ids[i], row)
            if before == <PyObject*> row:
                first[i] = i
                is_remembered[i] = self._insert(
                    ats[i], amounts[i], appends[i], <str> cards[i], <str> ids[i], merchants[i],
                    &windows[i, 0], &named[i, 0],
                )
                if not is_remembered[i]:
                    del self._answers[ids[i]]
            elif PyBytes_CheckExact(<object> before):
                known[i] = <object> before
                first[i] = NONE
            else:
                first[i] = <object> before
        self._batch = (
            firsts,
            remembered,
            (np.array(ats), np.array(amounts), np.array(appends), list(cards), list(ids), list(merchants)),
        )
        return Inserted(found, firsts, known, named_columns)

    def keep(self, list answers not None):
        """Remember the answers to the batch: for each row the bytes that were sent, of a duplicate anything.

        Raises ValueError where they are not as many as the rows, or there is no batch; TypeError where the
        answer to a new transaction is no bytes. The batch can then be answered again.
        """
        if self._batch is None:
            raise ValueError("there is no batch to answer; insert one before")
        firsts, remembered, columns = self._batch
        cdef const unsigned char[::1] is_remembered = remembered
        cdef Py_ssize_t i, count = is_remembered.shape[0], kept = 0
        if len(answers) != count:
            raise ValueError(f"{len(answers)} answers do not fit a batch of {count} rows; give one a row")
        for i in range(count):
            if is_remembered[i]:
                kept += 1
                if not PyBytes_CheckExact(answers[i]):
                    raise TypeError(f"the answer to row {i} is no bytes; give the record that was sent")
        cdef PyObject* pending
        cdef list ids
        if kept:
            ids = columns[4]
            for i in range(count):
                if not is_remembered[i]:
                    continue
                if self._has_lost_row:
                    # A later row may have pushed it beyond the horizon, and after that brought its id again.
                    pending = PyDict_GetItemWithError(self._answers, ids[i])
                    if pending == NULL or PyBytes_CheckExact(<object> pending) or <object> pending != i:
                        continue
                self._answers[ids[i]] = answers[i]
            if kept < count:
                rows = np.flatnonzero(remembered)
                picked = rows.tolist()
                numbers = [column[rows] for column in columns[:3]]
                texts = [[column[row] for row in picked] for column in (*columns[3:], answers)]
            else:
                numbers = columns[:3]
                texts = [*columns[3:], list(answers)]
            self._applied.append((*[column.tobytes() for column in numbers], *texts))
        self._batch = None

    cdef int32_t _card(self, str key) except -2:
        """The card's slot; NONE where it is not known."""
        cdef PyObject* slot = PyDict_GetItemWithError(self._slots, key)
        return NONE if slot == NULL else <object> slot

    cdef int32_t _new_card(self, str key, int64_t known_from_ms) except -1:
        cdef int32_t slot = self._cards_free
        cdef void* moved
        cdef Card* card
        if slot != NONE:
            self._cards_free = self._cards[slot].after
        else:
            if self._cards_used == self._cards_room:
                moved = PyMem_Realloc(self._cards, <size_t> max(1024, self._cards_room * 2) * sizeof(Card))
                if moved == NULL:
                    raise MemoryError
                self._cards = <Card*> moved
                self._cards_room = max(1024, self._cards_room * 2)
            slot = self._cards_used
            self._cards_used += 1
        card = &self._cards[slot]
        memset(card, 0, sizeof(Card))
        card.key = <PyObject*> key
        Py_INCREF(key)
        card.known_from_ms = known_from_ms
        card.last_append_ms = NEVER
        self._slots[key] = slot
        self._link(slot)
        return slot

    cdef void _link(self, int32_t slot) noexcept:
        """Make the card the one with the last record."""
        self._cards[slot].before = self._newest
        self._cards[slot].after = NONE
        if self._newest != NONE:
            self._cards[self._newest].after = slot
        else:
            self._oldest = slot
        self._newest = slot

    cdef void _unlink(self, int32_t slot) noexcept:
        cdef int32_t before = self._cards[slot].before, after = self._cards[slot].after
        if before != NONE:
            self._cards[before].after = after
        else:
            self._oldest = after
        if after != NONE:
            self._cards[after].before = before
        else:
            self._newest = before

    cdef int32_t _merchant(self, name) except -2:
        """The merchant's number, with one use more."""
        cdef PyObject* found
        cdef int32_t number, room
        cdef void* moved
        if name is None:
            return NONE
        found = PyDict_GetItemWithError(self._merchants, name)
        if found != NULL:
            number = <object> found
            self._merchant_uses[number] += 1
            return number
        if self._merchants_free:
            number = self._merchants_free.pop()
            self._merchant_names[number] = name
        else:
            number = <int32_t> len(self._merchant_names)
            if number == self._merchants_room:
                room = max(1024, self._merchants_room * 2)
                moved = PyMem_Realloc(self._merchant_uses, room * sizeof(int32_t))
                if moved == NULL:
                    raise MemoryError
                self._merchant_uses = <int32_t*> moved
                moved = PyMem_Realloc(self._merchant_seen, room * sizeof(int64_t))
                if moved == NULL:
                    raise MemoryError
                self._merchant_seen = <int64_t*> moved
                self._merchants_room = room
            self._merchant_names.append(name)
        self._merchants[name] = number
        self._merchant_uses[number] = 1
        self._merchant_seen[number] = 0
        return number

    cdef bint _insert(
        self, int64_t at_ms, int64_t amount, int64_t append_ms, str key, str event_id, merchant,
        int64_t* out, int64_t* named,
    ) except -1:
        """Put a new transaction in its place, write its windows to `out` and `named` and forget what it makes
        old.

        Returns whether it is remembered. (One that lies behind its card's watermark is not.)
        """
        cdef int32_t slot = self._card(key)
        cdef int32_t place
        cdef Card* card
        cdef int64_t newest_ms
        cdef bint is_idle
        if slot == NONE:
            slot = self._new_card(key, self._swept_through_ms)
            card = &self._cards[slot]
            place = 0
        else:
            card = &self._cards[slot]
            newest_ms = card.entries[card.end - 1].at_ms
            if at_ms <= newest_ms - self._horizon_ms:
                self._alone(amount, merchant, newest_ms - at_ms, out, named)
                return False
            if slot != self._newest:
                self._unlink(slot)
                self._link(slot)
            place = card.end if at_ms >= newest_ms else _after(card.entries, at_ms, card.start, card.end)
        if append_ms > self._newest_append_ms:
            self._newest_append_ms = append_ms
        card.last_append_ms = self._newest_append_ms
        _put(card, place, at_ms, amount, event_id, self._merchant(merchant))
        self._windows(card, place, out)
        self._named_windows(card, place, named)
        self._forget(card, _after(
            card.entries, card.entries[card.end - 1].at_ms - self._horizon_ms, card.start, card.end
        ))
        _compact(card)
        while True:
            card = &self._cards[self._oldest]
            is_idle = card.last_append_ms <= self._newest_append_ms - self._idle_ms
            if not is_idle and len(self._slots) <= self._cards_max:
                return True
            self._evict(self._oldest)

    cdef void _alone(self, int64_t amount, merchant, int64_t late_ms, int64_t* out, int64_t* named) noexcept:
        """The windows of a transaction that finds nothing."""
        cdef int32_t n
        for n in range(self._named_total):
            named[NAMED_COLUMNS * n] = 1
            named[NAMED_COLUMNS * n + 1] = named[NAMED_COLUMNS * n + 2] = amount
        out[0] = out[2] = out[4] = out[8] = 1
        out[1] = out[3] = out[5] = out[6] = out[9] = out[10] = amount
        out[7] = merchant is not None
        out[11] = NONE
        out[12] = late_ms
        out[13] = 0

    cdef int _windows(self, Card* card, int32_t place, int64_t* out) except -1:
        """Write the windows of the transaction at `place`, as of its event time."""
        cdef const Entry* entries = card.entries
        cdef int64_t at_ms = entries[place].at_ms
        # Later entries of the same millisecond are not known yet: `place` is the last of its ties.
        cdef uint64_t until = entries[place].total
        cdef int32_t in_7d = _after(entries, at_ms - self._widths[3], card.start, place)
        cdef int32_t in_24h = _after(entries, at_ms - self._widths[2], in_7d, place)
        cdef int32_t in_1h = _after(entries, at_ms - self._widths[1], in_24h, place)
        cdef int32_t in_10m = _after(entries, at_ms - self._widths[0], in_1h, place)
        cdef int64_t late_ms = entries[card.end - 1].at_ms - at_ms
        cdef int64_t largest = _largest(card, in_24h, place + 1)
        out[0] = place + 1 - in_10m
        out[1] = <int64_t> (until - _total_before(card, in_10m))
        out[2] = place + 1 - in_1h
        out[3] = <int64_t> (until - _total_before(card, in_1h))
        out[4] = place + 1 - in_24h
        out[5] = <int64_t> (until - _total_before(card, in_24h))
        out[6] = largest
        out[7] = self._distinct(card, in_24h, place + 1)
        out[8] = place + 1 - in_7d
        out[9] = <int64_t> (until - _total_before(card, in_7d))
        if in_7d < in_24h:
            largest = max(largest, _largest(card, in_7d, in_24h))
        out[10] = largest
        out[11] = NONE
        if place > card.start and entries[place - 1].at_ms > at_ms - self._widths[3]:
            out[11] = at_ms - entries[place - 1].at_ms
        out[12] = late_ms
        out[13] = late_ms <= self._lateness_ms and at_ms - self._widths[3] >= card.known_from_ms
        return 0

    cdef void _named_windows(self, const Card* card, int32_t place, int64_t* named) noexcept:
        """Write count, sum and maximum of the named windows of the transaction at `place`."""
        cdef const Entry* entries = card.entries
        cdef int32_t n, first
        for n in range(self._named_total):
            first = _after(entries, entries[place].at_ms - self._named[n], card.start, place)
            named[NAMED_COLUMNS * n] = place + 1 - first
            named[NAMED_COLUMNS * n + 1] = <int64_t> (entries[place].total - _total_before(card, first))
            named[NAMED_COLUMNS * n + 2] = _largest(card, first, place + 1)

    cdef int64_t _distinct(self, Card* card, int32_t first, int32_t end) except -1:
        """How many merchants the entries [first, end) name."""
        cdef int32_t i, merchant, found = 0
        if card.tally == NULL and end - first >= TALLIED:
            _tally_begin(card)
        if card.tally != NULL:
            _tally_move(card, first, end)
            return card.tally.distinct
        self._queries += 1
        for i in range(first, end):
            merchant = card.entries[i].merchant
            if merchant != NONE and self._merchant_seen[merchant] != self._queries:
                self._merchant_seen[merchant] = self._queries
                found += 1
        return found

    cdef int _forget(self, Card* card, int32_t end) except -1:
        """Forget the card's entries before `end`, with their answers."""
        cdef int32_t merchant
        cdef object event_id
        while card.start < end:
            event_id = <object> card.entries[card.start].id
            merchant = card.entries[card.start].merchant
            card.start += 1
            Py_DECREF(event_id)
            if not PyBytes_CheckExact(self._answers.pop(event_id)):
                self._has_lost_row = True
            if merchant != NONE:
                self._merchant_uses[merchant] -= 1
                if self._merchant_uses[merchant] == 0:
                    del self._merchants[self._merchant_names[merchant]]
                    self._merchant_names[merchant] = None
                    self._merchants_free.append(merchant)
        return 0

    cdef int _evict(self, int32_t slot) except -1:
        cdef Card* card = &self._cards[slot]
        self._swept_through_ms = max(self._swept_through_ms, card.entries[card.end - 1].at_ms)
        self._forget(card, card.end)
        del self._slots[<object> card.key]
        self._unlink(slot)
        _free(card)
        card.after = self._cards_free
        self._cards_free = slot
        return 0

    # State

    def delta(self):
        """What was inserted and answered since the last call, or None; see `streams.decide.State`.

        MessagePack: for each batch columns of what is remembered of it (event time, amount, append time as
        little-endian int64; cards, ids, merchants, answers). Loading it inserts the same again, so what was
        forgotten needs no record of its own. Raises ValueError while a batch lacks its answers.
        """
        self._require_answered()
        if not self._applied:
            return None
        body = _encode({"applied": self._applied})
        self._applied = []
        return body

    def snapshot(self):
        """The whole state in chunks of about `CHUNK_BYTES`, cards in the order of their last record.

        Raises ValueError while a batch lacks its answers.
        """
        self._require_answered()
        cdef int32_t slot = self._oldest
        cdef list parts = []
        cdef object size = 0, taken
        cdef int32_t first, end
        while slot != NONE:
            first, end = self._cards[slot].start, self._cards[slot].end
            while first < end:
                part, first, taken = self._part(slot, first, CHUNK_BYTES - size)
                parts.append(part)
                size += taken
                if size >= CHUNK_BYTES:
                    yield self._chunk(parts)
                    parts, size = [], 0
            slot = self._cards[slot].after
        if parts:
            yield self._chunk(parts)

    def load(self, bytes chunk not None):
        """Apply a chunk of a snapshot, or a delta, in the order in which they were written.

        Raises ValueError for a delta that does not follow from what was loaded before.
        """
        self._require_answered()
        cdef dict content = _decode(chunk)
        cdef int64_t[COLUMNS] windows
        cdef const int64_t[::1] ats
        cdef const int64_t[::1] amounts
        cdef const int64_t[::1] appends
        cdef list cards, ids, merchants, answers
        cdef Py_ssize_t i
        cdef int32_t slot
        if "applied" in content:
            self._named_total = 0
            for at_bytes, amount_bytes, append_bytes, cards, ids, merchants, answers in content["applied"]:
                ats = np.frombuffer(at_bytes, dtype="<i8")
                amounts = np.frombuffer(amount_bytes, dtype="<i8")
                appends = np.frombuffer(append_bytes, dtype="<i8")
                for i in range(len(ids)):
                    is_new = ids[i] not in self._answers
                    self._answers[ids[i]] = answers[i]
                    if not is_new or not self._insert(
                        ats[i], amounts[i], appends[i], cards[i], ids[i], merchants[i], windows, NULL
                    ):
                        raise ValueError(
                            f"the delta's transaction {ids[i]!r} cannot be new here: chunks are missing or in"
                            " another order; restore them from a copy, or delete them and replay"
                        )
            return
        self._swept_through_ms = content["swept_through_ms"]
        self._newest_append_ms = content["newest_append_ms"]
        for (
            key, known_from_ms, last_append_ms, at_bytes, amount_bytes, ids, merchants, answers
        ) in content["cards"]:
            slot = self._card(key)
            if slot == NONE:
                slot = self._new_card(key, known_from_ms)
                self._cards[slot].last_append_ms = last_append_ms
            ats = np.frombuffer(at_bytes, dtype="<i8")
            amounts = np.frombuffer(amount_bytes, dtype="<i8")
            for i in range(len(ids)):
                _put(
                    &self._cards[slot], self._cards[slot].end, ats[i], amounts[i], ids[i],
                    self._merchant(merchants[i]),
                )
                self._answers[ids[i]] = answers[i]

    cdef int _require_answered(self) except -1:
        if self._batch is not None:
            raise ValueError("a batch has no answers yet; give them with keep()")
        return 0

    cdef tuple _part(self, int32_t slot, int32_t first, object room):
        """A card's entries from `first` on, as stored, as many as fill `room` bytes; their end and size."""
        cdef Card* card = &self._cards[slot]
        cdef list ids = [], merchants = [], answers = []
        cdef int32_t i = first, merchant
        cdef Py_ssize_t size = 0, most = room
        while i < card.end and size < most:
            event_id = <object> card.entries[i].id
            merchant = card.entries[i].merchant
            answer = self._answers[event_id]
            ids.append(event_id)
            merchants.append(None if merchant == NONE else self._merchant_names[merchant])
            answers.append(answer)
            size += len(<bytes> answer) + len(<str> event_id) + 2 * sizeof(int64_t)
            i += 1
        cdef bytes ats = PyBytes_FromStringAndSize(NULL, (i - first) * sizeof(int64_t))
        cdef bytes amounts = PyBytes_FromStringAndSize(NULL, (i - first) * sizeof(int64_t))
        cdef int64_t* at = <int64_t*> <char*> ats
        cdef int64_t* amount = <int64_t*> <char*> amounts
        cdef int32_t n
        for n in range(first, i):
            at[n - first] = card.entries[n].at_ms
            amount[n - first] = _amount(card, n)
        key = <object> card.key
        return (key, card.known_from_ms, card.last_append_ms, ats, amounts, ids, merchants, answers), i, size

    cdef bytes _chunk(self, list parts):
        return _encode(
            {
                "swept_through_ms": self._swept_through_ms,
                "newest_append_ms": self._newest_append_ms,
                "cards": parts,
            }
        )
