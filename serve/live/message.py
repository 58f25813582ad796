"""A view as gRPC tells it."""

from serve.live.recent import Latency
from serve.live.snapshot import Activity, Point, RequestRow
from serve.live.watch import View
from serve.proto.distkv.v1 import control_pb2 as pb

ACTIVITIES = {
    Activity.WAITING: pb.ACTIVITY_WAITING,
    Activity.RUNNING: pb.ACTIVITY_RUNNING,
}


def message_of(view: View) -> pb.Snapshot:
    """Write a view."""
    snapshot = view.snapshot
    message = pb.Snapshot(
        time=snapshot.time,
        model=snapshot.model,
        block_size=snapshot.block_size,
        is_draining=snapshot.is_draining,
        num_debts=snapshot.num_debts,
        requests=[message_of_row(row) for row in snapshot.requests],
        num_hidden=snapshot.num_hidden,
        now=message_of_point(snapshot.now),
        totals=pb.Totals(**snapshot.totals._asdict()),
        history=[message_of_point(point) for point in view.history],
    )
    for index, instance in enumerate(snapshot.instances):
        message.instances.add(instance=index, **instance.usage._asdict())
    for debt in snapshot.debts:
        lent = message.instances[debt.creditor].debts
        lent.add(debtor=debt.debtor, num_blocks=debt.num_blocks)
    return message


def message_of_row(row: RequestRow) -> pb.WatchedRequest:
    """Write a request."""
    return pb.WatchedRequest(
        number=row.number,
        request_id=row.request_id,
        caller=row.caller,
        activity=ACTIVITIES[row.activity],
        home=row.home,
        num_prompt_tokens=row.num_prompt_tokens,
        num_tokens=row.num_tokens,
        age_s=row.age_s,
        blocks=row.blocks,
    )


def message_of_point(point: Point) -> pb.Point:
    """Write a point of the curves."""
    return pb.Point(
        time=point.time,
        prompt_tokens_per_s=point.prompt_tokens_per_s,
        generated_tokens_per_s=point.generated_tokens_per_s,
        num_running=point.num_running,
        num_waiting=point.num_waiting,
        used=point.used,
        first_token=message_of_latency(point.first_token),
        gap=message_of_latency(point.gap),
    )


def message_of_latency(latency: Latency | None) -> pb.Latency | None:
    """Write percentiles."""
    return None if latency is None else pb.Latency(**latency._asdict())
