"""Which of this machine's cards are whose."""

from __future__ import annotations

from collections.abc import Sequence

from freehold.errors import DoesNotFit
from freehold.types import Gpu


class Cards:
    """One owner: the event loop. Each card is one replica's, from before its start to its end."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}  # node: replica

    def take(self, replica: str, count: int, gpus: Sequence[Gpu]) -> list[Gpu]:
        """As many as are asked for, alike, the emptiest first. Raises DoesNotFit when so many are not to be had."""
        self.give(replica)
        free = sorted((gpu for gpu in gpus if gpu.node not in self._of), key=lambda gpu: -gpu.free_bytes)
        kinds = [[gpu for gpu in free if gpu.name == name] for name in dict.fromkeys(gpu.name for gpu in free)]
        alike = next((kind for kind in kinds if len(kind) >= count), max(kinds, key=len, default=[]))[:count]
        if len(alike) < count:
            there_are = f"{len(gpus)} in this machine, {len(gpus) - len(free)} of them with other replicas"
            raise DoesNotFit(
                f"`{replica}` needs {count} cards of one kind, and {len(alike)} are free ({there_are})",
                hint="freehold ps shows who has them; freehold stop NAME frees them",
            )
        self._of |= {gpu.node: replica for gpu in alike}
        return alike

    def give(self, replica: str) -> None:
        """Those it had are free again."""
        self._of = {node: who for node, who in self._of.items() if who != replica}
