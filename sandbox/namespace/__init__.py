"""Isolation by Linux namespaces."""

from journeyman.sandbox.namespace.backend import NamespaceBackend

__all__ = ["NamespaceBackend"]
