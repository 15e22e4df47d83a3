"""The files for ``ray up``: Ray's own schema, its own scheduler, and the cloud's own parameters; no cloud is asked."""

import json
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any

import botocore.session
import botocore.validate
import pytest
import yaml
from job_lines import ROOT
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

import raypurify

CLOUDS = ("aws", "gcp")
INSTANCE = {
    *("accessConfigs", "advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig", "deletionProtection"),
    *("disks", "displayDevice", "guestAccelerators", "hostname", "labels", "machineType", "metadata", "minCpuPlatform"),
    *("networkInterfaces", "networkPerformanceConfig", "params", "reservationAffinity", "resourcePolicies"),
    *("scheduling", "serviceAccounts", "shieldedInstanceConfig", "sourceMachineImage", "tags"),
}
"""Fields of an Instance of Compute Engine's API v1 that may be set at its start."""


@pytest.fixture(autouse=True)
def no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks a cloud fails, whatever credentials there are."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def written(cloud: str) -> dict[str, Any]:
    """The file as it stands."""
    found: dict[str, Any] = yaml.safe_load((ROOT / f"cluster/{cloud}.yaml").read_text())
    return found


@pytest.fixture
def taken(written: dict[str, Any]) -> AutoscalingConfig:
    """What Ray makes of it, with its defaults; raises where it breaks Ray's schema."""
    return AutoscalingConfig(written, skip_content_hash=True)


def worker_types(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def test_the_head_does_no_work_and_all_workers_may_end(written: dict[str, Any], taken: AutoscalingConfig) -> None:
    head = written["available_node_types"][written["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "--num-cpus=0" in written["head_start_ray_commands"][-1]
    workers = worker_types(written)
    assert {bool(kind["resources"].get("GPU")) for kind in workers.values()} == {True, False}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] > 0 for kind in workers.values())
    assert written["max_workers"] <= sum(kind["max_workers"] for kind in workers.values())
    assert taken.get_max_num_worker_nodes() == written["max_workers"]
    assert taken.get_idle_timeout_s() == 300
    types = taken.get_node_type_configs()
    assert types["gpu-spot"].idle_timeout_s == types["gpu-on-demand"].idle_timeout_s == 120


def test_nothing_is_installed_beside_the_image(written: dict[str, Any], taken: AutoscalingConfig) -> None:
    ran = [*taken.get_head_setup_commands(), *taken.get_head_start_ray_commands()]
    ran += taken.get_worker_start_ray_commands()
    ran += [command for name in worker_types(written) for command in taken.get_worker_setup_commands(name)]
    ran += taken.get_initialization_commands("cpu-spot")
    assert not [command for command in ran if "pip" in command or "conda" in command]


def test_images_have_this_projects_version_and_cuda_where_there_is_a_gpu(
    written: dict[str, Any], taken: AutoscalingConfig
) -> None:
    for name, kind in written["available_node_types"].items():
        expected = "cuda" if kind["resources"].get("GPU") else "cpu"
        image = taken.get_docker_config(name)["image"]
        assert image.endswith(f"/raypurify:{raypurify.__version__}-{expected}")


def launched(config: AutoscalingConfig, demand: list[dict[str, float]], failed: tuple[str, ...] = ()) -> dict[str, int]:
    """What Ray's autoscaler would start for a demand, where starts of some types have just failed."""
    types = config.get_node_type_configs()
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(each) for each in demand]),
            recoverable_resource_availabilities={name: float(name not in failed) for name in types},
        )
    )
    started: Counter[str] = Counter()
    for launch in reply.to_launch:
        started[launch.instance_type] += launch.count
    return dict(started)


def test_spot_machines_are_tried_first_and_others_where_there_are_none(taken: AutoscalingConfig) -> None:
    actor = {"CPU": 4.0, "GPU": 1.0}
    assert launched(taken, [actor] * 2) == {"gpu-spot": 2}
    assert launched(taken, [actor] * 2, failed=("gpu-spot",)) == {"gpu-on-demand": 2}
    assert launched(taken, [actor] * 6) == {"gpu-spot": 4, "gpu-on-demand": 2}
    assert launched(taken, [{"CPU": 2.0}] * 16) == {"cpu-spot": 2}
    assert launched(taken, [{"CPU": 2.0}] * 16, failed=("cpu-spot",)) == {"cpu-on-demand": 2}


def test_the_limit_holds_for_all_types_together(written: dict[str, Any], taken: AutoscalingConfig) -> None:
    demand = [{"CPU": 4.0, "GPU": 1.0}] * 50 + [{"CPU": 16.0}] * 50
    assert sum(launched(taken, demand).values()) <= written["max_workers"] + 1


def test_a_type_on_demand_stands_in_for_each_on_spot(cloud: str, written: dict[str, Any]) -> None:
    for name, kind in worker_types(written).items():
        node, spot = kind["node_config"], name.endswith("-spot")
        twin = written["available_node_types"][name.replace("-spot", "-on-demand")]
        assert kind["resources"] == twin["resources"]
        if cloud == "aws":
            assert ("InstanceMarketOptions" in node) == spot
            assert node["InstanceType"] == twin["node_config"]["InstanceType"]
        else:
            assert (node.get("scheduling", {}).get("provisioningModel") == "SPOT") == spot
            assert node["machineType"] == twin["node_config"]["machineType"]


def test_machines_are_somebody_by_a_role_and_not_by_keys(cloud: str, written: dict[str, Any]) -> None:
    text = (ROOT / f"cluster/{cloud}.yaml").read_text().lower()
    assert not [word for word in ("access_key", "secret_access", "private_key", "credentials:") if word in text]
    names = []
    for kind in written["available_node_types"].values():
        node = kind["node_config"]
        names.append(node["IamInstanceProfile"]["Arn"] if cloud == "aws" else node["serviceAccounts"][0]["email"])
    head, *workers = names
    assert "raypurify-head" in head
    assert all("raypurify-worker" in name for name in workers)


def test_jobs_need_the_token(written: dict[str, Any]) -> None:
    ((folder, local),) = written["file_mounts"].items()
    options = written["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert f"--env RAY_AUTH_TOKEN_PATH={folder}/auth_token" in options
    assert f"RAY_AUTH_TOKEN_PATH={local}/auth_token" in (ROOT / "cluster/README.md").read_text()


@pytest.mark.parametrize("cloud", ["aws"], indirect=True)
def test_ec2_knows_every_parameter_of_a_machine(written: dict[str, Any]) -> None:
    validator = botocore.validate.ParamValidator()
    model = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in written["available_node_types"].values():
        node = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        assert node.pop("SubnetIds")  # Ray's own: it picks one
        report = validator.validate(node, model)
        assert not report.has_errors(), report.generate_report()
    misspelt = {"MinCount": 1, "MaxCount": 1, "InstanceTyp": "m7i.large"}
    assert validator.validate(misspelt, model).has_errors()


@pytest.mark.parametrize("cloud", ["gcp"], indirect=True)
def test_compute_engine_knows_every_field_of_a_machine(written: dict[str, Any]) -> None:
    for kind in written["available_node_types"].values():
        node = kind["node_config"]
        assert set(node) <= INSTANCE
        assert node["disks"][0]["initializeParams"]["sourceImage"]
        if kind["resources"].get("GPU"):
            assert node["scheduling"]["onHostMaintenance"] == "TERMINATE"


@pytest.mark.parametrize("name", ["aws-head", "aws-data"])
def test_a_policy_grants_no_more_than_it_says(name: str) -> None:
    policy = json.loads((ROOT / f"cluster/iam/{name}.json").read_text())
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if "*" in action and action != "ec2:Describe*"]
        if {"iam:PassRole", "s3:PutObject"} & set(actions):
            assert statement["Resource"] != "*"
