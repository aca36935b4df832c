import pytest
from clouds import HERE, executable


@pytest.fixture
def pod(tmp_path):
    """Clouds without anything in them, hosts whose mounts are stand-ins."""
    bin_, cloud = tmp_path / "bin", tmp_path / "cloud"
    bin_.mkdir()
    cloud.mkdir()
    executable(bin_ / "gcloud", f'#!/bin/sh\nexec python3 "{HERE / "fake_gcloud.py"}" "$@"\n')
    for name in ("kubectl", "xpk", "sbatch", "srun", "scontrol"):
        fake = f'exec python3 "{HERE / "fake_cluster.py"}" {name} "$@"'
        executable(bin_ / name, f"#!/bin/sh\n{fake}\n")
    for name in ("gcsfuse", "sudo", "mountpoint"):
        executable(bin_ / name, '#!/bin/sh\n[ "${0##*/}" = sudo ] && exec "$@"\nexit 0\n')
    return tmp_path
