"""A real Kubernetes on one Linux machine without a container engine: control plane, three nodes, object storage."""
