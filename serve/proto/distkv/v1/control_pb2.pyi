from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("num_requests", "num_running", "num_waiting", "num_waiting_tokens", "num_blocks", "num_free_blocks", "is_draining", "prompt_tokens", "generated_tokens", "num_steps", "num_spanning_steps", "num_preemptions", "num_failed_steps")
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
    def __init__(self, num_requests: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_waiting_tokens: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., is_draining: _Optional[bool] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_spanning_steps: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_failed_steps: _Optional[int] = ...) -> None: ...

class GetPoolRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPoolResponse(_message.Message):
    __slots__ = ("block_size", "instances", "requests")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    instances: _containers.RepeatedCompositeFieldContainer[InstanceBlocks]
    requests: _containers.RepeatedCompositeFieldContainer[RequestBlocks]
    def __init__(self, block_size: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[InstanceBlocks, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[RequestBlocks, _Mapping]]] = ...) -> None: ...

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
