"""Everything a server needs, checked."""

import ipaddress
from dataclasses import dataclass, field

from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import EvaluatedModelSettings
from vlaa_jax.settings.fields import VARIABLE, Group, above, at_least, at_most, reads_as, setting
from vlaa_jax.settings.shared import MeshSettings


def image_domain(text: str) -> str:
    """A host, or host:port, as it stands in the address of an image.

    Raises:
        ValueError: it is none.
    """
    if not text or not text.isascii() or set(text) & set("/@?# \\%*") or text != text.lower():
        raise ValueError(f"{text!r} is no host: write it like images.example.org, or with :PORT")
    return text


@dataclass(frozen=True)
class ServerSettings(Group):
    """What is decoded at once, and who may ask for what."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach wants a key."""
    port: int = setting(8000, at_least(0), at_most(65535))
    """Port; 0 takes any that is free."""
    key_env: str = setting("VLAA_API_KEY", VARIABLE)
    """Environment variable with the key that requests must bring; unset: none is asked for."""
    name: str = ""
    """The model's name; empty: the last part of the checkpoint's."""
    slots: int = setting(32, at_least(1))
    """Prompts decoded at once."""
    rows: int = setting(1, at_least(1))
    """Completions of a slot: a request with n > rows takes several slots and repeats its prefix in
    each, one with n < rows leaves rows idle."""
    burst: int = setting(16, at_least(1))
    """Tokens decoded between two looks for new requests: more is faster, fewer is prompter."""
    max_prompt_tokens: int = setting(24_576, at_least(1))
    """Longest prompt, image tokens included."""
    max_new_tokens: int = setting(4096, at_least(1))
    """Highest token limit a request may ask for, and that of one that asks for none."""
    max_requests: int = setting(256, at_least(1))
    """Requests in hand at once, decoding or waiting; whoever comes then is told 429."""
    system_prompt: str = ""
    """Of conversations that bring none; empty leaves it to the chat template."""
    min_pixels: int = setting(0, at_least(0))
    """Area smaller images are enlarged to; 0 takes the checkpoint's."""
    max_pixels: int = setting(0, at_least(0))
    """Area larger images are shrunk to; 0 takes the checkpoint's."""
    max_body_mb: float = setting(32.0, above(0))
    """Size of a request's body, images included, and of an image that is fetched."""
    max_images: int = setting(8, at_least(0))
    """Images of a request."""
    max_image_pixels: int = setting(50_000_000, at_least(1))
    """Area of an image before it is shrunk; larger ones are not decoded."""
    image_folder: str = ""
    """Folder that file:// addresses of images may lead into; empty allows none."""
    image_domains: tuple[str, ...] = setting((), reads_as(image_domain))
    """Hosts (or host:port) that images are fetched from; empty allows none."""
    patience_s: float = setting(30.0, above(0))
    """Seconds for a request's body to come, for an image to be fetched, and for answers to be
    finished once the server is told to end."""
    compilation_cache: str = "~/.cache/vlaa_jax/xla"
    """Folder of the persistent compilation cache; empty turns it off."""

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can ask."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Limits fit each other."""
        if self.max_pixels and self.min_pixels > self.max_pixels:
            raise UserError("min_pixels: is above max_pixels")


@dataclass(frozen=True)
class ServeSettings(Group):
    """Everything a server needs."""

    model: EvaluatedModelSettings = field(default_factory=EvaluatedModelSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
