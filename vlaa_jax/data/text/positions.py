"""Multimodal rotary positions (M-RoPE) of a token sequence.

The published rule (Qwen2-VL, arXiv 2409.12191, section 2.1; time scale of Qwen2.5-VL, arXiv
2502.13923, section 2.1.2). transformers disagrees with itself between versions, for video up to and
including 5.23, so the rule is written out here and tested on values.
"""

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlaa_jax.schema import Grid


def mrope_positions(
    ids_T: ArrayLike,
    grids: Sequence[Grid],
    *,
    image_token_id: int,
    video_token_id: int = -1,
    merge_size: int = 2,
    tokens_per_second: float = 1.0,
    second_per_grid: Sequence[float] | float = 1.0,
) -> tuple[NDArray[np.int32], int]:
    """Time, height and width position of each token, and the offset for decoding after them.

    Text runs count up on all three axes. A vision run that starts at p with grid (t, h, w) has
    T = p + floor(frame * second_per_grid * tokens_per_second), H = p + row, W = p + column on the
    merged grid. The next run starts at the largest position on any axis plus one.

    Args:
        ids_T: token ids of one sample, placeholders expanded, no padding.
        grids: patch grids (t, h, w) of images and videos together, in order of occurrence.
        image_token_id: id of the image placeholder.
        video_token_id: id of the video placeholder; -1 for none.
        merge_size: patches along a merge unit's side.
        tokens_per_second: of the vision configuration (2 in Qwen2.5-VL; Qwen2-VL has no scale: 1).
        second_per_grid: seconds per temporal patch, for all videos or one per video.

    Returns:
        positions_T3 int32, and rope_delta: a token decoded at index n has position n + rope_delta.

    Raises:
        ValueError: placeholders and grids do not match.
    """
    ids_T = np.asarray(ids_T)
    T = len(ids_T)
    vision_T = (ids_T == image_token_id) | (ids_T == video_token_id)
    spots = np.flatnonzero(vision_T)
    expected = sum(t * (h // merge_size) * (w // merge_size) for t, h, w in grids)
    if len(spots) != expected:
        raise ValueError(f"{len(spots)} image placeholders in the text, {expected} in the grids")
    out_T3 = np.empty((T, 3), np.int32)
    each = second_per_grid
    intervals = repeat(each) if isinstance(each, int | float) else iter(each)
    done, next_pos, seen = 0, 0, 0
    for t, h, w in grids:
        start, n = int(spots[seen]), t * (h // merge_size) * (w // merge_size)
        if int(spots[seen + n - 1]) != start + n - 1:
            raise ValueError(f"the {n} placeholders of grid {(t, h, w)} are not consecutive")
        out_T3[done:start] = np.arange(next_pos, next_pos + start - done)[:, None]
        next_pos += start - done
        is_video = ids_T[start] == video_token_id
        if t != 1 and not is_video:
            raise ValueError(f"an image has one frame, got grid {(t, h, w)}")
        place_3N = np.indices((t, h // merge_size, w // merge_size)).reshape(3, n)
        # Multiply in floating point and cut last: cutting the interval first would freeze time.
        scale = next(intervals) * tokens_per_second if is_video else 0.0
        place_3N[0] = np.floor(place_3N[0] * scale)
        out_T3[start : start + n] = next_pos + place_3N.T
        next_pos += int(place_3N.max()) + 1
        done, seen = start + n, seen + n
    out_T3[done:] = np.arange(next_pos, next_pos + T - done)[:, None]
    return out_T3, next_pos - done
