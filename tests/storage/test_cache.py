"""The byte-bounded cache."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from backbone.storage.cache import MemoryCache
from tests.storage.helpers import in_child, needs_fork


@given(st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 5), st.integers(1, 40)), max_size=40))
def test_memory_cache_agrees_with_a_list_model(steps: list[tuple[str, int, int]]) -> None:
    """The bytes held never pass the limit, and what goes first was used least recently."""
    cache: MemoryCache[int] = MemoryCache(100)
    model: list[tuple[int, int]] = []  # (key, weight), least recently used first
    for what, key, weight in steps:
        held = dict(model)
        if what == "g":
            assert cache.get(key) == held.get(key)
            if key in held:
                model = [item for item in model if item[0] != key] + [(key, held[key])]
        else:
            cache.put(key, weight, weight)
            model = [item for item in model if item[0] != key] + [(key, weight)]
            while sum(w for _, w in model) > 100:
                model.pop(0)
        stats = cache.stats()
        assert (stats.bytes, stats.entries) == (sum(w for _, w in model), len(model))


def test_memory_cache_larger_value_than_the_limit_is_not_kept() -> None:
    """A value that could never fit drives nothing else out."""
    cache: MemoryCache[str] = MemoryCache(10)
    cache.put("a", "x", 4)
    cache.put("b", "y", 11)
    assert (cache.get("a"), cache.get("b")) == ("x", None)
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    assert "MiB" in repr(cache)


def test_memory_cache_used_by_many_threads_keeps_its_count() -> None:
    """Bytes and entries agree after threads have fought over the same keys."""
    cache: MemoryCache[int] = MemoryCache(500)

    def work(seed: int) -> None:
        for i in range(2000):
            cache.put((seed * i) % 37, i, i % 29 + 1)
            cache.get((seed + i) % 37)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = cache.stats()
    assert 0 < before.bytes <= 500
    cache.put("all", 0, 500)
    assert (cache.stats().bytes, cache.stats().entries) == (500, 1)


@needs_fork
def test_memory_cache_in_a_forked_child_is_empty_and_usable() -> None:
    """A lock held at the fork does not stay locked in the child."""
    cache: MemoryCache[int] = MemoryCache(500)
    cache.put("a", 1, 1)
    cache._lock.acquire()
    try:
        assert in_child(lambda: cache.put("b", 2, 1) or (cache.get("a"), cache.get("b")) == (None, 2))
    finally:
        cache._lock.release()
