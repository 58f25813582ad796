"""What the dashboard and the example alerts ask for is there."""

import json
import re
from pathlib import Path

import pytest

from tests.serve.observe.scraping import scrape
from tests.serve.running import Running

DOCS = Path(__file__).parents[3] / "docs"
NAME = re.compile(r"\bdistkv_\w+")


def expressions(path: Path) -> list[str]:
    if path.suffix == ".json":
        panels = json.loads(path.read_text())["panels"]
        return [target["expr"] for panel in panels for target in panel["targets"]]
    return re.findall(r"expr: (.+)", path.read_text())


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yml"])
def test_every_metric_that_is_asked_for_exists(web: Running, name: str) -> None:
    seen = scrape(web)
    # Present while there are any.
    there = {name for name, _ in seen.samples} | {"distkv_debt_blocks"}
    asked = {name for text in expressions(DOCS / name) for name in NAME.findall(text)}
    assert len(asked) >= 7
    assert asked - there == set()


def test_labels_that_are_asked_for_exist(web: Running) -> None:
    labels = {label for _, labels in scrape(web).samples for label, _ in labels}
    # What Prometheus adds, and those of debts.
    labels |= {"instance", "creditor", "debtor"}
    for name in ("grafana.json", "alerts.yml"):
        for text in expressions(DOCS / name):
            grouped = re.findall(r"by \(([\w, ]+)\)", text)
            asked = {word for group in grouped for word in re.findall(r"\w+", group)}
            asked |= set(re.findall(r'[{ ](\w+)=~?"', text))
            assert asked <= labels, text
