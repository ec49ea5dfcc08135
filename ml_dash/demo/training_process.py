"""The training process that the demo kills: it prints each acknowledged call on stdout.

A line is written after its call has returned. From these lines the parent, which survives, knows what must be found
afterwards, so that the library is not asked to judge itself.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, cast

from ml_dash import Experiment
from ml_dash.demo.train import train


def report(kind: str, *facts: object) -> None:
    """Write one line by one `write`: a kill may come before it or after it, but not in the middle."""
    os.write(1, (json.dumps([kind, *facts]) + "\n").encode())


class ReportingExperiment:
    """An experiment that reports each recording call after it has returned; everything else is passed through."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._experiment, name)

    def log(self, message: str, **extra: Any) -> None:
        self._experiment.log(message, **extra)
        report("log", message)

    def metric(self, name: str) -> _ReportingMetric:
        return _ReportingMetric(self._experiment, name)

    def parameters(self) -> _ReportingParameters:
        return _ReportingParameters(self._experiment)

    def file(self, *source: str, **options: Any) -> Any:
        result = self._experiment.file(*source, **options)
        if source:
            report("file", result["id"], result["checksum"])
        return result


class _ReportingMetric:
    def __init__(self, experiment: Experiment, name: str) -> None:
        self._experiment = experiment
        self._name = name

    def append(self, **fields: Any) -> None:
        self._experiment.metric(self._name).append(**fields)
        report("point", self._name, fields)


class _ReportingParameters:
    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def set(self, **values: Any) -> None:
        self._experiment.parameters().set(**values)
        report("parameters", values)


def main(name: str, path: str, resume: str) -> None:
    with Experiment(name, "demo", local_path=path or None, resume=resume) as experiment:
        train(cast(Experiment, ReportingExperiment(experiment)))
    report("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
