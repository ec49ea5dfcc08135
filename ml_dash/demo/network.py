"""A small neural network in plain Python, and the iris flowers that it learns to classify."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SPECIES = ("setosa", "versicolor", "virginica")
Matrix = list[list[float]]


class Flower(NamedTuple):
    """Four measurements, each scaled over all flowers to mean 0 and deviation 1, and the species."""

    measures: list[float]
    species: int


def load_flowers() -> list[Flower]:
    """Return the 150 flowers of iris.csv (source and licence: IRIS.md)."""
    with Path(__file__).with_name("iris.csv").open(encoding="utf-8", newline="") as file:
        _header, *rows = csv.reader(file)
    columns = [_scaled([float(row[column]) for row in rows]) for column in range(4)]
    return [
        Flower(list(measures), SPECIES.index(row[4]))
        for row, measures in zip(rows, zip(*columns, strict=True), strict=True)
    ]


def _scaled(values: list[float]) -> list[float]:
    """Return the values scaled to mean 0 and standard deviation 1."""
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation for value in values]


class Network:
    """4 inputs, one hidden layer (tanh), 3 outputs (softmax). Each weight row ends with its bias."""

    def __init__(self, hidden: Matrix, output: Matrix) -> None:
        self.hidden = hidden
        self.output = output

    @classmethod
    def fresh(cls, width: int, rng: random.Random) -> Network:
        """Return a network with `width` hidden units and random weights, of variance 1 / inputs."""

        def rows(count: int, inputs: int) -> Matrix:
            return [[rng.gauss(0, 1 / math.sqrt(inputs)) for _ in range(inputs + 1)] for _ in range(count)]

        return cls(rows(width, 4), rows(len(SPECIES), width))

    def forward(self, measures: Sequence[float]) -> tuple[list[float], list[float]]:
        """Return (activities of the hidden layer, probability of each species)."""
        inputs = [*measures, 1.0]
        hidden = [math.tanh(sum(map(float.__mul__, row, inputs))) for row in self.hidden]
        scores = [sum(map(float.__mul__, row, [*hidden, 1.0])) for row in self.output]
        weights = [math.exp(score - max(scores)) for score in scores]
        return hidden, [weight / sum(weights) for weight in weights]

    def learn(self, flower: Flower, rate: float) -> float:
        """Take one step of stochastic gradient descent; return the cross-entropy before it."""
        hidden, chances = self.forward(flower.measures)
        slopes = [chance - (number == flower.species) for number, chance in enumerate(chances)]
        pairs = list(zip(slopes, self.output, strict=True))
        back = [sum(slope * row[j] for slope, row in pairs) for j in range(len(hidden))]
        for slope, row in pairs:
            _step(row, [*hidden, 1.0], rate * slope)
        for slope, activity, row in zip(back, hidden, self.hidden, strict=True):
            _step(row, [*flower.measures, 1.0], rate * slope * (1 - activity * activity))
        return -math.log(max(chances[flower.species], 1e-300))

    def accuracy(self, flowers: Sequence[Flower]) -> float:
        """Return the share of `flowers` whose most probable species is the right one."""
        right = 0
        for flower in flowers:
            _, chances = self.forward(flower.measures)
            right += chances.index(max(chances)) == flower.species
        return right / len(flowers)


def _step(row: list[float], inputs: list[float], amount: float) -> None:
    """Subtract `amount` times the inputs from a row of weights, in place."""
    for i, value in enumerate(inputs):
        row[i] -= amount * value
