"""The page shows in a browser where every request's KV is, and nothing that callers name runs."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.chromium import Page
from tests.browser.serving import ADMIN, ALICE, TEXT, Served, requests

LONG = TEXT[:4200]
"""Over a thousand tokens; an instance holds 320."""
HOSTILE = "<img/src=x/onerror=document.title='owned'>"
LIVE = "document.getElementById('status').dataset.state === 'live'"
NAMES = "[...document.querySelectorAll('tr[data-request] .id')].map((one) => one.textContent)"
PLACES = """
(() => {
  const row = [...document.querySelectorAll("tr[data-request]")]
    .find((one) => one.querySelector(".id").textContent === NAME);
  if (!row) return null;
  const number = row.dataset.request;
  const cells = [...document.querySelectorAll(`.cell[data-request="${number}"]`)];
  return {
    number,
    row: row.children[2].textContent,
    swatch: row.querySelector(".swatch").classList[1],
    colours: [...new Set(cells.map((cell) => cell.classList[1]))],
    fills: [...new Set(cells.map((cell) => getComputedStyle(cell).fill))],
    instances: [...new Set(cells.map((cell) => cell.parentElement.dataset.instance))],
    count: cells.length,
  };
})()
"""
SCALE = """
(async () => {
  const { Pools } = await import("/page/pools.js");
  const place = document.createElement("div");
  document.body.replaceChildren(place);
  const pools = new Pools(place, () => {});
  const times = [];
  for (let round = 0; round < 12; round += 1) {
    const view = { debts: [], requests: [], instances: [] };
    for (let number = 0; number < 256; number += 1) {
      const blocks = [];
      for (let at = 0; at < 64; at += 1) blocks.push([at, (number * 7 + at + round) % 16]);
      view.requests.push({ number, blocks });
    }
    for (let at = 0; at < 64; at += 1) {
      const held = view.requests.reduce((sum, one) => sum + one.blocks[at][1], 0);
      view.instances.push({ total: 4096, free: 4096 - held, held, reserved: 0, other: 0 });
      for (let to = 0; to < 64; to += 1) {
        if (to !== at) view.debts.push({ creditor: at, debtor: to, num_blocks: 1 + (at * to) % 9 });
      }
    }
    const begin = performance.now();
    pools.show(view);
    times.push(performance.now() - begin);
  }
  return {
    first: times[0],
    later: times.slice(1).sort((a, b) => a - b)[5],
    cells: document.querySelectorAll(".cell").length,
    arrows: document.querySelectorAll(".debt").length,
  };
})()
"""


def places_of(name: str) -> str:
    return PLACES.replace("NAME", json.dumps(name))


@pytest.fixture(scope="module")
def busy(served: Served) -> Iterator[Served]:
    """A long request, a short one, and one whose name is an attack."""
    prompts = {"long-novel": LONG, "letter": TEXT[:300], HOSTILE: "In the beginning"}
    with requests(served, prompts, max_tokens=300):
        yield served


def open_with_key(page: Page, served: Served, **window: Any) -> None:
    """Open the page in a tab that has the key already."""
    give = f"sessionStorage.setItem('distkv-api-key', {json.dumps(ADMIN)})"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=give)
    page.open(served.url, **window)
    page.wait_for(f"document.getElementById('status') && {LIVE}")


def test_a_long_request_is_shown_on_several_instances(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.wait_for(f"{places_of('long-novel')}?.instances.length >= 4")
    found = page.value(places_of("long-novel"))

    assert len(found["instances"]) >= 4
    assert found["row"] == f"{found['count']} on {len(found['instances'])}"
    # One colour wherever it is, and in the list; `on` is of what is pointed at.
    assert found["colours"] == [found["swatch"]]
    assert len(found["fills"]) == 1
    assert page.value("document.querySelectorAll('.instance').length") == 8
    assert page.value("document.querySelectorAll('.cell').length") == 160


def test_debts_are_arrows_that_say_how_many_blocks(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.wait_for("document.querySelectorAll('path.debt').length >= 3")
    debts = page.value(
        "[...document.querySelectorAll('path.debt')].map((one) => [one.dataset.creditor,"
        " one.dataset.debtor, one.textContent, one.getAttribute('marker-end')])"
    )

    for creditor, debtor, title, tip in debts:
        assert creditor != debtor
        assert title.startswith(f"instance {creditor} has lent ")
        assert title.endswith(f" to instance {debtor}")
        assert tip == "url(#tip)"
    label = page.value("document.querySelector('#pools svg').getAttribute('aria-label')")
    assert "instance 0: " in label and " has lent " in label


def test_a_hostile_name_is_text(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.wait_for(f"{NAMES}.includes({json.dumps(HOSTILE)})")
    page.value(
        f"document.querySelector(`tr[data-request='${{{places_of(HOSTILE)}.number}}']`).focus()"
    )
    page.wait_for(f"document.getElementById('focus').textContent.includes({json.dumps(HOSTILE)})")

    assert page.value("document.querySelectorAll('main img, table img').length") == 0
    assert page.value("document.title") == "tiny · DistKV"
    assert page.complaints == []


def test_nothing_is_complained_of(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.wait_for(f"{places_of('long-novel')}?.count")

    assert page.complaints == []
    assert page.value("window.violations") == []
    assert page.answers["/live"] == 200
    assert set(page.answers.values()) == {200}
    # Nothing comes from elsewhere.
    names = page.value("performance.getEntriesByType('resource').map((one) => one.name)")
    assert names and all(name.startswith(busy.url) for name in names)


def test_a_policy_that_is_broken_would_be_seen(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.value("document.body.append(Object.assign(document.createElement('script'), {text: '1'}))")

    assert page.wait_for("window.violations.length") == 1
    assert page.complaints


def test_the_request_under_the_pointer_stands_out_everywhere(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.wait_for(f"{places_of('long-novel')}?.count >= 70")
    number = page.value(places_of("long-novel"))["number"]
    page.move_to(f".cell[data-request='{number}']")
    page.wait_for(f"document.querySelector('tr.on')?.dataset.request === '{number}'")
    words = page.value("document.getElementById('focus').textContent")
    lit = page.value("[...document.querySelectorAll('.cell.on')].map((one) => one.dataset.request)")

    assert set(lit) == {number}
    assert len(lit) >= 70
    assert words.startswith("long-novel") and " on instance " in words
    page.move_to("h1")
    page.wait_for("document.querySelectorAll('.cell.on').length === 0")


def test_keys_alone_lead_through_the_requests(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.wait_for(f"{NAMES}.length === 3")
    page.value("document.getElementById('pause').focus()")
    page.press("Tab")
    page.wait_for("document.activeElement.matches('tr[data-request], #forget, .scroll')")
    for _ in range(5):
        if page.value("document.activeElement.matches('tr[data-request]')"):
            break
        page.press("Tab")
    first = page.value("document.activeElement.dataset.request")
    page.press("ArrowDown")
    second = page.value("document.activeElement.dataset.request")

    assert first and second and first != second
    assert page.value("document.querySelector('tr.on').dataset.request") == second


def test_the_page_asks_for_an_admins_key_and_keeps_it_in_the_tab(page: Page, busy: Served) -> None:
    def give(key: str) -> None:
        page.wait_for("document.getElementById('ask')?.open")
        page.value(f"document.getElementById('key').value = {json.dumps(key)}")
        page.value("document.getElementById('ask-form').requestSubmit()")

    why = "document.getElementById('ask-why').textContent"
    page.open(busy.url)
    page.wait_for("document.getElementById('ask')?.open")
    assert page.value(f"{NAMES}.length") == 0
    give("wrong-0123456789abcdef")
    page.wait_for(f"{why} === 'the API key is not known'")
    give(ALICE)
    page.wait_for(f"{why} === 'the API key of alice is not an admin\\'s'")
    give(ADMIN)
    page.wait_for(f"{LIVE} && {NAMES}.length === 3")

    assert page.value("[localStorage.length, document.cookie]") == [0, ""]
    assert page.value("document.getElementById('ask').open") is False
    page.value("document.getElementById('forget').click()")
    page.wait_for("document.getElementById('ask')?.open && sessionStorage.length === 0")


def test_a_server_that_is_gone_is_said_and_found_again(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.call("Network.setBlockedURLs", urls=["*/live*"])
    page.value("document.getElementById('interval').dispatchEvent(new Event('change'))")
    page.wait_for("document.getElementById('status').dataset.state === 'lost'")
    text = page.value("document.getElementById('status').textContent")
    assert text.startswith("the server cannot be reached, next try in ")
    assert page.value("document.body.classList.contains('stale')") is True

    page.call("Network.setBlockedURLs", urls=[])
    page.wait_for(f"{LIVE} && !document.body.classList.contains('stale')")


def test_a_pause_ends_the_stream(page: Page, busy: Served) -> None:
    open_with_key(page, busy)
    page.value("document.getElementById('pause').click()")
    assert page.value("document.getElementById('status').dataset.state") == "paused"

    page.value("document.getElementById('pause').click()")
    page.wait_for(LIVE)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (420, False)])
def test_it_fits_its_window(page: Page, busy: Served, width: int, dark: bool) -> None:
    open_with_key(page, busy, width=width, dark=dark)
    page.wait_for(f"{NAMES}.length === 3")

    assert page.value("document.documentElement.scrollWidth <= innerWidth") is True
    if width == 1280:
        assert page.value("document.documentElement.scrollHeight <= innerHeight") is True
    ground = page.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(13, 17, 23)") is dark


def test_many_instances_with_many_blocks_are_drawn_in_time(page: Page, served: Served) -> None:
    open_with_key(page, served)
    found = page.value(SCALE)

    assert 64 * 20 <= found["cells"] <= 64 * 100
    assert found["arrows"] == 40
    # A picture a second leaves the browser idle; this machine may be busy.
    assert found["later"] < 250, found
