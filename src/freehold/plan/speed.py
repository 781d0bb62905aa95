"""The speed no engine can pass: every token reads every active weight once."""

from __future__ import annotations

from freehold.facts import Card, Model
from freehold.plan.params import Counts
from freehold.plan.weights import SCHEMES, Scheme, attention_rates

CPU_BANDWIDTH_GB_S = 40.0  # assumed of a machine that nobody measured: two channels of DDR4 or DDR5, in part


def active_bytes(model: Model, counts: Counts, scheme: Scheme, ep: int = 1) -> float:
    """Bytes of weights read for one token, one after the other."""
    return sum(active_parts(model, counts, scheme, ep))


def active_parts(model: Model, counts: Counts, scheme: Scheme, ep: int = 1) -> tuple[float, float, float, float]:
    """Bytes read of attention, dense and shared layers, experts and head: without idle experts and other rows.

    Over `ep` ranks with requests of their own a token's experts are read at once, at best each on another rank.
    """
    rates = attention_rates(model, scheme)
    attention = sum(part.matrices * rate for part, rate in zip(counts.attention, rates, strict=True))
    dense = (counts.dense.matrices + counts.shared.matrices) * scheme.dense
    at_once = min(ep, model.moe.experts_per_token) if model.moe else 1
    experts = (counts.experts.matrices - counts.idle) * scheme.experts / at_once
    return attention, dense, experts, (counts.head or counts.embedding) * scheme.head


def decode_ceiling(bytes_a_token: float, card: Card, tp: int = 1) -> float | None:
    """Tokens a second of one request at most, without speculation; None where the card's bandwidth is unknown.

    Memory bandwidth over the bytes that a token reads. What is really reached is less. Only the `tp` cards that share
    a layer read at the same time: the stages of a pipeline follow one another.
    """
    return card.bandwidth_gb_s * 1e9 * tp / bytes_a_token if card.bandwidth_gb_s else None


def token_bytes(model: Model, counts: Counts, scheme: str) -> float:
    """Bytes that llama.cpp reads for a token: of files as they are, the share that is active."""
    if model.file_bytes:
        return model.file_bytes * (model.parameters.active or 1) / (model.parameters.total or 1)
    return active_bytes(model, counts, SCHEMES[scheme])


def mixed_ceiling(
    bytes_a_token: float, on_cards: float, card: Card | None, ram_gb_s: float | None = None
) -> float | None:
    """Tokens a second at most, where a share of the layers is read from the cards, one after the other, and the rest
    from memory, at `ram_gb_s` where somebody measured it; None where the card's bandwidth is unknown.
    """
    seconds = bytes_a_token * (1 - on_cards) / ((ram_gb_s or CPU_BANDWIDTH_GB_S) * 1e9)
    if on_cards:
        if card is None or not card.bandwidth_gb_s:
            return None
        seconds += bytes_a_token * on_cards / (card.bandwidth_gb_s * 1e9)
    return 1 / seconds
