"""What a model can read of a tool's result: between `server.py` and `ToolResult.content`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp.types import CallToolResult, ContentBlock, EmbeddedResource, ResourceLink


def readable(result: CallToolResult) -> Any:
    """Text of all parts; the structured content where there is none, or below what it adds to.

    What is no text stands there by kind, MIME type and size, such as `[image, image/png, 2 bytes]`.
    """
    if not result.content:
        return result.structured_content
    parts = [_part(part) for part in result.content]
    structured = result.structured_content
    if structured is not None and not _says(parts, structured):
        parts.append(json.dumps(structured, ensure_ascii=False))
    return "\n".join(parts)


def _part(part: ContentBlock) -> str:
    if part.type == "text":
        return part.text
    if part.type == "resource":
        return _resource(part)
    if part.type == "resource_link":
        return _link(part)
    return _label(part.type, part.mime_type, _size(part.data))


def _resource(part: EmbeddedResource) -> str:
    found = part.resource
    if hasattr(found, "text"):
        return f"{_label(f'resource {found.uri}', found.mime_type)}\n{found.text}"
    return _label(f"resource {found.uri}", found.mime_type or "no text", _size(found.blob))


def _link(part: ResourceLink) -> str:
    size = None if part.size is None else f"{part.size} bytes"
    label = _label(f"link to {part.uri}", part.title or part.name, part.mime_type, size)
    return f"{label} {part.description}" if part.description else label


def _label(*parts: str | None) -> str:
    return f"[{', '.join(part for part in parts if part)}]"


def _size(base64: str) -> str:
    return f"{len(base64.rstrip('=')) * 3 // 4} bytes"


def _says(parts: list[str], structured: dict[str, Any]) -> bool:
    """The text says it already: as it is, or as SDKs write what is no object, under "result"."""
    values = [_as_json(part) for part in parts]
    told = [*values, values, *parts]
    inner = [structured["result"]] if structured.keys() == {"result"} else []
    return any(value in told for value in (structured, *inner))


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
