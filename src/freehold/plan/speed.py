"""The speed no engine can pass: every token reads every active weight once."""

from __future__ import annotations

from freehold.facts import Card
from freehold.plan.params import Counts
from freehold.plan.weights import Scheme


def active_bytes(counts: Counts, scheme: Scheme) -> float:
    """Bytes of weights that one token reads: without the embedding's other rows and the experts not chosen."""
    attention = sum(part.matrices for part in counts.attention) * scheme.attention
    dense = (counts.dense.matrices + counts.shared.matrices) * scheme.dense
    experts = (counts.experts.matrices - counts.idle) * scheme.experts
    head = counts.head * scheme.head or counts.embedding * scheme.head
    return attention + dense + experts + head


def decode_ceiling(bytes_a_token: float, card: Card, cards: int = 1) -> float | None:
    """Tokens a second of one request at most, without speculation; None where the card's bandwidth is unknown.

    Memory bandwidth of all cards together over the bytes that a token reads. What is really reached is less.
    """
    return card.bandwidth_gb_s * 1e9 * cards / bytes_a_token if card.bandwidth_gb_s else None
