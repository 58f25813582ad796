"""A view as the page reads it: compact JSON."""

import json
from typing import Any

from serve.live.recent import Latency
from serve.live.snapshot import Instance, Point, RequestRow
from serve.live.watch import View


def json_of(view: View) -> str:
    """Write a view in one line."""
    snapshot = view.snapshot
    return json.dumps(
        {
            "time": snapshot.time,
            "model": snapshot.model,
            "block_size": snapshot.block_size,
            "is_draining": snapshot.is_draining,
            "instances": [plain_instance(one) for one in snapshot.instances],
            "debts": [debt._asdict() for debt in snapshot.debts],
            "num_debts": snapshot.num_debts,
            "requests": [plain_request(row) for row in snapshot.requests],
            "num_hidden": snapshot.num_hidden,
            "now": plain_point(snapshot.now),
            "totals": snapshot.totals._asdict(),
            "history": [plain_point(point) for point in view.history],
        },
        separators=(",", ":"),
    )


def plain_instance(instance: Instance) -> dict[str, Any]:
    """Turn an instance into what JSON has."""
    return {**instance.usage._asdict(), "other": instance.num_other}


def plain_request(row: RequestRow) -> dict[str, Any]:
    """Turn a request into what JSON has; its blocks are pairs of instance and count."""
    plain = {**row._asdict(), "activity": row.activity.value, "age_s": round(row.age_s, 2)}
    return {**plain, "blocks": sorted(row.blocks.items())}


def plain_point(point: Point) -> dict[str, Any]:
    """Turn a point into what JSON has."""
    plain = point._asdict()
    latencies = {name: plain_latency(plain[name]) for name in ("first_token", "gap")}
    return {**plain, **latencies}


def plain_latency(latency: Latency | None) -> dict[str, float] | None:
    """Turn percentiles into what JSON has."""
    return None if latency is None else latency._asdict()
