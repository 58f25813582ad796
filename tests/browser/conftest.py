"""One server and one browser for all tests of the page; each test has a tab of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection

from tests.browser.chromium import Page, chromium, new_page
from tests.browser.serving import Served, serving


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientConnection]:
    with chromium(tmp_path_factory.mktemp("chromium")) as socket:
        yield socket


@pytest.fixture(scope="session")
def served(browser: ClientConnection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server; asked for after the browser, without which it is not needed."""
    del browser
    with serving(Path(tmp_path_factory.mktemp("server"))) as served:
        yield served


@pytest.fixture
def page(browser: ClientConnection) -> Iterator[Page]:
    with new_page(browser) as page:
        yield page
