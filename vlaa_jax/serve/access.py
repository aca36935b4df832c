"""Who may ask: whoever has the key, or, where there is none, programs of this machine."""

import hmac
import os
import re
from collections.abc import Mapping

from vlaa_jax.schema import UserError
from vlaa_jax.serve.errors import Refusal
from vlaa_jax.settings.serve import ServerSettings

_LOCAL_NAMES = frozenset(("127.0.0.1", "localhost", "[::1]"))
_PORT = re.compile(r":\d*$", re.ASCII)


class Access:
    """The server's door.

    Args:
        settings: where it listens, and which variable holds its key.

    Raises:
        UserError: others can reach it, and there is no key.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._key = os.environ.get(settings.key_env, "").strip() if settings.key_env else ""
        self._names = _LOCAL_NAMES | {settings.host}
        if not self._key and not settings.is_local:
            raise UserError(
                f"host: {settings.host} can be reached by others; set a key in "
                f"${settings.key_env or 'VLAA_API_KEY'}, or listen on 127.0.0.1"
            )

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuses whoever may not ask.

        Raises:
            Refusal: the key is missing or wrong; without a key, the request was made to another
                name than this machine's loopback, as by a page of the web whose name points here.
        """
        said = headers.get("authorization", "").encode()
        if self._key and not hmac.compare_digest(said, f"Bearer {self._key}".encode()):
            raise Refusal("the API key is missing or wrong", status=401, code="invalid_api_key")
        name = _PORT.sub("", headers.get("host", "").lower())
        if not self._key and name not in self._names:
            raise Refusal("only by the name of this machine's loopback", status=403)
