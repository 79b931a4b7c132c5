"""The Triton kernels of cross scan and cross merge: any order, size and strides, offsets of 64 bits.

Image and sequences are both seen as [B, K, C, L] through their strides, so that a layout is nothing but strides; where
all sequences read one image its stride along K is 0. Programs copy without arithmetic; a merge sums in the order of K.
"""

import triton
import triton.language as tl


@triton.jit
def _turned(tile, MOVE: tl.constexpr, ALONG_L: tl.constexpr):
    """[H, W, C] as [W, H, C], and back, where a sequence reads columns whose steps lie side by side.

    Neighbours in memory are neighbours along axis 1 of the tile then, whichever way the sequence goes.
    """
    return tl.permute(tile, (1, 0, 2)) if MOVE & 4 and ALONG_L else tile


@triton.jit
def _places(
    h, w, c, H, W, C, start, stride_c, stride_l, MOVE: tl.constexpr, ALONG_L: tl.constexpr,
    RUN_H: tl.constexpr, RUN_W: tl.constexpr, RUN_C: tl.constexpr,
):  # fmt: skip
    """Where the pixels of a tile lie in the sequence of one move, and which of them exist, both turned.

    The hints are set on the results of operations: on the arguments of a function they would be lost.
    """
    h, w = _turned(h, MOVE, ALONG_L), _turned(w, MOVE, ALONG_L)
    i = H - 1 - h if MOVE & 1 else h
    j = W - 1 - w if MOVE & 2 else w
    if MOVE & 4:
        at = i * stride_l + j * H * stride_l + c * stride_c + start
    else:
        at = i * W * stride_l + j * stride_l + c * stride_c + start
    real = (h < H) & (w < W) & (c < C)
    if not ALONG_L:
        at = tl.max_contiguous(tl.multiple_of(at, [1, 1, RUN_C]), [1, 1, RUN_C])
        real = tl.max_constancy(real, [1, 1, RUN_C])
    elif MOVE & 5 == 4:
        at = tl.max_contiguous(tl.multiple_of(at, [1, RUN_H, 1]), [1, RUN_H, 1])
        real = tl.max_constancy(real, [1, RUN_H, 1])
    elif MOVE & 6 == 0:
        at = tl.max_contiguous(tl.multiple_of(at, [1, RUN_W, 1]), [1, RUN_W, 1])
        real = tl.max_constancy(real, [1, RUN_W, 1])
    return at, real


@triton.jit
def moves_kernel(
    image,
    sequences,
    H,
    W,
    C,
    image_b,
    image_k,
    image_c,
    image_l,
    sequences_b,
    sequences_k,
    sequences_c,
    sequences_l,
    K: tl.constexpr,
    MOVES: tl.constexpr,  # 3 bits a sequence, the first the lowest: flip_h, flip_w, transpose
    MERGE: tl.constexpr,  # from the sequences to the image
    ONE_BY_ONE: tl.constexpr,
    FLOAT32: tl.constexpr,  # whether a merge sums in float32, else in the type at hand
    ALONG_L: tl.constexpr,  # whether the steps of a sequence lie side by side, else its channels
    RUN_IMAGE_W: tl.constexpr,  # elements of the image that one access may take along W, along C
    RUN_IMAGE_C: tl.constexpr,
    RUN_H: tl.constexpr,  # the same of a sequence
    RUN_W: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Orders made of moves: a program takes a block of pixels and channels to, or from, its places in the sequences."""
    tiles_c = tl.cdiv(C, BLOCK_C)
    tiles_w = tl.cdiv(W, BLOCK_W)
    tiles_h = tl.cdiv(H, BLOCK_H)
    tile = tl.program_id(0)
    c = (tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, None, :]).to(tl.int64)
    w = (tile // tiles_c % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)[None, :, None]).to(tl.int64)
    h = (tile // (tiles_c * tiles_w) % tiles_h * BLOCK_H + tl.arange(0, BLOCK_H)[:, None, None]).to(tl.int64)
    b = (tile // (tiles_c * tiles_w * tiles_h)).to(tl.int64)

    image_at = h * W * image_l + w * image_l + c * image_c + b * image_b
    image_at = tl.max_contiguous(tl.multiple_of(image_at, [1, RUN_IMAGE_W, RUN_IMAGE_C]), [1, RUN_IMAGE_W, RUN_IMAGE_C])
    real = tl.max_constancy((h < H) & (w < W) & (c < C), [1, RUN_IMAGE_W, RUN_IMAGE_C])
    if MERGE and not ONE_BY_ONE:
        total = tl.zeros([BLOCK_H, BLOCK_W, BLOCK_C], tl.float32 if FLOAT32 else image.dtype.element_ty)
    if not MERGE and not ONE_BY_ONE:
        pixels = tl.load(image + image_at, real)

    for k in tl.static_range(K):
        k64 = tl.cast(k, tl.int64)  # a number known to the compiler multiplies in the type of the stride
        at, exists = _places(
            h, w, c, H, W, C, b * sequences_b + k64 * sequences_k, sequences_c, sequences_l,
            MOVES >> (3 * k), ALONG_L, RUN_H, RUN_W, RUN_C,
        )  # fmt: skip
        if MERGE:
            values = _turned(tl.load(sequences + at, exists), MOVES >> (3 * k), ALONG_L)
            if ONE_BY_ONE:
                tl.store(image + (image_at + k64 * image_k), values, real)
            else:
                total += values.to(total.dtype)
        else:
            if ONE_BY_ONE:
                pixels = tl.load(image + (image_at + k64 * image_k), real)
            tl.store(sequences + at, _turned(pixels, MOVES >> (3 * k), ALONG_L), exists)

    if MERGE and not ONE_BY_ONE:
        tl.store(image + image_at, total.to(image.dtype.element_ty), real)


@triton.jit
def map_kernel(
    source,
    target,
    maps,  # int64 [K, L]: what each position of the target reads
    L,
    C,
    source_b,
    source_k,
    source_c,
    source_l,
    target_b,
    target_k,
    target_c,
    target_l,
    K: tl.constexpr,
    SUM: tl.constexpr,  # the sum over K, else each of them
    FLOAT32: tl.constexpr,
    RUN_SOURCE_C: tl.constexpr,  # elements that one access may take along C or L
    RUN_L: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Any order: a program fills a block of positions and channels of its target from where the map points."""
    tiles_c = tl.cdiv(C, BLOCK_C)
    tiles_l = tl.cdiv(L, BLOCK_L)
    tile = tl.program_id(0)
    c = (tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]).to(tl.int64)
    place = (tile // tiles_c % tiles_l).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    b = (tile // (tiles_c * tiles_l)).to(tl.int64)

    from_real = tl.max_constancy((place < L)[:, None] & (c < C), [1, RUN_SOURCE_C])
    to_real = tl.max_constancy((place < L)[:, None] & (c < C), [RUN_L, RUN_C])
    to = place[:, None] * target_l + c * target_c + b * target_b
    to = tl.max_contiguous(tl.multiple_of(to, [RUN_L, RUN_C]), [RUN_L, RUN_C])
    if SUM:
        total = tl.zeros([BLOCK_L, BLOCK_C], tl.float32 if FLOAT32 else target.dtype.element_ty)
    for k in tl.static_range(K):
        k64 = tl.cast(k, tl.int64)
        read = tl.load(maps + k64 * L + place, place < L, 0)
        at = read[:, None] * source_l + c * source_c + (b * source_b + k64 * source_k)
        at = tl.max_contiguous(tl.multiple_of(at, [1, RUN_SOURCE_C]), [1, RUN_SOURCE_C])
        values = tl.load(source + at, from_real)
        if SUM:
            total += values.to(total.dtype)
        else:
            tl.store(target + (to + k64 * target_k), values, to_real)
    if SUM:
        tl.store(target + to, total.to(target.dtype.element_ty), to_real)
