"""Images of a request: data URIs, files of one folder, fetched from named hosts. Nothing else."""

import base64
import binascii
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx
from PIL import Image

from vlaa_jax.data.images.files import decode_image, resolve_inside
from vlaa_jax.data.images.processor import ImageProcessor, to_rgb
from vlaa_jax.foreign import local_path, read_bytes
from vlaa_jax.schema import UserError
from vlaa_jax.serve.errors import Refusal
from vlaa_jax.settings.serve import ServerSettings

_DATA = re.compile(r"data:(image/[\w.+-]+)?;base64,", re.ASCII)


class ImageSource:
    """Finds the bytes behind an address, and decodes them.

    Args:
        settings: what is allowed, and how large it may be.
        processor: what size the model sees.
    """

    def __init__(self, settings: ServerSettings, processor: ImageProcessor) -> None:
        self._settings, self._processor = settings, processor
        self._max_bytes = int(settings.max_body_mb * 1e6)
        self._folder = local_path(settings.image_folder) if settings.image_folder else None
        if self._folder is not None and not self._folder.is_dir():
            raise UserError(f"image_folder: {self._folder} is no folder")

    async def fetch(self, url: str) -> bytes | str:
        """The bytes behind an address of a named host; any other address as it is, for `open`."""
        if not url.lower().startswith(("http:", "https:")):
            return url
        try:
            host = urlsplit(url).netloc.lower()
        except ValueError:
            host = ""
        if host not in self._settings.image_domains:
            raise _not_allowed("http(s) addresses of images", "--image_domains=HOST")
        try:
            return await self._download(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Refusal(f"an image could not be fetched ({type(error).__name__})") from None

    async def _download(self, url: str) -> bytes:
        data = bytearray()
        headers = {"accept-encoding": "identity"}
        async with (
            httpx.AsyncClient(timeout=self._settings.patience_s, trust_env=False) as client,
            client.stream("GET", url, headers=headers, follow_redirects=False) as reply,
        ):
            if reply.status_code != 200:
                raise Refusal(f"an image could not be fetched (HTTP {reply.status_code})")
            async for piece in reply.aiter_raw():
                data += piece
                if len(data) > self._max_bytes:
                    raise Refusal(f"an image is larger than {self._settings.max_body_mb:g} MB")
        return bytes(data)

    def open(self, found: bytes | str, name: str) -> Image.Image:
        """The image, decoded and no larger than the model sees it.

        Raises:
            Refusal: no address that is allowed, or nothing that can be decoded there.
        """
        try:
            data = found if isinstance(found, bytes) else self._read(found, name)
            image = decode_image(data, name, self._settings.max_image_pixels)
            return self._shrunk(image)
        except UserError as error:
            raise Refusal(str(error), param=name) from None

    def _read(self, url: str, name: str) -> bytes:
        if head := _DATA.match(url[:200]):
            try:
                return base64.b64decode(url[head.end() :], validate=True)
            except (binascii.Error, ValueError):
                raise Refusal(f"{name}: the data URI is not valid base64", param=name) from None
        if not url.startswith("file://"):
            raise Refusal(f"{name}: give the image as data:image/...;base64,...", param=name)
        if self._folder is None:
            raise _not_allowed("file:// addresses of images", "--image_folder=DIR")
        return self._read_file(url, self._folder, name)

    def _read_file(self, url: str, folder: Path, name: str) -> bytes:
        path = PurePosixPath(unquote(url.removeprefix("file://")))
        if not path.is_relative_to(folder.absolute()):
            raise Refusal(f"{name}: the file is not in the server's folder of images", param=name)
        try:
            inside = str(path.relative_to(folder.absolute()))
            return read_bytes(resolve_inside(folder, inside), self._max_bytes)
        except FileNotFoundError:
            raise Refusal(f"{name}: there is no such file", param=name) from None

    def _shrunk(self, image: Image.Image) -> Image.Image:
        """A large image as the processor would resize it, so that its pixels are not kept."""
        size = self._processor.resized(*image.size)
        if (
            size[0] * size[1] >= image.width * image.height
            or self._processor.resized(*size) != size
        ):
            return image
        return to_rgb(image).resize(size, resample=Image.Resampling(self._processor.resample))


def _not_allowed(what: str, flag: str) -> Refusal:
    said = f"{what} are not allowed here; send it as a data URI (the server's owner: {flag})"
    return Refusal(said, param="image_url")
