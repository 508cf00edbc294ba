"""Train an image classifier: ``accelerate launch train.py RECIPE --section.field value``; --help explains every field.

The whole method is on this page. Step s consumes draws [s·B, (s+1)·B), cut into micro-batches that the ranks carry.
"""

import sys
from functools import partial

from cls import checkpoint
from cls.artifacts import Look, keep_best, keep_data, write_results
from cls.cli import out_of, parse_run
from cls.data.feed import Feed
from cls.data.loader import preprocess
from cls.data.sources import Splits, load
from cls.evaluate import predict
from cls.folder import Folder, open_folder
from cls.journal import Journal
from cls.metrics import summary
from cls.mix import class_weights, draw_mixing, loss_per_image, mix, partners, soft_targets
from cls.models import check_weights, input_statistics, train_mode
from cls.outcome import Ending
from cls.parallel.cluster import Cluster, start
from cls.parallel.step import MicroBatches
from cls.parallel.watch import Losses, check_validation
from cls.state import State, build_state
from cls.steps import Steps
from cls.track import check_tracking


def main(argv: list[str]) -> None:
    with Ending(out_of(argv)) as ending:
        run = parse_run(argv)
        cluster = start(run.train)
        cluster.on_main(lambda: (check_tracking(run.track), check_weights(run.model)))
        with cluster.on_main(lambda: open_folder(run, cluster)) as folder:
            ending.out, ending.claimed = folder.path, True
            ending.message = folder.finished or train(folder, cluster, ending)
        cluster.close()


def begin(folder: Folder, cluster: Cluster) -> tuple[Splits, Steps, State, int]:
    """The images, the length of the run, its state by a checkpoint or the seed, and the steps already done."""
    run = folder.run
    splits = cluster.together(lambda: load(run.data, run.seed))
    cluster.on_main(lambda: keep_data(folder, splits))
    steps = Steps(len(splits.train), run.train)
    state = cluster.together(lambda: build_state(run, len(splits.classes), steps, cluster.device))
    first = cluster.together(lambda: checkpoint.restore(folder.path / "checkpoints", state))
    return splits, steps, state, first


def train(folder: Folder, cluster: Cluster, ending: Ending) -> str:
    run, device = folder.run, cluster.device
    splits, steps, state, first = begin(folder, cluster)
    classes = len(splits.classes)
    micro = MicroBatches(cluster, cluster.wrap(state.model, run.train.compile), run)
    prepare = preprocess(input_statistics(run), run.seed, run.train.channels_last, device)
    feed = Feed(splits.train, run, cluster, prepare, micro.share, range(first, steps.total), folder.path)
    weights = class_weights(feed.draws.labels, classes, run.optim.class_weight, device)
    look = partial(predict, classes=splits.classes, run=run, prepare=prepare, cluster=cluster)
    losses, ending.step = Losses(run.train.batch), first
    with Journal(folder, cluster, steps, first, state.model) as journal:
        train_mode(state.model, run.model.freeze)
        for step in range(first, steps.total):
            if 0 < run.train.early_stop <= state.history.stale:
                break
            mixing = draw_mixing(run.augment, run.seed, step)
            micro.begin()
            for index in micro.share:
                images, labels = feed.next()
                targets = soft_targets(labels, classes, run.optim.label_smoothing)
                partner = partners(run.train.micro_batch, run.seed, step, index)
                images, targets = mix(images, targets, mixing, partner)
                with micro.micro_batch(step, index):
                    with cluster.autocast(run.train.precision):
                        logits = micro.model(images)
                    loss = loss_per_image(logits, targets, run.optim.loss, weights).sum()
                    loss.backward()
                micro.collect(index, loss)
            loss = micro.finish()
            state.update(run.optim.clip)
            ending.step = step + 1
            journal.steps(losses.put(step + 1, loss, state.schedule.lr))
            state.schedule.step()
            if steps.pauses(step + 1):
                feed.broken.agree(cluster)
            if steps.ends_epoch(step + 1) or step + 1 == steps.total:
                journal.steps(losses.drain())
                validate(step + 1, steps, folder, cluster, splits, state, look, journal)
                losses.restart()
        return write_results(folder, state, splits, look, cluster, journal)


def validate(
    step: int,
    steps: Steps,
    folder: Folder,
    cluster: Cluster,
    splits: Splits,
    state: State,
    look: Look,
    journal: Journal,
) -> None:
    """After an epoch, or where a smoke run stops: figures, schedule, best weights, checkpoint."""
    figures = summary(look(state.evaluated, splits.val))
    check_validation(step, figures["loss"])
    best = False
    if steps.ends_epoch(step):
        state.schedule.epoch(figures["loss"], figures["accuracy"])
        best = state.history.add(step, figures["accuracy"], figures["loss"])
    journal.epoch(step, figures, state.history)
    if cluster.main:
        keep_best(folder, state, splits, best)
        checkpoint.save(folder.path / "checkpoints", step, state)
        checkpoint.prune(folder.path / "checkpoints", folder.run.train.keep, state.history)
    train_mode(state.model, folder.run.model.freeze)


if __name__ == "__main__":
    main(sys.argv[1:])
