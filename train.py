"""Train an image classifier: ``accelerate launch train.py RECIPE --section.field value``; --help explains every field.

The whole method is on this page. Step s consumes draws [s·B, (s+1)·B), cut into micro-batches that the ranks carry.
"""

import sys

from cls.cli import out_of, parse_run, refuse_early

if __name__ == "__main__":
    refuse_early(sys.argv[1:])  # a slip or a missing file is told before torch has taken its seconds to load

from cls import checkpoint
from cls.artifacts import best_header, keep_data, write_results
from cls.config import Run
from cls.data.feed import Feed
from cls.data.sources import Splits, load
from cls.evaluate import predictor, validate
from cls.folder import Folder, open_folder
from cls.journal import Journal
from cls.mix import draw_mixing, join, loss_per_image, mix, partners, soft_targets
from cls.models import check_model
from cls.outcome import Ending
from cls.parallel.cluster import Cluster, start
from cls.parallel.probe import probe
from cls.parallel.step import MicroBatches
from cls.parallel.watch import Garbage, Losses
from cls.saver import Saver
from cls.state import State, build_state
from cls.steps import Steps
from cls.stop import Stopped
from cls.track import check_tracking


def main(argv: list[str]) -> None:
    with Ending(out_of(argv)) as ending:
        with ending.stop.interruptible():
            run = parse_run(argv)
            cluster = start(run.train, ending.stop)
        cluster.on_main(lambda: (check_tracking(run.track), check_model(run.model, run.data)))
        with cluster.on_main(lambda: open_folder(run, cluster)) as folder:
            ending.claim(folder.path, folder.unnamed)
            ending.message = folder.finished or train(folder, cluster, ending)
        cluster.close()


def begin(folder: Folder, cluster: Cluster) -> tuple[Splits, Steps, State, MicroBatches, Feed, int]:
    """The images, the length of the run, its state by a checkpoint or the seed, and the steps already done."""
    splits = cluster.together(lambda: load(folder.run.data, folder.run.seed))
    keep_data(folder, splits, cluster)
    steps = Steps(len(splits.train), folder.run.train)
    state = cluster.together(lambda: build_state(folder.run, len(splits.classes), steps, cluster))
    first = checkpoint.restore(folder.path / "checkpoints", state, cluster)
    micro = MicroBatches(cluster, cluster.wrap(state.model, folder.run.train.compile), folder.run)
    feed = Feed(splits, folder, cluster, micro.share, range(first, steps.total))  # forks: before any thread
    return splits, steps, state, probe(micro, state.optimizer, folder.run), feed, first


def train(folder: Folder, cluster: Cluster, ending: Ending) -> str:
    run = folder.run
    splits, steps, state, micro, feed, first = begin(folder, cluster)
    losses = Losses(run.train.batch)
    with (
        feed,
        Garbage() as garbage,
        Journal(folder, cluster, steps, first, state.model) as journal,
        Saver(folder, cluster, state, best_header(run, splits), journal.lives) as saver,
    ):
        look = predictor(run, splits.classes, cluster, feed.prepare, feed.loader)
        try:
            for step in range(first, max(first, steps.total) + 1):
                ending.step = step
                validates = steps.validates(step) and state.history.validated < step
                if steps.pauses(step) or losses.save or losses.stop:
                    feed.broken.agree()
                    garbage.collect()
                if validates or losses.save or losses.stop:
                    journal.steps(losses.drain())  # nothing is saved before its loss has been looked at
                    if validates:
                        validate(step, steps, state, look, feed.val, journal, run.model.freeze)
                    saver.save(step)
                    losses.restart()
                if losses.stop:
                    raise Stopped
                if step >= steps.total or 0 < run.train.early_stop <= state.history.stale:
                    break
                forward_backward(step, run, micro, feed, cluster)
                result = micro.finish(cluster.stop.ask(), saver.due())
                journal.steps(losses.put(step + 1, result, state.update(run.optim.clip)))
            saver.finish()
            return write_results(folder, state, splits, feed, look, cluster, journal)
        except Stopped:
            micro.abandon()
            journal.steps(losses.drain())
            if not (cluster.stop.at_once and cluster.fsdp):  # a shard alone cannot be saved
                saver.save(ending.step, wait=True)
            raise Stopped(cluster.why_stopped()) from None


def forward_backward(step: int, run: Run, micro: MicroBatches, feed: Feed, cluster: Cluster) -> None:
    """This rank's micro-batches of a step: their gradients, BatchNorm statistics and losses."""
    mixing = draw_mixing(run.augment, run.seed, step)
    for piece in micro.begin(step):  # of one micro-batch, or of several with reduce=fast
        mixed = []
        for index in piece:
            images, labels = feed.next()
            targets = soft_targets(labels, feed.classes, run.optim.label_smoothing)
            mixed.append(mix(images, targets, mixing, partners(run.train.micro_batch, run.seed, step, index)))
        images, targets = join(mixed)
        with micro.carrying(piece):
            with cluster.autocast(run.train.precision):
                logits = micro.model(images)
            losses = loss_per_image(logits, targets, run.optim.loss, feed.weights)
            losses.sum().backward()
        micro.collect(piece, losses)


if __name__ == "__main__":
    main(sys.argv[1:])
