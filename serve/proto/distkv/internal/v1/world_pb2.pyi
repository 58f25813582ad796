from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_LOADING: _ClassVar[Stage]
    STAGE_COMPILING: _ClassVar[Stage]
    STAGE_READY: _ClassVar[Stage]
STAGE_UNSPECIFIED: Stage
STAGE_LOADING: Stage
STAGE_COMPILING: Stage
STAGE_READY: Stage

class JoinRequest(_message.Message):
    __slots__ = ("rank", "num_hosts", "fingerprint", "pid", "addresses")
    class FingerprintEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_HOSTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    num_hosts: int
    fingerprint: _containers.ScalarMap[str, str]
    pid: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rank: _Optional[int] = ..., num_hosts: _Optional[int] = ..., fingerprint: _Optional[_Mapping[str, str]] = ..., pid: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("epoch", "jax_coordinator", "heartbeat_timeout_s", "num_processes", "process_id", "member")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    JAX_COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    jax_coordinator: str
    heartbeat_timeout_s: float
    num_processes: int
    process_id: int
    member: int
    def __init__(self, epoch: _Optional[int] = ..., jax_coordinator: _Optional[str] = ..., heartbeat_timeout_s: _Optional[float] = ..., num_processes: _Optional[int] = ..., process_id: _Optional[int] = ..., member: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("epoch", "rank", "stage", "received", "dispatched", "read", "digests", "failure", "from_host", "member")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    DISPATCHED_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    FROM_HOST_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    rank: int
    stage: Stage
    received: int
    dispatched: int
    read: int
    digests: _containers.RepeatedCompositeFieldContainer[Digest]
    failure: Failure
    from_host: _containers.RepeatedCompositeFieldContainer[FromHost]
    member: int
    def __init__(self, epoch: _Optional[int] = ..., rank: _Optional[int] = ..., stage: _Optional[_Union[Stage, str]] = ..., received: _Optional[int] = ..., dispatched: _Optional[int] = ..., read: _Optional[int] = ..., digests: _Optional[_Iterable[_Union[Digest, _Mapping]]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., from_host: _Optional[_Iterable[_Union[FromHost, _Mapping]]] = ..., member: _Optional[int] = ...) -> None: ...

class FromHost(_message.Message):
    __slots__ = ("heartbeat", "saved", "not_saved")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    NOT_SAVED_FIELD_NUMBER: _ClassVar[int]
    heartbeat: Heartbeat
    saved: Saved
    not_saved: NotSaved
    def __init__(self, heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., saved: _Optional[_Union[Saved, _Mapping]] = ..., not_saved: _Optional[_Union[NotSaved, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("instance", "number", "is_full", "num_free", "num_held", "num_lendable", "loans", "entries", "num_reserved", "batch")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    IS_FULL_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_FIELD_NUMBER: _ClassVar[int]
    NUM_LENDABLE_FIELD_NUMBER: _ClassVar[int]
    LOANS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NUM_RESERVED_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    instance: int
    number: int
    is_full: bool
    num_free: int
    num_held: int
    num_lendable: int
    loans: _containers.RepeatedCompositeFieldContainer[Loan]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    num_reserved: int
    batch: int
    def __init__(self, instance: _Optional[int] = ..., number: _Optional[int] = ..., is_full: _Optional[bool] = ..., num_free: _Optional[int] = ..., num_held: _Optional[int] = ..., num_lendable: _Optional[int] = ..., loans: _Optional[_Iterable[_Union[Loan, _Mapping]]] = ..., entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., num_reserved: _Optional[int] = ..., batch: _Optional[int] = ...) -> None: ...

class Loan(_message.Message):
    __slots__ = ("debtor", "num_blocks")
    DEBTOR_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    debtor: int
    num_blocks: int
    def __init__(self, debtor: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("request_id", "home", "num_blocks")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    home: int
    num_blocks: int
    def __init__(self, request_id: _Optional[str] = ..., home: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class Saved(_message.Message):
    __slots__ = ("instance", "save_id")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SAVE_ID_FIELD_NUMBER: _ClassVar[int]
    instance: int
    save_id: int
    def __init__(self, instance: _Optional[int] = ..., save_id: _Optional[int] = ...) -> None: ...

class NotSaved(_message.Message):
    __slots__ = ("instance", "save_id", "num_free")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SAVE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_FIELD_NUMBER: _ClassVar[int]
    instance: int
    save_id: int
    num_free: int
    def __init__(self, instance: _Optional[int] = ..., save_id: _Optional[int] = ..., num_free: _Optional[int] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("number", "digest", "queued_us", "ran_us")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUEUED_US_FIELD_NUMBER: _ClassVar[int]
    RAN_US_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: bytes
    queued_us: int
    ran_us: int
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[bytes] = ..., queued_us: _Optional[int] = ..., ran_us: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("number", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    error: str
    def __init__(self, number: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("begin", "step", "move", "fill_slot", "reset", "beat", "stop", "reform", "save", "fetch", "forget")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    FILL_SLOT_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    REFORM_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    begin: Begin
    step: Step
    move: Move
    fill_slot: FillSlot
    reset: Reset
    beat: Beat
    stop: Stop
    reform: Reform
    save: Save
    fetch: Fetch
    forget: Forget
    def __init__(self, begin: _Optional[_Union[Begin, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., fill_slot: _Optional[_Union[FillSlot, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., reform: _Optional[_Union[Reform, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("num_blocks", "implementation")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    implementation: str
    def __init__(self, num_blocks: _Optional[int] = ..., implementation: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("number", "decode_rows", "prefill_tiles", "spanning", "tile", "entries", "instances", "plan")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TILES_FIELD_NUMBER: _ClassVar[int]
    SPANNING_FIELD_NUMBER: _ClassVar[int]
    TILE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    number: int
    decode_rows: int
    prefill_tiles: int
    spanning: bool
    tile: int
    entries: int
    instances: int
    plan: Changes
    def __init__(self, number: _Optional[int] = ..., decode_rows: _Optional[int] = ..., prefill_tiles: _Optional[int] = ..., spanning: _Optional[bool] = ..., tile: _Optional[int] = ..., entries: _Optional[int] = ..., instances: _Optional[int] = ..., plan: _Optional[_Union[Changes, _Mapping]] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("number", "instances", "lanes", "rounds")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    number: int
    instances: int
    lanes: int
    rounds: bytes
    def __init__(self, number: _Optional[int] = ..., instances: _Optional[int] = ..., lanes: _Optional[int] = ..., rounds: _Optional[bytes] = ...) -> None: ...

class FillSlot(_message.Message):
    __slots__ = ("number", "slot", "row")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    number: int
    slot: int
    row: _containers.RepeatedCompositeFieldContainer[Changes]
    def __init__(self, number: _Optional[int] = ..., slot: _Optional[int] = ..., row: _Optional[_Iterable[_Union[Changes, _Mapping]]] = ...) -> None: ...

class Save(_message.Message):
    __slots__ = ("number", "save_id", "request_id", "home", "blocks")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SAVE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    number: int
    save_id: int
    request_id: str
    home: int
    blocks: _containers.RepeatedCompositeFieldContainer[Blocks]
    def __init__(self, number: _Optional[int] = ..., save_id: _Optional[int] = ..., request_id: _Optional[str] = ..., home: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[Blocks, _Mapping]]] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("number", "save_id", "blocks")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SAVE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    number: int
    save_id: int
    blocks: _containers.RepeatedCompositeFieldContainer[Blocks]
    def __init__(self, number: _Optional[int] = ..., save_id: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[Blocks, _Mapping]]] = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ("number", "save_id")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SAVE_ID_FIELD_NUMBER: _ClassVar[int]
    number: int
    save_id: int
    def __init__(self, number: _Optional[int] = ..., save_id: _Optional[int] = ...) -> None: ...

class Blocks(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[_Iterable[int]] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Stop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reform(_message.Message):
    __slots__ = ("lost",)
    LOST_FIELD_NUMBER: _ClassVar[int]
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lost: _Optional[_Iterable[str]] = ...) -> None: ...

class Changes(_message.Message):
    __slots__ = ("runs", "words")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    runs: bytes
    words: bytes
    def __init__(self, runs: _Optional[bytes] = ..., words: _Optional[bytes] = ...) -> None: ...
