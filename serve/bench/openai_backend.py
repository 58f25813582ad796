"""Any server that speaks OpenAI's completions or chat completions over HTTP."""

import dataclasses
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from distkv_jax.environment import openai_api_key
from distkv_jax.errors import ConfigError, Unauthenticated, Unavailable
from serve.bench.backend import About, Failed, Piece, Usage
from serve.bench.settings import ENDPOINTS, BenchSettings
from serve.bench.sse import EventReader
from serve.bench.workload import Item
from serve.client_settings import ClientSettings

LONGEST_ERROR = 300


class OpenAIBackend:
    """A server over HTTP. Needs a running event loop."""

    def __init__(self, settings: BenchSettings, connection: ClientSettings) -> None:
        """Prepare; the connection is made by the first call.

        Raises:
            ConfigError: The address is not one.
            OSError: A file of keys or certificates cannot be read.
        """
        self._settings = settings
        self._is_chat = settings.backend == "openai-chat"
        self._base = base = settings.url
        connection = connection_of(base, connection)
        endpoint = settings.endpoint or ENDPOINTS[settings.backend]
        self._url = f"{base}/{endpoint.lstrip('/')}"
        headers = headers_of(connection)
        trust = trust_of(connection)
        self._session = aiohttp.ClientSession(
            headers=headers,
            # As many connections as there are requests: a limit here would be a hidden queue.
            connector=aiohttp.TCPConnector(limit=0, ssl=trust, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            read_bufsize=2**18,
        )

    async def about(self) -> About:
        """Ask /v1/models, and /version where there is one."""
        try:
            async with self._session.get(f"{self._base}/v1/models") as answer:
                if answer.status in (401, 403):
                    raise Unauthenticated(f"{self._base}: {await error_text(answer)}")
                if answer.status != 200:
                    raise Unavailable(f"{self._base}/v1/models: {await error_text(answer)}")
                models = (await answer.json(content_type=None))["data"]
                entry = next((one for one in models if one["id"] == self._settings.model), None)
                entry = models[0] if entry is None else entry
                name, size = self._settings.model or entry["id"], entry.get("vocab_size")
            async with self._session.get(f"{self._base}/version") as answer:
                found = await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{self._base}: {str(error) or type(error).__name__}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise Unavailable(f"{self._base}/v1/models does not list a model") from error
        version = found.get("version") if isinstance(found, dict) else None
        return About(name, size if isinstance(size, int) else None, version)

    def prepare(self, item: Item, model: str) -> bytes:
        """Write the request's body."""
        prompt = item.prompt if isinstance(item.prompt, str) else item.prompt.tolist()
        body: dict[str, Any] = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._is_chat:
            body["messages"] = [{"role": "user", "content": prompt}]
            body["max_completion_tokens"] = item.output_tokens
        else:
            body["prompt"] = prompt
            body["max_tokens"] = item.output_tokens
        if self._settings.ignore_eos:
            body["ignore_eos"] = True
        if self._settings.temperature is not None:
            body["temperature"] = self._settings.temperature
        return json.dumps(body, separators=(",", ":")).encode()

    async def stream(self, request: bytes) -> AsyncIterator[Piece]:
        """Post a body and read the events of the answer."""
        headers = {"Content-Type": "application/json"}
        reader, has_ended = EventReader(), False
        try:
            async with self._session.post(self._url, data=request, headers=headers) as answer:
                if answer.status != 200:
                    raise Failed(await error_text(answer))
                async for data in answer.content.iter_any():
                    for event in reader.push(data):
                        if event == b"[DONE]":
                            has_ended = True
                        elif (piece := self._piece_of(json.loads(event))) is not None:
                            yield piece
        except TimeoutError as error:
            raise Failed(f"no answer within {self._settings.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Failed(f"{type(error).__name__}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failed(f"the server sent what is not a completion: {error}") from error
        if not has_ended:
            raise Failed("the stream ended before [DONE]")

    def _piece_of(self, event: Mapping[str, Any]) -> Piece | None:
        """Read an event; None if it tells nothing."""
        if event.get("error"):
            raise Failed(message_in(event))
        usage = None
        if counted := event.get("usage"):
            usage = Usage(counted["prompt_tokens"], counted.get("completion_tokens", 0))
        choices = event.get("choices")
        if not choices:
            return None if usage is None else Piece(is_output=False, usage=usage)
        if not self._is_chat:
            return Piece(choices[0].get("text") or "", usage=usage)
        delta = choices[0].get("delta") or {}
        text = delta.get("content") or delta.get("reasoning_content") or ""
        # What only announces who speaks may be sent before there is a token.
        is_output = bool(text) or "role" not in delta
        return Piece(text, is_output=is_output, usage=usage)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def connection_of(base: str, connection: ClientSettings) -> ClientSettings:
    """Tell where a URL leads; whether the way is encrypted its scheme alone decides.

    Raises:
        ConfigError: It is no URL of HTTP.
    """
    parts = urlsplit(base)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"base_url={base} must begin with http:// or https:// and have a host")
    is_encrypted = parts.scheme == "https"
    host = f"[{host}]" if ":" in host else host
    return dataclasses.replace(
        connection,
        server=f"{host}:{port or (443 if is_encrypted else 80)}",
        tls=is_encrypted,
        tls_ca=connection.tls_ca if is_encrypted else None,
        tls_cert=connection.tls_cert if is_encrypted else None,
        tls_key=connection.tls_key if is_encrypted else None,
    )


def headers_of(connection: ClientSettings) -> dict[str, str]:
    """Choose the key: the one given, else OPENAI_API_KEY, else DISTKV_API_KEY on this machine.

    Another machine may be anybody's server, and is not to see this package's key unasked.

    Raises:
        ConfigError: The file has no key, or the key would go out in the clear.
        OSError: It cannot be read.
    """
    if connection.api_key is None and connection.api_key_file is None:
        if (key := openai_api_key()) is not None:
            connection = dataclasses.replace(connection, api_key=key)
        elif not connection.is_local:
            return {}
    return {name.title(): value for name, value in connection.metadata()}


def trust_of(connection: ClientSettings) -> ssl.SSLContext:
    """Load certificates.

    Raises:
        OSError: A file cannot be read, or is no certificate.
    """
    ca, cert, key = (
        None if name is None else Path(name).expanduser()
        for name in (connection.tls_ca, connection.tls_cert, connection.tls_key)
    )
    trust = ssl.create_default_context(cafile=ca)
    if cert is not None:
        trust.load_cert_chain(cert, key)
    return trust


async def error_text(answer: aiohttp.ClientResponse) -> str:
    """Say how a request was refused: its status and OpenAI's message, or what came."""
    try:
        body = (await answer.read()).decode(errors="replace")
    except aiohttp.ClientError:
        body = ""
    try:
        said = message_in(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError):
        said = body.strip() or answer.reason or ""
    return f"HTTP {answer.status}: {' '.join(said.split())[:LONGEST_ERROR]}"


def message_in(body: Mapping[str, Any]) -> str:
    """Read an error body, as OpenAI writes it or as a plain text."""
    error = body["error"]
    return error if isinstance(error, str) else str(error["message"])
