"""The schema of the chart's values, as JSON: Helm refuses the values that the command refuses.

Both use the patterns and bounds of `values`. What depends on two values or on the release is checked in the chart's
helpers.

>>> schema()["properties"]["replicas"]
{'type': 'integer', 'minimum': 0, 'maximum': 10000}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from re import Pattern
from typing import Any

from meshray.defaults import LONGEST_DURATION_S, MOST_GPUS, MOST_PODS
from meshray.model.ray_options import LABEL_NAME, LABEL_PREFIX, LABEL_RESERVED_PREFIX, LEAST_STORE
from meshray.render.kubernetes import values

_FLAG: Mapping[str, Any] = {"type": "boolean"}
_OBJECT: Mapping[str, Any] = {"type": "object"}
_OBJECTS: Mapping[str, Any] = {"type": "array", "items": _OBJECT}
#: `--set` makes a number of a word that looks like one, and Kubernetes wants texts here.
_TEXTS: Mapping[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def schema() -> dict[str, Any]:
    """Return the schema. Helm calls a value without a property a mistake, such as `replica`."""
    label = f"(({LABEL_PREFIX.pattern})/)?({LABEL_NAME.pattern})=({LABEL_NAME.pattern})?"
    resource = {"type": "string", "pattern": _whole(values.RESOURCE)}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "image": {"type": "string", "maxLength": values.LONGEST_IMAGE, "pattern": _whole(values.IMAGE)},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
            "pullSecret": _or_empty(values.SECRET),
            "replicas": _integer(0, MOST_PODS),
            "cpu": _CPU,
            "memory": _MEMORY,
            "cpuRequest": {"anyOf": [{"const": ""}, _CPU]},
            "memoryRequest": {"anyOf": [{"const": ""}, _MEMORY]},
            "gpus": _integer(0, MOST_GPUS),
            "gpuResource": resource,
            "objectStoreMemory": _integer(LEAST_STORE, 2**53),
            "tokenSecret": {"type": "string", "pattern": _whole(values.SECRET)},
            "tun": {"anyOf": [{"enum": [values.TUN_OF_HOST, values.NO_TUN]}, resource]},
            "rootless": _FLAG,
            "readOnlyRootFilesystem": _FLAG,
            "drainSeconds": _integer(0, LONGEST_DURATION_S),
            "labels": _list(
                {"type": "string", "pattern": f"^{label}$", "not": {"pattern": f"^{re.escape(LABEL_RESERVED_PREFIX)}/"}}
            ),
            "rayArgs": _list({"type": "string", "not": {"pattern": r"[\x00-\x1f\x7f]"}}),
            "logFormat": {"enum": ["", "json"]},
            "podAnnotations": _TEXTS,
            "runtimeClassName": _or_empty(values.SECRET),
            "priorityClassName": _or_empty(values.SECRET),
            "nodeSelector": _TEXTS,
            "tolerations": _OBJECTS,
            "affinity": _OBJECT,
            "extraVolumes": _OBJECTS,
            "extraVolumeMounts": _OBJECTS,
            # Helm adds it where the chart is part of another.
            "global": _OBJECT,
        },
        "if": {"properties": {"rootless": {"const": True}}},
        "then": {"properties": {"tun": resource}},
    }


def _whole(pattern: Pattern[str]) -> str:
    return f"^({pattern.pattern})$"


def _or_empty(pattern: Pattern[str]) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^({pattern.pattern})?$"}


def _integer(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _list(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_ZERO: Mapping[str, Any] = {"not": {"pattern": r"^[0.]*[A-Za-z]*$"}}
_CPU: Mapping[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": f"^({values.NUMBER})m?$", **_ZERO},
        {"type": "number", "exclusiveMinimum": 0},
    ]
}
_MEMORY: Mapping[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": _whole(values.QUANTITY), "not": {"pattern": r"^[0.]*[A-Za-z]*$|m$"}},
        {"type": "integer", "minimum": 1},
    ]
}
