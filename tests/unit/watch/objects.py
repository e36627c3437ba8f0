"""A run as the API server tells of it, in the middle of its last stage."""

from typing import Any

NOW = 1_764_000_000.0  # 2025-11-24T16:00:00Z


def run(**status: Any) -> dict[str, Any]:
    """The object; keywords replace fields of the status, None takes one away."""
    told: dict[str, Any] = {
        "state": "Training",
        "stage": "stem",
        "step": 182_000,
        "tokens": 3_050_000_000_000,
        "progress": "97%",
        "trainLoss": "1.6617",
        "learningRate": "0.00006",
        "tokensPerSecond": 951_000,
        "modelFlopsUtilization": "0.559",
        "goodput": "0.973",
        "valLoss": "1.2932",
        "time": {"train": 973, "validate": 17, "idle": 10, "lost": 0},
        "estimatedCompletion": "2025-11-25T15:30:00Z",
        "eta": "23h30m",
        "selector": "skywork.dev/run=skywork-13b",
        "nodes": {"desired": 64, "ready": 63, "training": 63, "summary": "63/64"},
        "stragglers": [{"node": "gpu-17", "pod": "p", "slowdown": "1.31", "time": "2025-11-24T15:00:00Z"}],
        "nodeStrikes": [
            {"node": "gpu-40", "strikes": 3, "reason": "HardwareFault", "time": "", "avoided": True},
            {"node": "gpu-41", "strikes": 1, "reason": "Hang", "time": ""},
        ],
        "restarts": {
            "total": 34,
            "byReason": [{"reason": "NodeLost", "count": 8}, {"reason": "Hang", "count": 3}],
            "last": {"reason": "NodeLost", "message": "gpu-40 is gone", "time": "2025-11-24T14:00:00Z"},
        },
        "lastCheckpoint": {"step": 181_980, "uri": "s3://runs/a", "time": "2025-11-24T15:54:00Z"},
        "validationLoss": [
            {"domain": "en-web", "loss": "1.7542", "step": 181_920, "bitsPerByte": "0.6172", "referenceLoss": "1.6867"},
            {"domain": "code", "loss": "0.8322", "step": 181_920, "bitsPerByte": "0.2928"},
        ],
        "stages": [
            {"name": "general", "tokens": 3_000_000_000_000},
            {
                "name": "stem",
                "tokens": 50_000_000_000,
                "validationLoss": [
                    {"domain": "en-web", "start": "1.7251", "end": "1.7542"},
                    {"domain": "code", "start": "0.9535", "end": "0.8322"},
                ],
            },
        ],
        "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Valid", "message": ""},
            {"type": "Running", "status": "True", "reason": "Training", "message": ""},
            {
                "type": "Forgetting",
                "status": "True",
                "reason": "GeneralDomainsRise",
                "message": "en-web is 0.0291 above where the stage began; lower its share or rate",
            },
            {"type": "Plateau", "status": "False", "reason": "StillFalling", "message": "falls"},
        ],
    }
    told |= status
    return {
        "metadata": {"name": "skywork-13b", "namespace": "research", "uid": "u1"},
        "spec": {
            "checkpoints": {"uri": "s3://runs/a"},
            "stages": [{"name": "general", "tokens": "3T"}, {"name": "stem", "tokens": "130G"}],
        },
        "status": {name: value for name, value in told.items() if value is not None},
    }


EVENTS = (
    {"type": "Warning", "reason": "NodeLost", "message": "gpu-40 is gone", "lastTimestamp": "2025-11-24T14:00:00Z"},
    {"type": "Normal", "reason": "Resumed", "message": "63 nodes train", "eventTime": "2025-11-24T14:00:40.123456Z"},
)
PROGRESS = {
    "grad_norm": 0.284,
    "validation_curve": [
        {"step": step, "stage": "stem", "losses": {"en-web": 1.72 + step / 1e4, "code": 0.95 - step / 1e3}}
        for step in range(0, 120, 10)
    ],
}
