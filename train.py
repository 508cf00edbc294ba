"""Train an image classifier: ``accelerate launch train.py RECIPE --section.field value``; --help explains every field.
Step s trains on the sample indices [s·B, (s+1)·B), split into micro-batches, which are distributed over the ranks."""

import sys

from cls.commands.parsing import fail_early, out_of, parse_run

if __name__ == "__main__":
    fail_early(sys.argv[1:])  # reports command-line mistakes and missing files before torch is imported

from cls.config import Run
from cls.data.sources import Splits
from cls.distributed.memory_probe import probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World, start
from cls.evaluation.inference import Predictor
from cls.evaluation.model_file import best_header
from cls.evaluation.results import write_report, write_results
from cls.models.loss import loss_per_image, right_per_image
from cls.runtime.exit import ExitHandler
from cls.runtime.garbage_collection import GarbageCollection
from cls.runtime.signals import Stopped
from cls.tracking.run_dir import RunDir, open_run_dir
from cls.training import checkpoint
from cls.training.checkpoint_writer import CheckpointWriter
from cls.training.logger import RunLogger
from cls.training.loss_monitor import LossMonitor
from cls.training.memory_format import choose_memory_format
from cls.training.resume import load_data
from cls.training.state import State, build_state
from cls.training.steps import Steps
from cls.training.train_loader import TrainLoader
from cls.training.validation import record_validation
from cls.transforms.mixup import draw_mixing, join, mix, partners


def main(argv: list[str]) -> None:
    with ExitHandler(out_of(argv)) as handler:
        with handler.stop.interruptible():
            run = parse_run(argv)
            world = start(run.train, handler.stop)
        with world.on_rank_0(lambda: open_run_dir(run, world)) as run_dir:
            handler.claim(run_dir.path, run_dir.unnamed)
            handler.message = run_dir.finished or train(run_dir, world, handler)
        world.close()


def setup(run_dir: RunDir, world: World) -> tuple[Splits, Steps, State, MicroBatches, TrainLoader, int]:
    """The data, the number of steps, the state (from the last checkpoint or the seed), and the first step to do."""
    splits = load_data(run_dir, world)
    steps = Steps(len(splits.train), run_dir.run.train)
    state = world.on_all_ranks(lambda: build_state(run_dir.built, splits.classes, steps, world))
    first = checkpoint.restore(run_dir.path / "checkpoints", state, world)
    loader = TrainLoader(splits, run_dir, world, range(first, steps.total))  # forks: before anything starts threads
    choose_memory_format(run_dir, state, loader, world)
    micro_batches = MicroBatches(world, world.wrap(state.model, run_dir.run.train.compile), run_dir.run)
    return splits, steps, state, probe(micro_batches, state.optimizer, run_dir.run), loader, first


def train(run_dir: RunDir, world: World, handler: ExitHandler) -> str:
    splits, steps, state, micro_batches, loader, first = setup(run_dir, world)
    run = run_dir.run
    predictor = Predictor(state.evaluated, splits.classes, run, world, loader.prepare, loader.shared)
    monitor = LossMonitor(run.train.batch)
    with (
        loader,
        GarbageCollection() as garbage,
        RunLogger(run_dir, world, steps, first, state.model) as logger,
        CheckpointWriter(run_dir, world, state, best_header(run, splits), logger.events) as writer,
    ):
        try:
            for step in range(first, max(first, steps.total) + 1):
                handler.step = step
                validates = steps.validates(step) and state.history.validated < step
                if steps.syncs(step) or monitor.save_requested or monitor.stop_requested:
                    loader.corrupt.agree()
                    garbage.collect()
                if validates or monitor.save_requested or monitor.stop_requested:
                    logger.log_steps(monitor.drain())  # raises on a non-finite loss: such weights are never saved
                    if validates:
                        record_validation(step, steps, state, predictor.figures(loader.evaluated.val), logger)
                    writer.save(step)
                    monitor.reset_timer()
                if monitor.stop_requested:
                    raise Stopped
                if step >= steps.total or 0 < run.train.early_stop <= state.history.stale:
                    break
                forward_backward(step, run, state, micro_batches, loader)
                result = micro_batches.all_reduce(world.stop.requested(), writer.due())
                logger.log_steps(monitor.put(step + 1, result, state.update(run.optim.clip)))
            writer.finish()
            results = write_results(run_dir.path, splits, loader.evaluated, predictor)
            logger.log_predicted()
            return logger.log_results(write_report(run_dir.path, splits, results, predictor))
        except Stopped:
            micro_batches.discard_step()
            logger.log_steps(monitor.drain())
            writer.save_and_wait(handler.step)
            raise Stopped(world.stop_reason()) from None


def forward_backward(step: int, run: Run, state: State, micro_batches: MicroBatches, loader: TrainLoader) -> None:
    """Forward and backward pass of this rank's micro-batches; sums their losses, gradients and BatchNorm buffers."""
    state.train_mode(step)
    mixing = draw_mixing(run.augment, run.seed, step)
    for chunk in micro_batches.start_step(step):  # a chunk: one micro-batch, or several with reduce=fast
        mixed = []
        for index in chunk:
            mixed.append(mix(*loader.next(), mixing, partners(run.train.micro_batch, run.seed, step, index)))
        images, targets = join(mixed)
        with micro_batches.context(chunk):
            with micro_batches.world.autocast(run.train.precision):
                logits = micro_batches.model(images)
            losses = loss_per_image(logits, targets, run.optim.loss, loader.weights)
            losses.sum().backward()
        micro_batches.accumulate(chunk, losses, right_per_image(logits, targets))


if __name__ == "__main__":
    main(sys.argv[1:])
