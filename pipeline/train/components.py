"""What a run works with, made in the order in which one part needs the other."""

import dataclasses
import os

import tensorflow as tf

from pipeline.data import reader
from pipeline.data.order import EpochBudget
from pipeline.data.reader import RecordSet
from pipeline.train import distribution
from pipeline.train.experiment import Experiment
from pipeline.train.ledger import Entry
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.state import TrainState, create_state


@dataclasses.dataclass(frozen=True)
class RunComponents:
    """The parts of one training run: where it computes, what it reads, how long, and what it learns."""

    strategy: tf.distribute.Strategy
    records: RecordSet
    validation: RecordSet
    budget: EpochBudget
    last_step: int
    state: TrainState

    def damaged_records(self) -> list[str]:
        """Shard, record and offset of every record that any process has left out in this run, sorted."""
        return reader.damaged_records(self.records.damaged_folder)

    def ledger_entries(self) -> list[Entry]:
        """What each epoch has consumed so far, and what the manifest expects."""
        return self.state.ledger.entries(self.budget.expected, self.records.examples, self.records.id_checksum)


def assemble(context: RunContext, experiment: Experiment, loop: Loop) -> RunComponents:
    """Opens the data and makes the state of step 0; everything that can be refused is refused here."""
    strategy = loop.create_strategy()
    if not loop.shared_folders:
        distribution.check_reachable(strategy, model_dir=context.model_dir, DATA_DIR=experiment.data.directory)
    divisors = {"hosts": distribution.hosts(strategy), "replicas": strategy.num_replicas_in_sync}
    experiment.data.batch_shape(**divisors, accumulation_steps=experiment.accumulation_steps)
    manifest = experiment.data.read_manifest()
    damaged = os.path.join(context.model_dir, "damaged")
    records = experiment.data.training_records(manifest, damaged)
    validation = experiment.data.validation_records(manifest, damaged)
    num_classes = experiment.classes(len(manifest.classes))
    budget = experiment.budget(records.examples, manifest.digest)
    with strategy.scope():
        state = create_state(experiment, num_classes, budget)
    last_step = min(budget.steps, experiment.max_steps or budget.steps)
    return RunComponents(strategy, records, validation, budget, last_step, state)
