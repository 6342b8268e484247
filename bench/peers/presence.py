"""The peers that are installed here. The rows of other peers are left out, which is reported once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol, TypeVar

from bench.measuring import leave_out

__all__ = ["present"]


class _Peer(Protocol):
    name: str
    needs: str | None  # the module without which it cannot be made; None for the standard library


PeerT = TypeVar("PeerT", bound=type[_Peer])


def present(peers: Sequence[PeerT]) -> list[PeerT]:
    """Return those of `peers` that are installed here."""
    found = []
    for peer in peers:
        if peer.needs is None or _is_there(peer.needs):
            found.append(peer)
        else:
            leave_out(f"The peer {peer.name!r} is not installed here and is left out (pip install 'stube[bench]').")
    return found


@cache
def _is_there(module: str) -> bool:
    return find_spec(module) is not None
