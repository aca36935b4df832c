"""What a run began with, so that a resumed one notices when something else lies there.

Weights are told by samples of their bytes, images by their sizes. Reading everything would cost
minutes at every start, and whoever edits a file changes one of these.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlaa_jax import digests
from vlaa_jax.data.images.files import resolve_inside
from vlaa_jax.data.loaders.loader import records_digest
from vlaa_jax.models.qwen_vl.weights import step_of
from vlaa_jax.schema import Record, UserError
from vlaa_jax.train.checkpoint import Progress

_NAMES = {
    "weights": ("model.checkpoint", "the base weights"),
    "heldout": ("data.heldout", "the held-out records"),
    "images": ("data.image_root", "the images"),
}


def inputs(
    weights: Path, images: Path | None, records: Sequence[Record], heldout: Sequence[Record]
) -> dict[str, str]:
    """Digests of what a run reads and does not keep.

    Args:
        weights: directory of the checkpoint that training starts from; a run's newest counts.
        images: image root; None, or anything, where records bring their images.
        records: training records.
        heldout: held-out records, or none.
    """
    return {
        "weights": digests.of_weights(step_of(weights) or weights),
        "heldout": records_digest(heldout),
        "images": digests.of_pieces(_image_sizes(images, [*records, *heldout])),
    }


def same_inputs(progress: Progress, now: Mapping[str, str]) -> Progress:
    """The position, which remembers its inputs from now on.

    Raises:
        UserError: it is a position of a run with other inputs; names what has changed.
    """
    then = progress.inputs
    changed = [name for name in now if name in then and then[name] != now[name]]
    if changed:
        setting, what = _NAMES[changed[0]]
        raise UserError(
            f"{setting}: {what} are others than when this run was interrupted; bring them back, or "
            "start in another workdir"
        )
    return progress._replace(inputs=dict(now))


def _image_sizes(root: Path | None, records: Sequence[Record]) -> Iterator[bytes]:
    for record in records:
        for number, name in enumerate(record.images):
            if root is None:
                known = record.lengths.image_sizes[number] if record.lengths else -1
                yield f"{name}\0{known}".encode()
                continue
            try:
                size = resolve_inside(root, name).stat().st_size
            except (OSError, UserError):
                size = -1  # of a build, which brings its own
            yield f"{name}\0{size}".encode()
