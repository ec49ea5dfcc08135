"""A training script as a user of ml-dash would write it: `python -m ml_dash.demo.train` runs it by itself.

It may be killed at any moment and started again; it then continues from its last checkpoint.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from ml_dash import Experiment
from ml_dash.demo.network import SPECIES, Flower, Network, load_flowers

EPOCHS = 400
BATCH = 10
HELD_OUT = 30
CHECKPOINT_EVERY = 20
RATE = 0.002
WIDTH = 16
SEED = 1936


def train(experiment: Experiment) -> float:
    """Train to the last epoch, from the last checkpoint if there is one; return the accuracy on unseen flowers."""
    experiment.parameters().set(
        data={"name": "iris", "species": SPECIES, "held_out": HELD_OUT},
        model={"hidden": WIDTH, "activation": "tanh"},
        train={"epochs": EPOCHS, "batch": BATCH, "rate": RATE, "seed": SEED},
    )
    flowers = load_flowers()
    random.Random(SEED).shuffle(flowers)
    learned, held_out = flowers[HELD_OUT:], flowers[:HELD_OUT]
    network, first = _resume(experiment, len(learned) // BATCH)
    accuracy = network.accuracy(held_out)

    for epoch in range(first, EPOCHS):
        loss = _learn_all(experiment, network, learned, epoch)
        accuracy = network.accuracy(held_out)
        experiment.metric("loss").append(value=loss, epoch=epoch)
        experiment.metric("accuracy").append(train=network.accuracy(learned), held_out=accuracy, epoch=epoch)
        if (epoch + 1) % CHECKPOINT_EVERY == 0:
            _save(experiment, network, epoch + 1)

    experiment.log("training ended", held_out=accuracy)
    return accuracy


def _learn_all(experiment: Experiment, network: Network, flowers: list[Flower], epoch: int) -> float:
    """Learn all `flowers` once, in an order of the epoch's own, with a point for every batch; return the mean loss."""
    shuffled = random.Random(SEED + epoch).sample(flowers, len(flowers))
    losses: list[float] = []
    for start in range(0, len(shuffled), BATCH):
        batch = [network.learn(flower, RATE) for flower in shuffled[start : start + BATCH]]
        step = (epoch * len(shuffled) + start) // BATCH
        experiment.metric("batch/loss").append(value=sum(batch) / len(batch), step=step)
        losses += batch
    return sum(losses) / len(losses)


def _save(experiment: Experiment, network: Network, epoch: int) -> None:
    """Add a checkpoint as a file, in place of the one before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.json")
        path.write_text(json.dumps({"epoch": epoch, "hidden": network.hidden, "output": network.output}))
        experiment.file(str(path), prefix="/checkpoints", metadata={"epoch": epoch})
    experiment.log(f"checkpoint after epoch {epoch}", level="debug")


def _resume(experiment: Experiment, batches: int) -> tuple[Network, int]:
    """Return the network as last saved and the number of epochs that it has learned; a fresh one if none was saved.

    What was recorded after the checkpoint is about to be recorded again, so it is superseded by a rewind.
    """
    saved = experiment.file(prefix="/checkpoints").list()
    if not saved:
        experiment.log("training starts")
        experiment.rewind(0)
        return Network.fresh(WIDTH, random.Random(SEED)), 0
    with tempfile.TemporaryDirectory() as folder:
        path = experiment.file(file_id=saved[-1]["id"], dest_path=str(Path(folder, "saved.json"))).download()
        state = json.loads(Path(path).read_text())
    experiment.log(f"training goes on after epoch {state['epoch']}", level="warn", checkpoint=saved[-1]["id"])
    experiment.rewind(state["epoch"], metrics=["loss", "accuracy"])
    experiment.rewind(state["epoch"] * batches, metrics=["batch/loss"])
    return Network(state["hidden"], state["output"]), state["epoch"]


def main() -> None:
    with Experiment(name="iris", project="demo") as experiment:
        print(f"accuracy on flowers it never saw: {train(experiment):.1%}")


if __name__ == "__main__":
    main()
