"""A look at a Ray cluster from its own process, so that a refused one leaves no trace in the driver, and prints nothing.

    python -P look.py HOST:PORT -> {"nodes": [ids], "here": [ids]} or {"fault": …, "refused": true}

It runs as a file and imports nothing of ours, because `search` sets its own token. The environment decides how it asks.
"""

from __future__ import annotations

import json
import sys


def look(address: str) -> dict[str, object]:
    """Ask the cluster for its nodes, and this machine which of them it is."""
    from ray._private.services import find_node_ids
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=20)
    except AuthenticationError as error:
        return {"fault": str(error), "refused": True}
    except Exception as error:  # noqa: BLE001  Ray raises several; all of them mean that there is no cluster
        return {"fault": (str(error).splitlines() or [type(error).__name__])[0], "refused": False}
    ids = [node_id.hex() for node_id in nodes]
    return {"nodes": ids, "here": sorted(set(ids) & set(find_node_ids()))}  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])))
