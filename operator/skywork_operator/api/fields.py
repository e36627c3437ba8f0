"""What every model of the API is made of: its base, its kinds of text, and the marks that the CRD carries."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from pydantic.types import StringConstraints

from skywork_operator.api.quantities import DECIMAL_PATTERN, DURATION_PATTERN, QUANTITY_PATTERN

Name = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Uri = Annotated[str, StringConstraints(min_length=6, max_length=1024, pattern=r"^(s3|file)://.+$")]
Quantity = Annotated[str, StringConstraints(max_length=24, pattern=QUANTITY_PATTERN)]
Duration = Annotated[str, StringConstraints(min_length=2, max_length=24, pattern=DURATION_PATTERN)]
Decimal = Annotated[str, StringConstraints(max_length=24, pattern=DECIMAL_PATTERN)]


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for a model's schema, as (rule, message) pairs."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def list_map(*keys: str) -> dict[str, Any]:
    """Schema marks of a list whose items are told apart by `keys`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def atomic() -> dict[str, Any]:
    """Schema mark of a list that is replaced as a whole."""
    return {"x-kubernetes-list-type": "atomic"}


class Base(BaseModel):
    """Camel-case JSON, closed to unknown fields, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )
