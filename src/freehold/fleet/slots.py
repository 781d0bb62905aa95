"""How many requests one replica answers at once, and whose prompts it still has in its cache."""

from __future__ import annotations


class Slots:
    """One owner: the event loop. `count`: None where nobody said how many it takes; then all are let in."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.held = 0  # requests
        self._taken = 0  # slots; a request with several choices takes several
        self.renew()

    def renew(self) -> None:
        """A fresh process: nothing in its cache, and it is not given everything at once."""
        count = self.count or 0
        self._free = list(range(count))  # the one that was used longest ago first
        self._groups: list[str | None] = [None] * count
        self._taken = 0
        self.narrow()

    def narrow(self) -> None:
        """It may be fresh: its width grows again."""
        self._width = max(1, (self.count or 0) // 4)

    def widen(self) -> bool:
        """It has begun an answer: it bears another request beside that. False: it bears all it has slots for."""
        if not self.count or self._width >= self.count:
            return False
        self._width += 1
        return True

    def fits(self, choices: int) -> bool:
        return self.count is None or not self._taken or self._taken + min(choices, self.count) <= self._width

    def take(self, group: str, choices: int) -> tuple[int | None, bool]:
        """The slot, and whether its last prompt was of the same group; None where the engine is to choose.

        Whose prompt it then has is not known before the engine answers: see `answered`.
        """
        self.held += 1
        if self.count is None:
            return None, False
        self._taken += min(choices, self.count)
        if choices > 1 or not self._free:
            self._groups = [None] * self.count  # nobody knows which ones it will use
            return None, False
        slot = next((slot for slot in reversed(self._free) if self._groups[slot] == group), self._free[0])
        same = self._groups[slot] == group
        self._free.remove(slot)
        self._groups[slot] = None
        return slot, same

    def answered(self, slot: int | None, group: str) -> None:
        """The engine has read the prompt: what the slot has now is this group's."""
        if slot is not None:
            self._groups[slot] = group

    def give(self, slot: int | None, choices: int) -> None:
        self.held -= 1
        if self.count is not None:
            self._taken -= min(choices, self.count)
            if slot is not None:
                self._free.append(slot)
