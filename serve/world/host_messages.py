"""What rManagers of host memory say, as messages on the wire, and back."""

from distkv_jax.cache.messages import Entry, FromHost, Heartbeat, Loan, NotSaved, Saved
from serve.proto.distkv.internal.v1 import world_pb2 as pb


def to_wire(message: FromHost) -> pb.FromHost:
    """Write a message."""
    match message:
        case Heartbeat():
            return pb.FromHost(
                heartbeat=pb.Heartbeat(
                    instance=message.instance,
                    number=message.number,
                    is_full=message.is_full,
                    num_free=message.num_free,
                    num_held=message.num_held,
                    num_lendable=message.num_lendable,
                    loans=[
                        pb.Loan(debtor=one.debtor, num_blocks=one.num_blocks)
                        for one in message.loans
                    ],
                    entries=[
                        pb.Entry(
                            request_id=one.request_id, home=one.home, num_blocks=one.num_blocks
                        )
                        for one in message.entries
                    ],
                    num_reserved=message.num_reserved,
                    batch=message.batch,
                )
            )
        case Saved(instance=instance, save_id=save_id):
            return pb.FromHost(saved=pb.Saved(instance=instance, save_id=save_id))
        case NotSaved(instance=instance, save_id=save_id, num_free=num_free):
            return pb.FromHost(
                not_saved=pb.NotSaved(instance=instance, save_id=save_id, num_free=num_free)
            )


def from_wire(message: pb.FromHost) -> FromHost | None:
    """Read a message; None for one of a kind that is not known."""
    match message.WhichOneof("message"):
        case "heartbeat":
            beat = message.heartbeat
            return Heartbeat(
                instance=beat.instance,
                number=beat.number,
                is_full=beat.is_full,
                num_free=beat.num_free,
                num_held=beat.num_held,
                num_lendable=beat.num_lendable,
                loans=tuple(
                    Loan(debtor=one.debtor, num_blocks=one.num_blocks) for one in beat.loans
                ),
                entries=tuple(
                    Entry(request_id=one.request_id, home=one.home, num_blocks=one.num_blocks)
                    for one in beat.entries
                ),
                num_reserved=beat.num_reserved,
                batch=beat.batch,
            )
        case "saved":
            one = message.saved
            return Saved(instance=one.instance, save_id=one.save_id)
        case "not_saved":
            one = message.not_saved
            return NotSaved(instance=one.instance, save_id=one.save_id, num_free=one.num_free)
    return None
