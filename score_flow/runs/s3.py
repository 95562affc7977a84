"""orbax on s3://: it knows gs:// alone, and has TensorStore's driver for S3 beside it, without a way to it.

What orbax does for gs:// (a folder is whole when its commit marker is there; nothing is renamed) is right for any
object store, so four of its private names are told of s3:// as well.
"""

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from score_flow.errors import UserError
from score_flow.runs import stores

S3, ALL = "s3://", ("gs://", "s3://")


def teach() -> None:
    """Let orbax save to and restore from s3://, from now on in this process; raises UserError where it has changed."""
    names = {
        gcs_utils: ("_GCS_PATH_PREFIX", "get_kvstore_for_gcs"),
        tensorstore_utils: ("_use_gcs_driver", "_normalize_path"),
    }
    if missing := [name for module, wanted in names.items() for name in wanted if not hasattr(module, name)]:
        raise UserError(f"this version of orbax cannot be told of s3:// ({missing[0]} is gone): use 0.12.8, or gs://.")
    if gcs_utils._GCS_PATH_PREFIX == ALL:
        return
    gcs, normalised = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path
    gcs_utils._GCS_PATH_PREFIX = ALL
    gcs_utils.get_kvstore_for_gcs = lambda path: stores.kvstore(path) if path.startswith(S3) else gcs(path)
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(ALL)
    tensorstore_utils._normalize_path = lambda path: normalised(path).replace("s3:/", S3)
