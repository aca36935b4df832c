"""A real server of the embedded checkpoint on loopback, in a thread of the test's process."""

import base64
import io
import socket
import threading
import time

import httpx
import jax
import uvicorn
from PIL import Image, ImageDraw

from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.serve.app import Served, make_app
from vlaa_jax.serve.opened import open_checkpoint, open_model, warm_up
from vlaa_jax.settings.evaluate import EvaluatedModelSettings
from vlaa_jax.settings.serve import ServerSettings, ServeSettings

NAME = "embedded"
LIMIT = 48
SERVER = {
    "name": NAME,
    "slots": 4,
    "burst": 4,
    "max_prompt_tokens": 1024,
    "max_new_tokens": LIMIT,
    "max_requests": 12,
    "max_body_mb": 2.0,
    "max_image_pixels": 1_000_000,
    "key_env": "",
    "patience_s": 10.0,
}
MODEL = EvaluatedModelSettings(checkpoint="embedded", dtype="float32", unroll=0)


class Running:
    """Serves while the ``with`` block runs; ``opened`` is shared by servers one after another."""

    def __init__(self, opened=None, **settings):
        self.settings = ServerSettings(**{**SERVER, **settings})
        self.opened = opened or open_embedded(self.settings)
        self.pretrained, self.stream, self.collator = self.opened
        self.died = []
        self.served = Served(self.settings, NAME, *self.opened, self.died.append)
        config = uvicorn.Config(make_app(self.served), log_level="warning", lifespan="on")
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self):
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *exc):
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def post(self, body, **options):
        """The reply to a chat request as it goes over the wire."""
        return httpx.post(f"{self.url}/chat/completions", timeout=60, **body_of(body), **options)

    def metric(self, name):
        text = httpx.get(f"{self.root}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def open_embedded(settings):
    """The checkpoint on one device, with a stream of these sizes that has decoded before."""
    mesh = make_mesh(devices=jax.devices()[:1])
    opened = open_checkpoint(ServeSettings(model=MODEL, server=settings), mesh)
    model = open_model(opened, settings)
    warm_up(*model)
    return model


def body_of(body):
    return {"content": body} if isinstance(body, bytes) else {"json": body}


def ask(text="How many squares are there?", url=None, **fields):
    """A request as JSON."""
    content = text
    if url is not None:
        shown = {"type": "image_url", "image_url": {"url": url}}
        content = [shown, {"type": "text", "text": text}]
    return {"model": NAME, "messages": [{"role": "user", "content": content}], **fields}


def picture(size=(84, 56), seed=0, kind="PNG"):
    """An encoded image."""
    image = Image.new("RGB", size, (240, 240, 250))
    draw = ImageDraw.Draw(image)
    for i in range(3):
        at = ((seed * 13 + i * 29) % (size[0] - 12), (seed * 7 + i * 17) % (size[1] - 12))
        draw.rectangle((*at, at[0] + 10, at[1] + 10), fill=(200, 40 * i, 30))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def data_uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def wait_for(condition, seconds=30.0):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.01)
