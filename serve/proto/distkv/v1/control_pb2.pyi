from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Activity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVITY_UNSPECIFIED: _ClassVar[Activity]
    ACTIVITY_WAITING: _ClassVar[Activity]
    ACTIVITY_RUNNING: _ClassVar[Activity]
ACTIVITY_UNSPECIFIED: Activity
ACTIVITY_WAITING: Activity
ACTIVITY_RUNNING: Activity

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("num_requests", "num_running", "num_waiting", "num_waiting_tokens", "num_blocks", "num_free_blocks", "is_draining", "prompt_tokens", "generated_tokens", "num_steps", "num_spanning_steps", "num_preemptions", "num_failed_steps", "num_fetched_tokens")
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_SPANNING_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_FETCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_requests: int
    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_blocks: int
    num_free_blocks: int
    is_draining: bool
    prompt_tokens: int
    generated_tokens: int
    num_steps: int
    num_spanning_steps: int
    num_preemptions: int
    num_failed_steps: int
    num_fetched_tokens: int
    def __init__(self, num_requests: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_waiting_tokens: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., is_draining: _Optional[bool] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_spanning_steps: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_failed_steps: _Optional[int] = ..., num_fetched_tokens: _Optional[int] = ...) -> None: ...

class GetPoolRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPoolResponse(_message.Message):
    __slots__ = ("block_size", "instances", "requests", "hosts")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    instances: _containers.RepeatedCompositeFieldContainer[InstanceBlocks]
    requests: _containers.RepeatedCompositeFieldContainer[RequestBlocks]
    hosts: _containers.RepeatedCompositeFieldContainer[HostBlocks]
    def __init__(self, block_size: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[InstanceBlocks, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[RequestBlocks, _Mapping]]] = ..., hosts: _Optional[_Iterable[_Union[HostBlocks, _Mapping]]] = ...) -> None: ...

class HostBlocks(_message.Message):
    __slots__ = ("instance", "total", "free", "held")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    instance: int
    total: int
    free: int
    held: int
    def __init__(self, instance: _Optional[int] = ..., total: _Optional[int] = ..., free: _Optional[int] = ..., held: _Optional[int] = ...) -> None: ...

class InstanceBlocks(_message.Message):
    __slots__ = ("instance", "total", "free", "held", "lent", "borrowed", "reserved", "debts")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LENT_FIELD_NUMBER: _ClassVar[int]
    BORROWED_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    DEBTS_FIELD_NUMBER: _ClassVar[int]
    instance: int
    total: int
    free: int
    held: int
    lent: int
    borrowed: int
    reserved: int
    debts: _containers.RepeatedCompositeFieldContainer[Debt]
    def __init__(self, instance: _Optional[int] = ..., total: _Optional[int] = ..., free: _Optional[int] = ..., held: _Optional[int] = ..., lent: _Optional[int] = ..., borrowed: _Optional[int] = ..., reserved: _Optional[int] = ..., debts: _Optional[_Iterable[_Union[Debt, _Mapping]]] = ...) -> None: ...

class Debt(_message.Message):
    __slots__ = ("debtor", "num_blocks")
    DEBTOR_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    debtor: int
    num_blocks: int
    def __init__(self, debtor: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class RequestBlocks(_message.Message):
    __slots__ = ("request_id", "blocks")
    class BlocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    blocks: _containers.ScalarMap[int, int]
    def __init__(self, request_id: _Optional[str] = ..., blocks: _Optional[_Mapping[int, int]] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("duration_s",)
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    duration_s: float
    def __init__(self, duration_s: _Optional[float] = ...) -> None: ...

class ProfileResponse(_message.Message):
    __slots__ = ("folder",)
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    folder: str
    def __init__(self, folder: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace_s",)
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    grace_s: float
    def __init__(self, grace_s: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("num_requests",)
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    num_requests: int
    def __init__(self, num_requests: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("time", "model", "block_size", "is_draining", "instances", "requests", "num_hidden", "now", "totals", "history", "num_debts")
    TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_HIDDEN_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NUM_DEBTS_FIELD_NUMBER: _ClassVar[int]
    time: float
    model: str
    block_size: int
    is_draining: bool
    instances: _containers.RepeatedCompositeFieldContainer[InstanceBlocks]
    requests: _containers.RepeatedCompositeFieldContainer[WatchedRequest]
    num_hidden: int
    now: Point
    totals: Totals
    history: _containers.RepeatedCompositeFieldContainer[Point]
    num_debts: int
    def __init__(self, time: _Optional[float] = ..., model: _Optional[str] = ..., block_size: _Optional[int] = ..., is_draining: _Optional[bool] = ..., instances: _Optional[_Iterable[_Union[InstanceBlocks, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[WatchedRequest, _Mapping]]] = ..., num_hidden: _Optional[int] = ..., now: _Optional[_Union[Point, _Mapping]] = ..., totals: _Optional[_Union[Totals, _Mapping]] = ..., history: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., num_debts: _Optional[int] = ...) -> None: ...

class WatchedRequest(_message.Message):
    __slots__ = ("number", "request_id", "caller", "activity", "home", "num_prompt_tokens", "num_tokens", "age_s", "blocks")
    class BlocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    number: int
    request_id: str
    caller: str
    activity: Activity
    home: int
    num_prompt_tokens: int
    num_tokens: int
    age_s: float
    blocks: _containers.ScalarMap[int, int]
    def __init__(self, number: _Optional[int] = ..., request_id: _Optional[str] = ..., caller: _Optional[str] = ..., activity: _Optional[_Union[Activity, str]] = ..., home: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_tokens: _Optional[int] = ..., age_s: _Optional[float] = ..., blocks: _Optional[_Mapping[int, int]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("time", "prompt_tokens_per_s", "generated_tokens_per_s", "num_running", "num_waiting", "used", "first_token", "gap")
    TIME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    time: float
    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    num_running: int
    num_waiting: int
    used: float
    first_token: Latency
    gap: Latency
    def __init__(self, time: _Optional[float] = ..., prompt_tokens_per_s: _Optional[float] = ..., generated_tokens_per_s: _Optional[float] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., used: _Optional[float] = ..., first_token: _Optional[_Union[Latency, _Mapping]] = ..., gap: _Optional[_Union[Latency, _Mapping]] = ...) -> None: ...

class Latency(_message.Message):
    __slots__ = ("median_s", "p99_s")
    MEDIAN_S_FIELD_NUMBER: _ClassVar[int]
    P99_S_FIELD_NUMBER: _ClassVar[int]
    median_s: float
    p99_s: float
    def __init__(self, median_s: _Optional[float] = ..., p99_s: _Optional[float] = ...) -> None: ...

class Totals(_message.Message):
    __slots__ = ("prompt_tokens", "generated_tokens", "num_steps", "num_spanning_steps", "num_preemptions", "num_moved_blocks", "num_failed_steps")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_SPANNING_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_MOVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_STEPS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    generated_tokens: int
    num_steps: int
    num_spanning_steps: int
    num_preemptions: int
    num_moved_blocks: int
    num_failed_steps: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_spanning_steps: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_moved_blocks: _Optional[int] = ..., num_failed_steps: _Optional[int] = ...) -> None: ...
