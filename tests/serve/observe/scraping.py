"""Scrapes as Prometheus makes them."""

import collections
import urllib.error
import urllib.request
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.running import Running

Labels = frozenset[tuple[str, str]]


class Scraped(NamedTuple):
    """Samples by name and labels."""

    samples: dict[tuple[str, Labels], float]
    types: dict[str, str]

    def value(self, name: str, **labels: str) -> float:
        """The one sample of that name and those labels."""
        return self.samples[f"distkv_{name}", frozenset(labels.items())]

    def of(self, name: str) -> dict[Labels, float]:
        """All samples of a name."""
        whole = f"distkv_{name}"
        return {labels: value for (one, labels), value in self.samples.items() if one == whole}

    def since(self, before: "Scraped") -> dict[str, float]:
        """What counters have counted since, by `name{values of labels}`; zeros are left out."""
        grown: dict[str, float] = collections.defaultdict(float)
        for (name, labels), value in self.samples.items():
            if name.endswith(("_total", "_count", "_sum")) and name.startswith("distkv_"):
                more = value - before.samples[name, labels]
                values = ",".join(one for _, one in sorted(labels))
                if more:
                    grown[name.removeprefix("distkv_") + f"{{{values}}}" * bool(values)] = more
        return grown


def get(service: Running, path: str, **headers: str) -> tuple[int, str, str]:
    """Ask the HTTP door: status, content type and text."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.server.http_port}{path}", headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def scrape(service: Running) -> Scraped:
    """Read all metrics."""
    status, _, text = get(service, "/metrics")
    assert status == 200, text
    return parsed(text)


def parsed(text: str) -> Scraped:
    """Read the text format."""
    families = list(text_string_to_metric_families(text))
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    return Scraped(samples, {family.name: family.type for family in families})
