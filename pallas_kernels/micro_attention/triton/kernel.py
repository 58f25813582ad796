"""The Triton kernel: one part of one row's keys, for some queries of one KV head.

Source: FlashAttention-2's loop (arXiv 2307.08691) over the slots of listed blocks, as in
PagedAttention (arXiv 2309.06180); keys cut into parts as in Flash-Decoding
(https://pytorch.org/blog/flash-decoding/).
"""

from typing import no_type_check

# Triton is not installed where the code is checked: pyright takes this folder for it.
from triton import jit  # pyright: ignore[reportAttributeAccessIssue]
from triton import language as tl  # pyright: ignore[reportAttributeAccessIssue]

# A finite floor for the running maximum: (-inf) - (-inf) would be NaN. Masked scores stay at it,
# and their weights are masked too.
FLOOR = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# The columns of `contract.Row`.
COLUMNS = tl.constexpr(5)
TILE_COLUMN = tl.constexpr(0)
BEGIN_COLUMN = tl.constexpr(1)
END_COLUMN = tl.constexpr(2)
POSITION_COLUMN = tl.constexpr(3)
COUNT_COLUMN = tl.constexpr(4)


# Triton compiles the source below, which run-time type checks would wrap.
@jit
@no_type_check
def micro_attention_kernel(
    # inputs; K and V of a block lie side by side
    q_ptr,  # (tiles, tile, q_heads, head_dim)
    data_ptr,  # (blocks, 2, kv_heads, block_size, head_dim); float8_e4m3fn as its bits
    scales_ptr,  # (blocks, 2, kv_heads, block_size); not read unless IS_QUANTISED
    ids_ptr,  # (entries,)
    starts_ptr,  # (entries,)
    rows_ptr,  # (NUM_ROWS, 5)
    # outputs
    out_ptr,  # (splits, tiles, tile, q_heads, head_dim)
    lse_ptr,  # (splits, tiles, tile, q_heads)
    # sizes
    NUM_ROWS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    # meaning
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,  # 0 for none
    SOFT_CAP: tl.constexpr,  # 0 for none
    IS_QUANTISED: tl.constexpr,
    # launch: powers of two, but for the numbers of programs
    SUB_TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Attend from QUERIES (token, head of the group) pairs to one of SPLITS parts of the keys.

    Grid (TILES * SUB_TILES, KV_HEADS, SPLITS). Every program writes its part of the outputs, a tile
    that no row in use names too: nothing has to be filled beforehand.
    """
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    tile = tl.program_id(0) // SUB_TILES
    first = tl.program_id(0) % SUB_TILES * QUERIES
    kv_head = tl.program_id(1)
    split = tl.program_id(2)

    # At most one row in use names this tile.
    candidates = tl.arange(0, ROWS_PADDED)
    is_row = candidates < NUM_ROWS
    named = tl.load(rows_ptr + candidates * COLUMNS + TILE_COLUMN, mask=is_row, other=-1)
    counts = tl.load(rows_ptr + candidates * COLUMNS + COUNT_COLUMN, mask=is_row, other=0)
    row = tl.max(tl.where((named == tile) & (counts > 0), candidates, -1), axis=0)
    row_ptr = rows_ptr + row * COLUMNS
    begin = tl.load(row_ptr + BEGIN_COLUMN, mask=row >= 0, other=0)
    end = tl.load(row_ptr + END_COLUMN, mask=row >= 0, other=0)
    position = tl.load(row_ptr + POSITION_COLUMN, mask=row >= 0, other=0)
    count = tl.load(row_ptr + COUNT_COLUMN, mask=row >= 0, other=0)

    pairs = first + tl.arange(0, QUERIES)
    tokens = pairs // GROUP
    is_pair = pairs < TILE * GROUP
    in_use = is_pair & (tokens < count)
    at = position + tokens
    dims = tl.arange(0, DIM_PADDED)
    is_dim = dims < HEAD_DIM
    # Offsets into pools and partials exceed 32 bits.
    queries = (tile.to(tl.int64) * TILE + tokens) * Q_HEADS + kv_head * GROUP + pairs % GROUP
    q = tl.load(
        q_ptr + queries[:, None] * HEAD_DIM + dims[None, :],
        mask=in_use[:, None] & is_dim[None, :],
        other=0.0,
    )

    # What some query of this program sees: positions after `before`, up to `until`.
    first_token = first // GROUP
    last_token = tl.minimum((first + QUERIES - 1) // GROUP, count - 1)
    until = position + last_token
    # Slots of listed blocks are numbered through; a part is a whole number of steps of KEYS slots.
    steps = tl.cdiv((end - begin) * BLOCK_SIZE, KEYS)
    part = tl.cdiv(steps, SPLITS) * KEYS
    lower = begin * BLOCK_SIZE + split * part
    upper = tl.minimum(lower + part, end * BLOCK_SIZE)
    upper = tl.where(first_token < count, upper, lower)

    top = tl.full([QUERIES], FLOOR, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, DIM_PADDED], tl.float32)
    for key in range(lower, upper, KEYS):
        slots = key + tl.arange(0, KEYS)
        entries = slots // BLOCK_SIZE
        listed = slots < upper
        # Ids past the lists in use can be anything: neither read nor made into an address.
        ids = tl.load(ids_ptr + entries, mask=listed, other=0).to(tl.int64)
        keys_at = tl.load(starts_ptr + entries, mask=listed, other=0) + slots % BLOCK_SIZE
        is_seen = listed & (keys_at <= until)
        if WINDOW > 0:
            is_seen = is_seen & (keys_at > position + first_token - WINDOW)
        k_rows = (ids * (2 * KV_HEADS) + kv_head) * BLOCK_SIZE + slots % BLOCK_SIZE
        v_rows = k_rows + KV_HEADS * BLOCK_SIZE
        # A slot that no query may see can hold anything, and 0 * NaN is NaN: it is not read.
        in_block = is_seen[:, None] & is_dim[None, :]
        k = tl.load(data_ptr + k_rows[:, None] * HEAD_DIM + dims[None, :], mask=in_block, other=0)
        v = tl.load(data_ptr + v_rows[:, None] * HEAD_DIM + dims[None, :], mask=in_block, other=0)

        scores = tl.dot(q, tl.trans(to_numbers(k, q.dtype)), input_precision="ieee") * SCALE
        if IS_QUANTISED:
            scores *= tl.load(scales_ptr + k_rows, mask=is_seen, other=0.0)[None, :]
        if SOFT_CAP > 0:
            scores = SOFT_CAP * (2 * tl.sigmoid(scores * (2 / SOFT_CAP)) - 1)
        visible = in_use[:, None] & is_seen[None, :] & (keys_at[None, :] <= at[:, None])
        if WINDOW > 0:
            visible = visible & (keys_at[None, :] > at[:, None] - WINDOW)
        # Base 2: the hardware has no other exponential.
        scores = tl.where(visible, scores * LOG2_E, FLOOR)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # While nothing is visible exp2(FLOOR - FLOOR) is 1: mask the weight, not the score only.
        weights = tl.where(visible, tl.exp2(scores - new_top[:, None]), 0.0)
        rescale = tl.exp2(top - new_top)
        total = total * rescale + tl.sum(weights, axis=1)
        if IS_QUANTISED:
            weights *= tl.load(scales_ptr + v_rows, mask=is_seen, other=0.0)[None, :]
        acc = tl.dot(
            weights.to(q.dtype),
            to_numbers(v, q.dtype),
            acc * rescale[:, None],
            input_precision="ieee",
        )
        top = new_top

    is_empty = total == 0
    total = tl.where(is_empty, 1.0, total)
    out = acc / total[:, None]
    lse = tl.where(is_empty, float("-inf"), top * LN_2 + tl.log(total))
    queries += split.to(tl.int64) * (TILES * TILE * Q_HEADS)
    tl.store(
        out_ptr + queries[:, None] * HEAD_DIM + dims[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=is_pair[:, None] & is_dim[None, :],
    )
    tl.store(lse_ptr + queries, lse, mask=is_pair)


@jit
@no_type_check
def to_numbers(data, dtype: tl.constexpr):
    """Convert data of the pool, scale aside, to the dtype of the queries; exact.

    Before Ada there is no instruction for float8_e4m3fn: its exponent and mantissa are moved to
    float16's places, where the exponent's bias is larger by 8.
    """
    if data.dtype == tl.uint8:
        bits = data.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        numbers = half.to(tl.float16, bitcast=True) * 256.0
    else:
        numbers = data
    return numbers.to(dtype)
