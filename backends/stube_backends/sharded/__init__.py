"""For throughput: conversations are hashed over shards, each with its own lock, timer wheel and delivery thread.

A conversation lives in one shard, so its order, its cancelling and its cost are those of `memory`. A handler that
blocks holds up the conversations of its own shard only: with eight shards, eight handlers can wait at a time. Under a
global interpreter lock that is what more shards are good for; without one they also compute side by side.

What goes beyond one conversation costs a step per shard: `publish` one for each shard that holds the topic, the
whole-registry operations one for each shard. Subscribers in different shards hear different publishers' messages in
orders that may differ, and a snapshot shows each shard at an instant of its own: `common_topic_order` and
`one_instant_snapshot` are not promised.

Callers' threads run the operations; the threads `stube-sharded-0`, `-1`, ... run dispatch and `on_error`, several at a
time. Each starts with the first timer or publication of its shard, and ends with `close()`, with the registry's
collection, or with the program.

**Locks.** An operation of one conversation takes its shard's lock. One that must be atomic across shards (a publication
to several, `reset_state`, `close`, `install_dispatch`, giving a shard more room) takes several, always in index order
and while it holds none (`run_all_locked`). A re-entrant call waits for no lock (`ShardGroup`). The shards are a fixed
tuple; no lock is ever replaced or deleted, except by a fork.
"""

from stube_backends.sharded._registry import ShardedRegistry

__all__ = ["ShardedRegistry"]
