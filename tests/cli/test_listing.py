"""`ml-dash ls`, and which experiment a command means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Record, Shell  # type: ignore[import-not-found]
