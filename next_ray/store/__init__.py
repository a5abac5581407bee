"""The checkpoint store: committed checkpoints, tables and records of a run on a disk or in S3, and the lease that guards it."""

from next_ray.store.checkpoints import CheckpointStore
from next_ray.store.lease import Lease
from next_ray.store.storage import Storage

__all__ = ["CheckpointStore", "Lease", "Storage"]
