"""Values by key, those used lately."""

from __future__ import annotations


class Kept:
    """At least the last `most` values used, `most_bytes` of them where that is fewer, and at most twice as many. Keys are
    content, so whatever is let go of is made again the same. No lock: threads that race make a value twice, or again."""

    def __init__(self, most: int, most_bytes: int = 1 << 62) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._new: dict = {}
        self._old: dict = {}
        self._bytes = 0

    def get(self, key):
        """The value, None when there is none."""
        found = self._new.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found, getattr(found, "nbytes", 0))
        return found

    def put(self, key, value, nbytes: int = 0) -> None:
        if len(self._new) >= self._most or self._bytes + nbytes > self._most_bytes:
            self._old, self._new, self._bytes = self._new, {}, 0
        self._new[key] = value
        self._bytes += nbytes
