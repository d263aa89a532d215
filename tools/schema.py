"""JSON Schemas that others wrote: what a model is shown of them, and what judges arguments by them.

A schema is read once, when its tool is declared: whatever could go wrong with it later is refused
then, by the tool's name. Arguments are judged by the schema as it was written; a model is shown it
with its references replaced by what they name, since most models were trained on such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import referencing.exceptions
import referencing.jsonschema
from jsonschema.protocols import Validator
from jsonschema_specifications import REGISTRY

from journeyman.tools.errors import ToolDefinitionError
from journeyman.tools.patterns import compiled, matches
from journeyman.tools.types import ToolSpec, laid_on
from journeyman.tools.validators import draft_of, judge

MAX_NODES = 2_000
"""Largest schema that is shown without its references, in subschemas."""

# Where schemas stand within a schema. All else is data, whatever it looks like.
_NAMED = ("properties", "patternProperties", "dependentSchemas", "dependencies")
_DEFINED = ("$defs", "definitions")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    *("not", "if", "then", "else", "items", "contains", "additionalItems", "unevaluatedItems"),
    *("additionalProperties", "unevaluatedProperties", "propertyNames", "contentSchema"),
)
_SAME = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies")
"""Keywords whose schemas are laid on the very value that theirs is laid on."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
"""References that name something else for every schema around them."""
_IDENTITIES = ("$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor")
_NOTES = {"description", "title", "default", "examples", "deprecated", "nullable"}
"""Keywords that may stand beside a reference without asking for more."""
_NEIGHBOURS = {
    *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties"),
    *("prefixItems", "items", "additionalItems", "unevaluatedItems", "contains", "minContains"),
    *("maxContains", "if", "then", "else"),
}
"""Keywords whose meaning depends on what stands beside them."""


@dataclass(frozen=True)
class Parameters:
    """The arguments of a tool, by a schema that was found usable."""

    shown: Mapping[str, Any]
    """What a model is shown: an object schema, with references only where they lead back."""
    validator: Validator
    """Judges by the schema as it was written."""


def read_spec(given: ToolSpec | Mapping[str, Any]) -> tuple[ToolSpec, Parameters]:
    """A tool's name, description and arguments.

    Args:
        given: A `ToolSpec`; or a mapping with "name", "description" and "parameters", by itself or
            under "function", as OpenAI and chat templates have it.

    Returns:
        The spec as a model is shown it, and what judges by it.

    Raises:
        ToolDefinitionError: No name, or a schema that cannot be used; see `read_parameters`.
    """
    if isinstance(given, ToolSpec):
        name, description, parameters = given.name, given.description, given.parameters
    else:
        function = given.get("function", given)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise ToolDefinitionError(
                f"a tool's schema needs a name: expected text under 'name', found {name!r}"
            )
        description = function.get("description") or ""
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
    try:
        read = read_parameters(parameters)
    except ToolDefinitionError as error:
        raise ToolDefinitionError(f"tool {name!r}: {error}") from None
    return ToolSpec(name, description, read.shown), read


def read_parameters(given: Any) -> Parameters:
    """Read the schema of a tool's arguments.

    Args:
        given: JSON Schema of an object, in draft-04 or a later draft.

    Raises:
        ToolDefinitionError: Not a schema, none of an object, or with something in it that cannot
            be honoured: a reference that leads out of it or into itself without end, or a pattern
            that is none.
    """
    if given is True:
        given = {}
    if not isinstance(given, Mapping):
        raise _not_an_object(given)
    try:
        schema = _plain(given)
        draft = draft_of(schema, legacy=any("dependencies" in node for node in _below(schema)))
        references = _References(schema, draft)
        shown = _Display(references).root()
        _check(references, draft)
    except RecursionError:
        raise ToolDefinitionError("its schema is nested too deeply") from None
    kinds = shown.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise _not_an_object(given)
    if not shown:  # templates look into the properties
        shown = {"properties": {}, "additionalProperties": True}
    if shown.get("type") != "object":
        shown = {"type": "object", **{k: v for k, v in shown.items() if k != "type"}}
    return Parameters(shown, judge(schema, draft))


def known_names(spec: ToolSpec) -> Callable[[str], bool]:
    """True of the names that arguments may have by a schema, as far as it says.

    JSON Schema allows any name that it does not forbid. Where a tool's schema lists names and says
    nothing of others, a name that is not there is taken for a mistake.
    """
    parts = list(laid_on(spec.parameters))
    lists = any("properties" in part or "patternProperties" in part for part in parts)
    others = ("additionalProperties", "unevaluatedProperties")
    # A reference that stayed, in a schema too large to be shown without, may list names too.
    if not lists or any(
        part.get(key, False) is not False for part in parts for key in (*others, "$ref")
    ):
        return lambda name: True
    names = frozenset((*spec.properties, *spec.required))
    patterns = [p for part in parts for p in part.get("patternProperties", ())]
    if not patterns:
        return names.__contains__
    return lambda name: name in names or any(matches(pattern, name) for pattern in patterns)


def _not_an_object(given: Any) -> ToolDefinitionError:
    return ToolDefinitionError(
        f"parameters must be a JSON Schema of type 'object' with 'properties', not "
        f"{str(given)[:80]}"
    )


def _plain(node: Any) -> Any:
    """A copy of our own, of dicts and lists; names are text, as JSON would write them."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(item) for item in node]
    return node


def _children(node: dict[str, Any], only: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The schemas right below one, those that are true or false left out.

    Args:
        node: A schema.
        only: Keywords to look at; none for all.
    """
    for key, value in node.items():
        under: Any = ()
        if isinstance(value, dict):
            under = value.values() if key in _NAMED + _DEFINED else (value,) * (key in _SINGLE)
        elif isinstance(value, list) and key in _LISTED:
            under = value
        if not only or key in only:
            yield from (child for child in under if isinstance(child, dict))


def _below(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and all that are written in it."""
    yield node
    for child in _children(node):
        yield from _below(child)


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _dicts(value)


class _References:
    """What the references of one schema name."""

    def __init__(self, root: dict[str, Any], draft: type[Validator]) -> None:
        uri = str(draft.META_SCHEMA.get("$schema"))
        self._specification = referencing.jsonschema.specification_with(uri)
        self.root = root
        resource = self._specification.create_resource(root)
        self.resolver: Any = REGISTRY.resolver_with_root(resource)
        """Of what stands in the root."""
        self.siblings = not any(name in uri for name in ("draft-04", "draft-06", "draft-07"))
        """False if nothing counts that stands beside a reference."""
        self.own = {id(node) for node in _dicts(root)}
        """Identities of all that is written in the schema; what else is reached is a standard's."""

    def within(self, node: dict[str, Any], resolver: Any) -> Any:
        """The resolver of what stands in a schema, by that of where the schema stands."""
        if node is self.root:
            return resolver
        return resolver.in_subresource(self._specification.create_resource(node))

    def target(self, node: dict[str, Any], resolver: Any) -> tuple[Any, Any] | None:
        """What a schema refers to, and the resolver of where that stands; None if to nothing.

        Raises:
            ToolDefinitionError: There is no such schema.
        """
        reference = next((node[key] for key in _REFERENCES if isinstance(node.get(key), str)), None)
        if reference is None:
            return None
        named = f"the reference {reference[:80]!r}"
        try:
            found = resolver.lookup(reference)
        except (referencing.exceptions.Unresolvable, LookupError, TypeError, ValueError):
            if reference.startswith("#"):
                raise ToolDefinitionError(f"{named} names nothing in the schema") from None
            raise ToolDefinitionError(
                f"{named} leads out of the schema; only local ones such as '#/$defs/Point' are "
                f"followed: put what it names under '$defs'"
            ) from None
        if not isinstance(found.contents, dict | bool):
            raise ToolDefinitionError(f"{named} names no schema, but {str(found.contents)[:40]!r}")
        return found.contents, found.resolver


class _TooLarge(Exception):
    """Without its references the schema would be far larger than it is."""


class _Display:
    """A schema with what its references name in their places.

    One that leads back to where it stands stays, and what it names comes under "$defs".
    """

    def __init__(self, references: _References) -> None:
        self._references = references
        self._inline = True
        """False if all references stay but those of the root itself."""
        self._nodes = 0
        self._kept: dict[int, tuple[str, Any, Any]] = {}
        """What stays named: name, schema and resolver by the schema's identity."""

    def root(self) -> dict[str, Any]:
        try:
            return self._root()
        except _TooLarge:
            self._inline, self._kept = False, {}
            return self._root()

    def _root(self) -> dict[str, Any]:
        root, resolver = self._references.root, self._references.resolver
        shown = self._schema(root, resolver, (id(root),), top=True)
        if not isinstance(shown, dict):
            raise _not_an_object(shown)
        named: dict[str, Any] = {}
        while len(named) < len(self._kept):
            for key, (name, target, where) in list(self._kept.items()):
                if name not in named:
                    named[name] = self._schema(target, where, (key,))
        return shown | ({"$defs": named} if named else {})

    def _schema(self, node: Any, resolver: Any, path: tuple[int, ...], top: bool = False) -> Any:
        """How a schema is shown.

        Args:
            node: The schema.
            resolver: Of where it stands.
            path: Identities of what is being shown around it.
            top: It is laid on the arguments themselves.
        """
        if not isinstance(node, dict):
            return node
        self._nodes += 1
        if self._inline and self._nodes > MAX_NODES:
            raise _TooLarge
        resolver = self._references.within(node, resolver)
        found = self._references.target(node, resolver)
        root = node is self._references.root
        dropped = _REFERENCES if root else _REFERENCES + _IDENTITIES
        beside = {key: value for key, value in node.items() if key not in dropped}
        if found is not None and not self._references.siblings:
            beside = {key: value for key, value in beside.items() if key in _NOTES}
        beside = self._parts(beside, resolver, path, top)
        if found is None:
            return beside
        target, where = found
        if isinstance(target, dict) and id(target) not in self._references.own:
            return {**{key: node[key] for key in _REFERENCES if key in node}, **beside}
        stays = any(key in node for key in _DYNAMIC) or not (self._inline or top)
        if stays or id(target) in path:
            return {"$ref": self._name(target, where, node), **beside}
        inner = self._schema(target, where, (*path, id(target)), top)
        if not isinstance(inner, dict):
            return inner and beside
        asked = beside.keys() - _NOTES
        if all(inner.get(key, beside[key]) == beside[key] for key in asked) and not (
            asked & _NEIGHBOURS and inner.keys() & _NEIGHBOURS
        ):
            return {**inner, **beside}
        return {"allOf": [inner], **beside}

    def _parts(
        self, node: dict[str, Any], resolver: Any, path: tuple[int, ...], top: bool
    ) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key, value in node.items():
            if key in _DEFINED:
                continue
            same = top and key in _SAME
            if isinstance(value, dict) and key in _NAMED:
                value = {n: self._schema(it, resolver, path, same) for n, it in value.items()}
            elif isinstance(value, dict) and key in _SINGLE:
                value = self._schema(value, resolver, path, same)
            elif isinstance(value, list) and key in _LISTED:
                value = [self._schema(it, resolver, path, same) for it in value]
            shown[key] = value
        return shown

    def _name(self, target: Any, resolver: Any, node: dict[str, Any]) -> str:
        """The reference to a schema that stays named."""
        if target is self._references.root:
            return "#"
        if id(target) not in self._kept:
            reference = next(str(node[key]) for key in _REFERENCES if key in node)
            name = re.sub(r"\W+", "_", re.split("[/#]", reference)[-1]) or "schema"
            taken = {it[0] for it in self._kept.values()}
            while name in taken:
                name += "_"
            self._kept[id(target)] = (name, target, resolver)
        return f"#/$defs/{self._kept[id(target)][0]}"


def _check(references: _References, draft: type[Validator]) -> None:
    """Look at every schema that is reached, and drop its "$schema": jsonschema would change draft.

    Raises:
        ToolDefinitionError: One of them cannot be honoured.
    """
    unevaluated = any("unevaluatedProperties" in node for node in _below(references.root))
    reached: dict[int, list[Any]] = {}
    """What is laid on the same value as each schema, by its identity."""
    waiting: list[tuple[Any, Any]] = [(references.root, references.resolver)]
    while waiting:
        node, resolver = waiting.pop()
        if id(node) not in references.own or id(node) in reached:
            continue
        resolver = references.within(node, resolver)
        other = "$schema" in node and draft_of({"$schema": node.pop("$schema")}) is not draft
        if other:
            raise ToolDefinitionError("it mixes dialects: every '$schema' in it must be the same")
        _check_patterns(node, unevaluated)
        target = references.target(node, resolver)
        reached[id(node)] = [*_children(node, _SAME), *([target[0]] if target else [])]
        waiting += [(child, resolver) for child in _children(node)] + ([target] if target else [])
    ends: dict[int, bool] = {}
    for start in reached:
        _check_end(start, reached, ends)


def _check_patterns(node: dict[str, Any], unevaluated: bool) -> None:
    names = node.get("patternProperties")
    patterns = list(names) if isinstance(names, dict) else []
    patterns += [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    for pattern in patterns:
        try:
            compiled(pattern)
            if unevaluated and pattern != node.get("pattern"):
                re.compile(pattern)  # jsonschema asks Python what it has evaluated
        except (ValueError, re.error) as error:
            raise ToolDefinitionError(
                f"the pattern {pattern[:80]!r} cannot be used: {error}"
            ) from None


def _check_end(node: int, reached: Mapping[int, list[Any]], ends: dict[int, bool]) -> None:
    """Whether judging a value by a schema comes to an end, whatever the value."""
    if ends.get(node, True) is False:
        raise ToolDefinitionError(
            "a reference in it leads back to itself without looking into the arguments, so that "
            "judging them would never end"
        )
    if node in ends:
        return
    ends[node] = False
    for other in reached.get(node, ()):
        _check_end(id(other), reached, ends)
    ends[node] = True
