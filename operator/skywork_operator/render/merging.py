"""Patches over a pod template, as Kubernetes' strategic merge patch does it."""

import copy
from typing import Any

# Merge keys of the lists that a pod template patch may name, as in Kubernetes' strategic merge patch.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
}


def merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`base` with `patch` over it: objects merge, named lists merge by their key, other lists and values replace."""
    out = copy.deepcopy(base)
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        elif isinstance(value, list) and isinstance(out.get(key), list) and key in _MERGE_KEYS:
            out[key] = _merge_list(out[key], value, _MERGE_KEYS[key])
        else:
            out[key] = copy.deepcopy(value)
    return out


def _merge_list(base: list[Any], patch: list[Any], name: str) -> list[Any]:
    merged = {item[name]: item for item in base}
    for item in patch:
        merged[item[name]] = merge(merged[item[name]], item) if item[name] in merged else item
    return list(merged.values())
