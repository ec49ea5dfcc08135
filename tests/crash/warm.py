"""Imports, before any victim is forked, what victims need."""

import filelock
import msgpack
import msgspec

import ml_dash
import ml_dash.projection.project
import ml_dash.read

from . import victims

__all__ = ["filelock", "ml_dash", "msgpack", "msgspec", "victims"]
