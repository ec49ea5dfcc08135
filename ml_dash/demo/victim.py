"""The training process that the demo kills: it prints each acknowledged call on stdout.

Each line is written when a call has returned, and not before: from these lines alone the parent, which
survives, knows what must be found afterwards. What is judged does not judge itself.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, cast

from ml_dash import Experiment
from ml_dash.demo.train import train


def say(kind: str, *facts: object) -> None:
    """One line, by one write: a kill may come before it or after it."""
    os.write(1, (json.dumps([kind, *facts]) + "\n").encode())


class Witness:
    """An experiment whose recording calls are reported when they have returned; all else is its own."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._experiment, name)

    def log(self, message: str, **extra: Any) -> None:
        self._experiment.log(message, **extra)
        say("log", message)

    def metric(self, name: str) -> _MetricWitness:
        return _MetricWitness(self._experiment, name)

    def parameters(self) -> _ParametersWitness:
        return _ParametersWitness(self._experiment)

    def file(self, *source: str, **options: Any) -> Any:
        result = self._experiment.file(*source, **options)
        if source:
            say("file", result["id"], result["checksum"])
        return result


class _MetricWitness:
    def __init__(self, experiment: Experiment, name: str) -> None:
        self._experiment = experiment
        self._name = name

    def append(self, **fields: Any) -> None:
        self._experiment.metric(self._name).append(**fields)
        say("point", self._name, fields)


class _ParametersWitness:
    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def set(self, **values: Any) -> None:
        self._experiment.parameters().set(**values)
        say("parameters", values)


def main(name: str, path: str, resume: str) -> None:
    with Experiment(name, "demo", local_path=path or None, resume=resume) as experiment:
        train(cast(Experiment, Witness(experiment)))
    say("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
