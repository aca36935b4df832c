"""Rotary position embeddings: three-axis M-RoPE for text, two-axis rotary for vision.

The two differ in precision, as in HF: text rounds cos and sin to the activation dtype and rotates
in it; vision keeps angles, tables and rotation in float32 (bfloat16 angles are off by up to
0.25 rad at patch row 200).
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def text_tables(
    positions_3: Array, *, head_dim: int, theta: float, sections: tuple[int, int, int]
) -> tuple[Array, Array]:
    """Cos and sin of M-RoPE (arXiv 2409.12191, section 2.1).

    The head_dim/2 frequencies are cut into consecutive (time, height, width) sections; each
    section turns with the position on its own axis.

    Args:
        positions_3: integer positions [..., 3] on the axes (time, height, width).
        head_dim: size of an attention head.
        theta: rotary base.
        sections: number of frequencies per axis; they add up to head_dim / 2.

    Returns:
        cos and sin, float32 [..., head_dim].
    """
    inv_freq = 1.0 / (theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))
    axis_of_freq = np.repeat(np.arange(3), sections)
    angles = positions_3[..., axis_of_freq].astype(jnp.float32) * inv_freq.astype(np.float32)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def vision_tables(pos_hw: Array, *, head_dim: int, theta: float = 10000.0) -> tuple[Array, Array]:
    """Cos and sin of the vision tower's two-axis rotary embedding.

    Args:
        pos_hw: integer (row, column) of each patch on its frame's grid, [..., 2].
        head_dim: size of an attention head; a quarter of it is the number of frequencies.
        theta: rotary base (10000 in every released model).

    Returns:
        cos and sin, float32 [..., head_dim].
    """
    quarter = head_dim // 4
    exponents = np.arange(0, 2 * quarter, 2, dtype=np.float32) / np.float32(2 * quarter)
    inv_freq = (1.0 / (theta**exponents)).astype(np.float32)
    angles = (pos_hw[..., None].astype(jnp.float32) * inv_freq).reshape(
        *pos_hw.shape[:-1], 2 * quarter
    )
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates pairs (i, i + H/2) of the last axis.

    Args:
        x: [N, heads, H].
        cos: [N, H], in the dtype the rotation shall be done in.
        sin: [N, H], likewise.

    Returns:
        [N, heads, H] in x's dtype.
    """
    dtype = x.dtype
    x = x.astype(cos.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (x * cos[:, None, :] + rotated * sin[:, None, :]).astype(dtype)
