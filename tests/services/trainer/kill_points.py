"""Where a trainer of five steps, with checkpoints after 2, 4 and 5 of which two are kept, can die."""

from tests.services.trainer.killed_trainer import Point

INTEND, COMMIT = "services.trainer.step_ledger:StepLedger.intend", "services.trainer.step_ledger:StepLedger.commit"
PUBLISH = "tests.services.trainer.recorded_groups:NotedVersions.publish"
EXPORT = "services.trainer.serve_run:export_model"
WRITE_ITEM = "torch.distributed.checkpoint.filesystem:_write_item"
CHECKSUM, SYNC = "services.trainer.checkpoint:_sha256", "services.trainer.checkpoint:_sync"
FORGET, TRIM = "services.trainer.retention:Retention.forget", "services.trainer.retention:Retention._trim"
FORGET_GROUPS = "shared.scripts:Ledger.forget"

OF_STEPS = {
    "before the first intent": Point(INTEND),
    "after the first intent": Point(INTEND, after=True),
    "after the first step, before its commit": Point(COMMIT),
    "after the first commit": Point(COMMIT, after=True),
    "before a later intent": Point(INTEND, 4),
    "after a later intent": Point(INTEND, 4, after=True),
    "after a later step, before its commit": Point(COMMIT, 4),
    "after a later commit, before the checkpoint": Point(COMMIT, 4, after=True),
    "while the checkpoint waits for the ledger": Point("services.trainer.ledger_on_disk:LedgerOnDisk.wait", 2),
    "before the state is copied": Point("services.trainer.checkpoint:Checkpoints.begin", 2),
    "before a publication": Point(PUBLISH, 3),
    "after a publication": Point(PUBLISH, 3, after=True),
    "before the last checkpoint": Point("services.trainer.checkpoint:Checkpoints.begin", 3),
    "with older checkpoints to be removed": Point("services.trainer.checkpoint:Checkpoints.remove_old", checkpoint=3),
    "with an older checkpoint half removed": Point("os:unlink", checkpoint=3, after=True),
    "before steps that stay are archived": Point("services.trainer.retention:Retention.archive_rest"),
    "before the export": Point(EXPORT),
    "with the export written and not in its place": Point("services.trainer.learner:RankLearner.export", after=True),
    "after the export": Point(EXPORT, after=True),
}
"""Of the loop, wherever its checkpoint is then."""

ASIDE, IN_PLACE = ".writing_{}", "step_{}"
OF_A_CHECKPOINT = {
    "copied": (Point(WRITE_ITEM), ASIDE),
    "half written": (Point(WRITE_ITEM, 5, after=True), ASIDE),
    "written and not verifiable": (Point(CHECKSUM), ASIDE),
    "verifiable and not synced": (Point(SYNC), ASIDE),
    "synced and not in its place": (Point(SYNC, 2, after=True), ASIDE),
    "in its place and that not synced": (Point(SYNC, 3), IN_PLACE),
    "in its place": (Point(SYNC, 3, after=True), IN_PLACE),
    "durable, before groups are forgotten": (Point(FORGET), IN_PLACE),
}
"""Of any checkpoint, with the name that it has then."""

OF_FORGETTING = {
    "when groups are forgotten and still on the stream": Point(FORGET_GROUPS, after=True),
    "when groups are forgotten and their step is not counted": Point(TRIM, after=True),
    "when their step is counted": Point(FORGET, after=True),
}
"""Of the second checkpoint, the first that lets groups go."""
