"""The CustomResourceDefinition, generated from the typed models: `python -m skywork_operator.api.crd`."""

import argparse
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from skywork_operator.api import GROUP, KIND, PLURAL, VERSION
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec

_COLUMNS = [
    ("State", "string", ".status.state", 0, "What the run is doing"),
    ("Stage", "string", ".status.stage", 0, "Stage being trained"),
    ("Progress", "string", ".status.progress", 0, "Part of all tokens that is trained"),
    ("Tokens", "string", ".status.tokensSummary", 0, "Tokens trained"),
    ("Val-Loss", "string", ".status.valLoss", 0, "Mean validation loss of all domains"),
    ("Nodes", "string", ".status.nodes.summary", 0, "Nodes of the current world, and nodes asked for"),
    ("Restarts", "integer", ".status.restarts.total", 0, "Generations that ended early"),
    ("ETA", "string", ".status.eta", 0, "How long training will still take"),
    ("Step", "integer", ".status.step", 1, "Steps done"),
    ("Loss", "string", ".status.trainLoss", 1, "Newest training loss"),
    ("Goodput", "string", ".status.goodput", 1, "Part of the time in which steps were trained that count"),
    ("Tokens/s", "integer", ".status.tokensPerSecond", 1, "Newest throughput over all nodes"),
    ("Generation", "integer", ".status.generation", 1, "Newest generation"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the run was created"),
]

_NAME_RULE = {
    "rule": "size(self.metadata.name) <= 40",
    "message": "metadata.name must have at most 40 characters: the names of Jobs and pods are made from it",
}
# Job and pod names are <run>-<stage>-<index>-xxxxx; the longest must stay a valid DNS label.
_STAGE_NAME_RULE = {
    "rule": "self.spec.stages.all(s, size(self.metadata.name) + size(s.name) <= 50)",
    "message": "metadata.name and a spec.stages[].name together must have at most 50 characters",
}
# Both look at the old status, which an update of the spec leaves as it is; the record of a stage is written before its
# Job is made, so no started stage is ever missed. Stages start in order: the first N records are the first N stages.
_STARTED_RULE = {
    "rule": "!has(oldSelf.status) || !has(oldSelf.status.stages) || ["
    + ", ".join(str(i) for i in range(32))
    + "].all(i, i >= size(oldSelf.status.stages) || (i < size(self.spec.stages) && "
    "self.spec.stages[i] == oldSelf.spec.stages[i]))",
    "message": "spec.stages: stages that have started (see status.stages) cannot be changed, removed or reordered, and "
    "stay first; those after them may be edited",
}
_PREPARING_RULE = {
    "rule": "!has(oldSelf.status) || !has(oldSelf.status.sources) || oldSelf.spec.sources.all(o, "
    "!oldSelf.status.sources.exists(p, p.name == o.name && has(p.phase) && p.phase in ['Scanning', 'Writing']) || "
    "self.spec.sources.exists(n, n.name == o.name && has(n.prepare) == has(o.prepare) && "
    "(!has(o.prepare) || n.prepare == o.prepare)))",
    "message": "spec.sources[].prepare cannot be changed while the source is being prepared (see status.sources)",
}


def crd() -> dict[str, Any]:
    """The CRD as plain data: structural schema, defaults, CEL rules, printer columns, status subresource."""
    schema = {
        "type": "object",
        "description": "A whole multi-stage pre-training run: model, data, recipe, validation and checkpoints.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(SkyworkRunSpec),
            "status": _structural(SkyworkRunStatus),
        },
        "x-kubernetes-validations": [_NAME_RULE, _STAGE_NAME_RULE, _STARTED_RULE, _PREPARING_RULE],
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": text}
        for name, kind, path, priority, text in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "skyworkrun",
                "shortNames": ["swr"],
                "categories": ["skywork"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.trainer.nodes.max",
                            "statusReplicasPath": ".status.nodes.ready",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


def _structural(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a model without references, nulls and titles, which the API server does not accept."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.pop("$defs", {})

    def clean(node: Any) -> Any:
        if isinstance(node, list):
            return [clean(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            target = definitions[node["$ref"].rsplit("/", 1)[-1]]
            return clean({**target, **{k: v for k, v in node.items() if k != "$ref"}})
        if "anyOf" in node:
            (kept,) = [option for option in node["anyOf"] if option.get("type") != "null"]
            rest = {k: v for k, v in node.items() if k not in ("anyOf", "default", "title")}
            return clean({**kept, **rest})
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key == "properties":
                out[key] = {name: clean(child) for name, child in value.items()}
            elif key == "const":
                out["enum"] = [value]
            elif key == "additionalProperties" and (value is False or node.get("x-kubernetes-preserve-unknown-fields")):
                continue
            elif key == "default":
                out[key] = _without_nulls(value)
            elif key != "title":
                out[key] = value if key in ("enum", "required") else clean(value)
        if out.get("type") == "integer":
            out["format"] = "int64"
        if isinstance(out.get("description"), str):
            out["description"] = " ".join(out["description"].split())
        return out

    cleaned: dict[str, Any] = clean(schema)
    return cleaned


def _without_nulls(value: Any) -> Any:
    """A default as the API server takes it: what is optional and not given is absent, not null."""
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return value


def render() -> str:
    """The CRD as YAML, with a head line that says where it comes from."""

    # PyYAML leaves 1e-8 bare, which Kubernetes' YAML 1.2 reads as a number: the default would change its type.
    class Quoted(yaml.SafeDumper):
        pass

    def quote(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "'" if text[:1].isdigit() else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Quoted.add_representer(str, quote)
    return "# Generated by `make generate` from operator/skywork_operator/api; do not edit.\n" + yaml.dump(
        crd(), Dumper=Quoted, sort_keys=False, width=120
    )


def main() -> None:
    """Write the CRD to each path given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    for path in parser.parse_args().paths:
        path.write_text(render())


if __name__ == "__main__":
    main()
