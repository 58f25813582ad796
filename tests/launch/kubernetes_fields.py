"""Fields of Kubernetes' objects: names, types and which must be there.

`kubernetes_fields.json` has those of the kinds that `distkv launch` writes, as Kubernetes' own
Python client 31.0 (of Kubernetes 1.31) and LeaderWorkerSet's v1 API define them; what no manifest
of ours goes into is "object".
"""

import json
from pathlib import Path

FIELDS: dict[str, dict[str, object]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)
PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "object": object}


def complaints(value: object, kind: str, at: str = "") -> list[str]:
    """List what is wrong with a value that should be of a kind."""
    form, _, inner = kind.partition(" ")
    if form in ("list", "dict"):
        want = list if form == "list" else dict
        if not isinstance(value, want):
            return [f"{at} is no {form}"]
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [told for key, one in items for told in complaints(one, inner, f"{at}[{key}]")]
    if kind in PLAIN:
        # Python's booleans are integers, Kubernetes' are not.
        is_other = kind == "int" and isinstance(value, bool)
        return [] if isinstance(value, PLAIN[kind]) and not is_other else [f"{at} is no {kind}"]
    if not isinstance(value, dict):
        return [f"{at} is no {kind}"]
    fields, required = FIELDS[kind]["fields"], FIELDS[kind]["required"]
    assert isinstance(fields, dict) and isinstance(required, list)
    found = [f"{at} lacks {name}" for name in required if name not in value]
    for name, one in value.items():
        if name not in fields:
            found.append(f"{at} has no {name}")
        else:
            found += complaints(one, fields[name], f"{at}.{name}")
    return found
