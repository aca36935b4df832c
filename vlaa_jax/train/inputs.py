"""What a run began with, so that a resumed one notices when something else lies there.

Weights are told by their headers, sizes and samples of their bytes; images by their sizes. Reading
everything would cost minutes at every start, and whoever edits a file changes one of these.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlaa_jax.data.images.files import resolve_inside
from vlaa_jax.data.loaders.order import records_digest
from vlaa_jax.schema import Record, UserError
from vlaa_jax.train.checkpoint import Progress

_BLOCK, _BLOCKS = 4096, 64
_NAMES = {
    "weights": ("model.checkpoint", "the base weights"),
    "heldout": ("data.heldout", "the held-out records"),
    "images": ("data.image_root", "the images"),
}


def inputs(
    weights: Path, images: Path, records: Sequence[Record], heldout: Sequence[Record]
) -> dict[str, str]:
    """Digests of what a run reads and does not keep.

    Args:
        weights: directory of the checkpoint that training starts from.
        images: image root; of a build, whose records know their images, anything.
        records: training records.
        heldout: held-out records, or none.
    """
    return {
        "weights": _digest(_weights(weights)),
        "heldout": records_digest(heldout),
        "images": _digest(_image_sizes(images, [*records, *heldout])),
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


def _digest(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _weights(directory: Path) -> Iterator[bytes]:
    """Names, sizes and samples of all files that may hold weights."""
    kinds = ("*.safetensors", "params/**/*", "vlaa_jax.json", "digests.json")
    found = {path for kind in kinds for path in directory.glob(kind) if path.is_file()}
    for path in sorted(found):
        size = path.stat().st_size
        yield path.relative_to(directory).as_posix().encode()
        yield size.to_bytes(8, "little")
        with open(path, "rb") as file:
            for number in range(_BLOCKS):
                file.seek(max(size - _BLOCK, 0) * number // (_BLOCKS - 1))
                yield file.read(_BLOCK)


def _image_sizes(root: Path, records: Sequence[Record]) -> Iterator[bytes]:
    for record in records:
        for name in record.images:
            try:
                size = resolve_inside(root, name).stat().st_size
            except (OSError, UserError):
                size = -1  # of a build, which brings its own
            yield f"{name}\0{size}".encode()
