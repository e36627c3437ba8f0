"""Where agents are asked."""

from skywork_trainer.config import AGENT_PORT


def agent_url(ip: str, path: str) -> str:
    """The address of a page of the agent in the pod at `ip`, IPv4 or IPv6."""
    host = f"[{ip}]" if ":" in ip else ip
    return f"http://{host}:{AGENT_PORT}{path}"
