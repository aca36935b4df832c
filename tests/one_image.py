"""One image below a root, looked at as the sources of records do."""

from vlaa_jax.data.images.files import header_size, inspect, opened


def image_size(root, path):
    with opened(root, path) as file:
        return header_size(file, path)


def inspect_image(root, path, **options):
    return inspect(opened(root, path), path, **options)
