"""Python clients of a DistKV server, blocking and for asyncio."""

from serve.client.async_client import AsyncClient
from serve.client.blocking_client import Client
from serve.client_settings import ClientSettings

__all__ = ["AsyncClient", "Client", "ClientSettings"]
