"""A simulated enclave page cache: more memory than is protected, as SGX1 has it. What runs stages
in it is ``simulated_executor``.

Buffers of stages (*regions*) lie outside of the ledger. At any time at most ``capacity_pages`` of
their 4 KiB pages are *present*: protected memory. What a step of the engine touches is made present
before it runs, in order; the others wait outside, encrypted.

Reclaim is that of Linux (``arch/x86/kernel/cpu/sgx/main.c``): present pages are in a queue in the
order in which they came. Where there is no free page, the first 16 are looked at: one that was used
since it was looked at last goes to the end of the queue (a second chance), the others are evicted;
so on until there is a free page. The pages that a running step has touched are in use and stay.

All of it is real work: an evicted page is encrypted with AES-256-GCM under a fresh nonce, a
reloaded one is decrypted and authenticated against the nonce of its last eviction, which is kept
inside, so that an older version is no better than a forgery. A page's first use is no reload but a
page of zeros (SGX's EAUG). Of the two cost modes ``crypto`` is this work alone, a lower bound of
what SGX costs but for the interpreter's bookkeeping, which is timed apart; ``sgx1`` spins until
each page that was swapped (evicted earlier and loaded again) has taken as long as published for
SGX1, all of that included.

Counts depend on the order of touches only: they are the same on every run. Times are not.

Not modelled:

- The rate of the memory encryption engine: present pages are as fast as ordinary memory.
- The TLB: flushes and shootdowns before an eviction, its misses after one. In ``sgx1`` the mean of
  them is in the published cost.
- Side channels: here as on SGX1 the order of page faults shows which layer runs; nothing is hidden.
- Pages of code, stack and heap, of the engine and of the interpreter, message buffers and the page
  tables (SECS, VA): they are never evicted; the stage's ledger holds what is counted of them.
- The kernel's watermarks: its background thread reclaims ahead of faults; here a fault waits.
- The order within a step: it touches what it is fed, its weights and its results one after another
  and each range as a whole, where a kernel mixes them and may lose pages that it still needs.
- Faults at the same time: threads that share a cache wait for each other's, and for pages that the
  others hold, where a kernel would take pages in use away.
- The plain bytes of an evicted page stay in this process's memory: nobody reads them before the
  page is loaded again (``wipe`` destroys them, to prove it), but they are no secret from its host.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.core.errors import InfeasibleError, RefusedError
from vaultline.core.paged import (
    PAGE_BYTES,
    SGX1_PAGE_S,
    PageRange,
    distinct_pages,
    page_count,
)
from vaultline.core.program import PageMode
from vaultline.enclave.ledger import Bytes, Ledger

#: The driver of Linux looks at so many pages at a time (``SGX_NR_TO_SCAN``).
SCAN_PAGES = 16
_TAG_BYTES = 16
_SEALED_BYTES = PAGE_BYTES + _TAG_BYTES
#: What stands in a page that is not present, if it is destroyed: floats that are no numbers.
_WIPED = 0xFF


class PageTamperedError(RefusedError):
    """A page that was evicted came back altered, or an older version of it did."""


class WorkingSetError(InfeasibleError):
    """More pages are needed at once than the page cache has."""


@dataclass(slots=True)
class PageCounts:
    """What a page cache has done so far; the same on every run.

    Attributes:
        fresh: first uses of a page: zeros, nothing decrypted.
        swapped: pages that had been evicted and were decrypted again.
        evictions: pages encrypted and written outside.
        scans: batches of up to 16 pages that reclaim looked at.
    """

    fresh: int = 0
    swapped: int = 0
    evictions: int = 0
    scans: int = 0

    @property
    def loads(self) -> int:
        """Pages that became present."""
        return self.fresh + self.swapped

    def since(self, before: PageCounts) -> PageCounts:
        """What was done after an earlier copy was made."""
        names = [field.name for field in fields(self)]
        return PageCounts(**{name: getattr(self, name) - getattr(before, name) for name in names})


@dataclass(slots=True)
class PageTimes:
    """Seconds in a page cache. ``bookkeeping_s`` is the interpreter's own, which hardware and a
    kernel would take little of: a benchmark of ``crypto`` may deduct it."""

    cipher_s: float = 0.0
    bookkeeping_s: float = 0.0
    spin_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A buffer of pages: ``data`` may be read and written only where its pages are present.

    Attributes:
        outside: the encrypted pages, each with its tag: memory that is not protected.
    """

    first_page: int
    data: Bytes
    outside: Bytes

    def pages(self, first_byte: int, last_byte: int) -> PageRange:
        """The cache's numbers of the pages that hold these bytes, the last one included."""
        if not 0 <= first_byte <= last_byte < len(self.data):
            raise IndexError(f"bytes {first_byte} to {last_byte} of {len(self.data)}")
        first = self.first_page + first_byte // PAGE_BYTES
        return first, self.first_page + last_byte // PAGE_BYTES + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """Ranges of pages in the order in which they are touched, and how many pages they are."""

    ranges: tuple[PageRange, ...]
    pages: int


class PageCache:
    """Protected memory of a number of pages, shared by all stages of a process.

    Attributes:
        counts, times: what it has done, and how long that took.
    """

    def __init__(
        self, capacity_pages: int, *, page_mode: PageMode = "crypto", wipe: bool = False
    ) -> None:
        """An empty cache.

        Args:
            wipe: destroy the plain bytes of pages that are not present, so that a stage that
                relies on one computes nonsense.
        """
        self.capacity_pages = capacity_pages
        self.counts, self.times = PageCounts(), PageTimes()
        self.page_mode, self._wipe = page_mode, wipe
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._version = 0
        self._free = capacity_pages
        self._queue: deque[int] = deque()
        # By page: its bytes inside and outside, and the nonce of its last eviction.
        self._plain: list[memoryview] = []
        self._sealed: list[memoryview] = []
        self._nonces: list[bytes] = []
        self._present, self._used = np.zeros(0, bool), np.zeros(0, bool)
        self._pins = np.zeros(0, np.int32)
        #: Pages of the working sets that are held now.
        self._held = 0
        self._changed = threading.Condition()

    def region(self, size_bytes: int) -> Region:
        """A buffer of zeros, none of it present yet, whose size is rounded up to whole pages."""
        pages = page_count(size_bytes)
        data = _memory(pages * PAGE_BYTES)
        outside = _memory(pages * _SEALED_BYTES)
        if self._wipe:
            data[:] = _WIPED
        with self._changed:
            first = len(self._plain)
            self._plain += _pieces(data, PAGE_BYTES)
            self._sealed += _pieces(outside, _SEALED_BYTES)
            self._nonces += [b""] * pages
            self._flags(pages)
        return Region(first_page=first, data=data, outside=outside)

    def forget(self, region: Region) -> None:
        """Give up a buffer whose pages nobody holds: what was present of it is free again."""
        first, end = region.first_page, region.first_page + len(region.data) // PAGE_BYTES
        with self._changed:
            self._free += int(self._present[first:end].sum())
            self._queue = deque(page for page in self._queue if not first <= page < end)
            self._present[first:end] = self._used[first:end] = False
            for page in range(first, end):
                self._plain[page] = self._sealed[page] = _GONE
                self._nonces[page] = b""
            self._changed.notify_all()

    def touch(self, region: Region, first_byte: int, last_byte: int) -> None:
        """Make the pages of these bytes present: until something else needs their place.

        Raises:
            WorkingSetError: they are more than the cache has.
            PageTamperedError: one of them does not verify.
        """
        with self.holding(working_set([region.pages(first_byte, last_byte)])):
            pass

    @contextmanager
    def holding(self, wanted: WorkingSet) -> Iterator[None]:
        """Pages that are present, and stay so while the block runs; waits for those that other
        threads hold.

        Raises:
            WorkingSetError: they are more than the cache has.
            PageTamperedError: one of them does not verify.
        """
        self.check_room(wanted.pages)
        with self._changed:
            self._changed.wait_for(lambda: self._held + wanted.pages <= self.capacity_pages)
            self._held += wanted.pages
            touched: list[PageRange] = []
            try:
                self._touch_all(wanted.ranges, touched)
            except BaseException:
                self._release(wanted.pages, touched)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._release(wanted.pages, touched)

    def check_room(self, pages: int) -> None:
        """Refuse a working set that can never be present.

        Raises:
            WorkingSetError: so many pages are more than the cache has.
        """
        if pages > self.capacity_pages:
            raise WorkingSetError(
                "a step of the paged stage needs more pages at once than the page cache has",
                got=f"{self.capacity_pages:,} pages of {PAGE_BYTES:,} bytes",
                expected=f"at least {pages:,}",
                remedy="give the device more memory, or plan for smaller steps (`step_bytes`)",
            )

    def _flags(self, more_pages: int) -> None:
        """Room for the flags of further pages, with quick views of single ones."""
        self._present, self._used, self._pins = (
            np.concatenate([flags, np.zeros(more_pages, flags.dtype)])
            for flags in (self._present, self._used, self._pins)
        )
        self._used_of, self._pins_of = self._used.data, self._pins.data

    def _touch_all(self, ranges: Sequence[PageRange], touched: list[PageRange]) -> None:
        started_s, cipher_s = time.perf_counter(), self.times.cipher_s
        swapped = self.counts.swapped
        for first, end in ranges:
            self._pins[first:end] += 1
            touched.append((first, end))
            missing = np.flatnonzero(~self._present[first:end])
            if len(missing):
                self._load((missing + first).tolist())
            self._used[first:end] = True
        now_s = time.perf_counter()
        self.times.bookkeeping_s += now_s - started_s - (self.times.cipher_s - cipher_s)
        if self.page_mode == "sgx1":
            self._spin(now_s, started_s + (self.counts.swapped - swapped) * SGX1_PAGE_S)

    def _spin(self, now_s: float, until_s: float) -> None:
        """Take the processor's time, as a fault does."""
        begun_s = now_s
        while now_s < until_s:
            now_s = time.perf_counter()
        self.times.spin_s += now_s - begun_s

    def _release(self, pages: int, touched: Sequence[PageRange]) -> None:
        for first, end in touched:
            self._pins[first:end] -= 1
        self._held -= pages
        self._changed.notify_all()

    def _load(self, missing: list[int]) -> None:
        """Bring pages in, as many at a time as there are free ones."""
        done = 0
        while done < len(missing):
            while not self._free:
                self._reclaim()
            batch = missing[done : done + self._free]
            self._decrypt([page for page in batch if self._nonces[page]])
            self._clear([page for page in batch if not self._nonces[page]])
            self._queue.extend(batch)
            self._present[batch] = True
            self._free -= len(batch)
            done += len(batch)

    def _clear(self, pages: list[int]) -> None:
        for page in pages:
            self._plain[page][:] = _ZEROS
        self.counts.fresh += len(pages)

    def _decrypt(self, pages: list[int]) -> None:
        jobs = [(self._nonces[page], self._sealed[page], self._plain[page]) for page in pages]
        cipher, before_s = self._cipher, time.perf_counter()
        try:
            for nonce, sealed, plain in jobs:
                cipher.decrypt_into(nonce, sealed, None, plain)
        except InvalidTag:
            raise PageTamperedError(
                "an evicted page was altered outside of the protected memory, or is out of date",
                got="a page that does not verify",
                expected="the page as it was evicted last",
                remedy="start the stage again; distrust the machine's memory if it happens again",
            ) from None
        self.times.cipher_s += time.perf_counter() - before_s
        self.counts.swapped += len(pages)

    def _reclaim(self) -> None:
        """Look at the first pages of the queue: evict those that nobody has used since."""
        queue, used, pins = self._queue, self._used_of, self._pins_of
        victims = []
        for _ in range(min(SCAN_PAGES, len(queue))):
            page = queue.popleft()
            if pins[page]:
                queue.append(page)
            elif used[page]:
                used[page] = False
                queue.append(page)
            else:
                victims.append(page)
        self.counts.scans += 1
        if victims:
            self._evict(victims)

    def _evict(self, pages: list[int]) -> None:
        jobs = []
        for page in pages:
            self._version += 1
            self._nonces[page] = nonce = self._version.to_bytes(12, "big")
            jobs.append((nonce, self._plain[page], self._sealed[page]))
        cipher, before_s = self._cipher, time.perf_counter()
        for nonce, plain, sealed in jobs:
            cipher.encrypt_into(nonce, plain, None, sealed)
        self.times.cipher_s += time.perf_counter() - before_s
        if self._wipe:
            for page in pages:
                self._plain[page][:] = bytes([_WIPED]) * PAGE_BYTES
        self._present[pages] = False
        self._free += len(pages)
        self.counts.evictions += len(pages)


_ZEROS = bytes(PAGE_BYTES)
_GONE = memoryview(b"")


def working_set(ranges: Sequence[PageRange]) -> WorkingSet:
    """Ranges of pages that are needed at the same time."""
    return WorkingSet(ranges=tuple(ranges), pages=distinct_pages(ranges))


def open_cache(
    ledger: Ledger, left_bytes: int, page_mode: PageMode = "crypto", *, wipe: bool = False
) -> PageCache:
    """A cache of all memory that the ledger has free but for so many bytes. The ledger holds it as
    idle: a step that runs is lent what its tensors take of it.

    Raises:
        WorkingSetError: there is no page left.
    """
    free_bytes = ledger.free_bytes - left_bytes
    if free_bytes < PAGE_BYTES:
        raise WorkingSetError(
            "no protected memory left for the page cache",
            got=f"{max(free_bytes, 0):,} bytes",
            expected=f"at least a page of {PAGE_BYTES:,} bytes",
            remedy="give the device more memory in the cluster file and plan again",
        )
    ledger.reserve("idle", free_bytes, "the page cache")
    return PageCache(free_bytes // PAGE_BYTES, page_mode=page_mode, wipe=wipe)


def _memory(size_bytes: int) -> Bytes:
    return np.frombuffer(mmap.mmap(-1, max(size_bytes, 1)), np.uint8)[:size_bytes]


def _pieces(data: Bytes, size_bytes: int) -> list[memoryview]:
    view = data.data
    return [view[start : start + size_bytes] for start in range(0, len(view), size_bytes)]
