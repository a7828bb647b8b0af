"""What pydantic finds wrong, as a user reads it: one line per fault, with the place and the key before it."""

from collections.abc import Iterator

from pydantic import BaseModel, ValidationError

KEYS = {"extra_forbidden": "unknown key", "missing": "missing key", "model_type": "no keys in"}


def told(error: ValidationError, where: object, model: type[BaseModel] | None = None) -> str:
    """The faults. where: the file, or what was given. model: whose keys are named where one is wrong or missing."""
    return "\n".join(": ".join(filter(None, (str(where), *parts))) for parts in _faults(error, model))


def _faults(error: ValidationError, model: type[BaseModel] | None) -> Iterator[tuple[str, ...]]:
    for fault in error.errors(include_url=False):
        place = [part for part in fault["loc"] if part != "[key]"]
        key, message, found = ".".join(map(str, place)), fault["msg"].removeprefix("Value error, "), fault["input"]
        if model is not None and fault["type"] in KEYS:
            keys = ", ".join(_holder(model, place if fault["type"] == "model_type" else place[:-1]).model_fields)
            yield (f"{KEYS[fault['type']]} {key or 'the description'}; the keys are {keys}",)
        elif isinstance(found, dict | list | None) or (isinstance(found, str) and repr(found) in message):
            yield key, message
        else:
            yield key, f"{message}, found {found!r}"


def _holder(model: type[BaseModel], place: list) -> type[BaseModel]:
    """The model that the keys at a place belong to."""
    for part in place:
        model = model.model_fields[part].annotation
    return model
