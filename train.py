"""Train an image classifier: ``accelerate launch train.py RECIPE --section.field value``; --help explains every field.

The whole method is on this page. Step s consumes draws [s·B, (s+1)·B), cut into micro-batches that the ranks carry.
"""

import sys
from functools import partial

from torch import nn

from cls import checkpoint
from cls.artifacts import input_statistics, keep_best, write_results
from cls.cli import out_of, parse_run
from cls.data.draws import Draws
from cls.data.loader import MicroBatchDraws, batches, preprocess, worker_count
from cls.data.sources import load
from cls.evaluate import predict
from cls.folder import BrokenImages, Folder, open_folder
from cls.images.ops import training_ops
from cls.journal import Journal
from cls.metrics import summary
from cls.mix import class_weights, draw_mixing, loss_per_image, mix, partners, soft_targets
from cls.models import check_weights, train_mode
from cls.outcome import Ending
from cls.parallel.cluster import Cluster, start
from cls.parallel.step import MicroBatches
from cls.parallel.watch import Losses
from cls.state import build_state
from cls.steps import Steps
from cls.track import check_tracking


def main(argv: list[str]) -> None:
    with Ending(out_of(argv)) as ending:
        run = parse_run(argv)
        cluster = start(run.train)
        cluster.on_main(lambda: (check_tracking(run.track), check_weights(run.model)))
        folder = cluster.on_main(lambda: open_folder(run, cluster))
        ending.out = folder.path
        if folder.finished:
            ending.message = f"{folder.path} is finished already"
        else:
            ending.message = train(folder, cluster, ending)
        cluster.close()


def train(folder: Folder, cluster: Cluster, ending: Ending) -> str:
    run, device = folder.run, cluster.device
    splits = cluster.together(lambda: load(run.data, run.seed))
    steps = Steps(len(splits.train), run.train)
    state = cluster.together(lambda: build_state(run, len(splits.classes), steps, device))
    checkpoints = folder.path / "checkpoints"
    first = ending.step = cluster.together(lambda: checkpoint.restore(checkpoints, state))
    model = cluster.wrap(state.model, run.train.compile)
    micro = MicroBatches(cluster, model, run)

    statistics = mean, std = input_statistics(run)
    prepare = preprocess(mean, std, run.seed, run.train.channels_last, device)
    draws = Draws(splits.train, training_ops(run.augment, run.data, mean), run.seed, run.data.balanced)
    indices = MicroBatchDraws(first, steps.total, run.train.batch, run.train.micro_batch, micro.share)
    loader = batches(draws, indices, worker_count(run.data.workers, cluster.local_world), device.type == "cuda")
    weights = class_weights(draws.labels, len(splits.classes), run.optim.class_weight, device)
    broken = BrokenImages(folder.path / "bad_images.csv", list(splits.train["id"]), run.data.max_bad)
    look = partial(predict, classes=splits.classes, run=run, prepare=prepare, cluster=cluster)
    losses = Losses(run.train.batch)

    with Journal(folder, cluster, steps, first, state.model) as journal:
        for step in range(first, steps.total):
            if run.train.early_stop and state.history.stale >= run.train.early_stop:
                break
            train_mode(state.model, run.model.freeze)
            mixing = draw_mixing(run.augment, run.seed, step)
            micro.begin()
            for index in micro.share:
                batch = next(loader)
                broken.note(batch.broken)
                targets = soft_targets(batch.labels.to(device), len(splits.classes), run.optim.label_smoothing)
                partner = partners(run.train.micro_batch, run.seed, step, index)
                images, targets = mix(prepare(batch), targets, mixing, partner)
                with micro.micro_batch(step, index):
                    with cluster.autocast(run.train.precision):
                        logits = model(images)
                    loss = loss_per_image(logits, targets, run.optim.loss, weights).sum()
                    loss.backward()
                micro.collect(index, loss)
            loss = micro.finish()
            if run.optim.clip:
                nn.utils.clip_grad_norm_(micro.parameters, run.optim.clip)
            state.optimizer.step()
            if state.average is not None:
                state.average.update_parameters(state.model)
            journal.steps(losses.put(step + 1, loss, state.schedule.lr))
            state.schedule.step()
            ending.step = step + 1
            if steps.ends_epoch(step + 1) or step + 1 == steps.total:
                journal.steps(losses.drain())
                broken.agree(cluster)
                figures = summary(look(state.evaluated, splits.val))
                best = False
                if steps.ends_epoch(step + 1):
                    state.schedule.epoch(figures["loss"], figures["accuracy"])
                    best = state.history.add(step + 1, figures["accuracy"], figures["loss"])
                journal.epoch(step + 1, figures, state.history)
                if cluster.main:
                    keep_best(folder.path, state, run, splits, statistics, best)
                    checkpoint.save(checkpoints, step + 1, state)
                    checkpoint.prune(checkpoints, run.train.keep, state.history)
                losses.restart()
        return write_results(folder, state, splits, look, cluster, journal)


if __name__ == "__main__":
    main(sys.argv[1:])
