"""The files of cluster/ against what their readers know; every single misspelt key must be refused."""

import copy
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from raydistal import cli
from raydistal.pipelines import submit
from raydistal.serving import settings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ("aws.yaml", "gcp.yaml")
KUBERAY = sorted(f"kuberay/{path.name}" for path in (CLUSTER / "kuberay").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
RAY_VERSION = re.search(r"^ARG RAY_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE).group(1)
IMAGE = f"raydistal:{PROJECT['version']}-ray{RAY_VERSION}"

# What is allowed: a dict by its keys, a list by what each of its items may be, anything else by None. "*": any key.
GCP_NODE = {
    "machineType": None,
    "disks": [
        {
            "boot": None,
            "autoDelete": None,
            "type": None,
            "initializeParams": {"diskSizeGb": None, "diskType": None, "sourceImage": None},
        }
    ],
    "serviceAccounts": [{"email": None, "scopes": None}],
    "scheduling": {
        "provisioningModel": None,
        "instanceTerminationAction": None,
        "automaticRestart": None,
        "onHostMaintenance": None,
    },
}
PROVIDER = {
    "aws": {"security_group": {"GroupName": None}},
    "gcp": {"project_id": None},
}
for keys in PROVIDER.values():
    keys |= dict.fromkeys(("type", "region", "availability_zone", "cache_stopped_nodes"))
QUANTITIES = dict.fromkeys(("cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"))
RESOURCES = {"requests": QUANTITIES, "limits": QUANTITIES}
SECURITY = {
    "allowPrivilegeEscalation": None,
    "capabilities": {"drop": None},
    "runAsNonRoot": None,
    "runAsUser": None,
    "seccompProfile": {"type": None},
}
EXPRESSIONS = {"matchExpressions": [dict.fromkeys(("key", "operator", "values"))]}
CONTAINER = {
    "name": None,
    "image": None,
    "resources": RESOURCES,
    "ports": [{"name": None, "containerPort": None}],
    "lifecycle": {"preStop": {"exec": {"command": None}}},
    "securityContext": SECURITY,
}
POD = {
    "serviceAccountName": None,
    "tolerations": [dict.fromkeys(("key", "operator", "value", "effect"))],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": None, "preference": EXPRESSIONS}]
        }
    },
    "terminationGracePeriodSeconds": None,
    "containers": [CONTAINER],
}
GROUP = {"rayStartParams": {"num-cpus": None}, "template": {"spec": POD}}
WORKERS = GROUP | dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas"))
CLUSTER_SPEC = {
    "rayVersion": None,
    "authOptions": {"mode": None},
    "enableInTreeAutoscaling": None,
    "autoscalerOptions": {
        "version": None,
        "idleTimeoutSeconds": None,
        "resources": RESOURCES,
        "securityContext": SECURITY,
    },
    "headGroupSpec": {"serviceType": None} | GROUP,
    "workerGroupSpecs": [WORKERS],
}
OBJECT = {"apiVersion": None, "kind": None, "metadata": {"name": None, "generateName": None, "labels": {"*": None}}}
SPECS: dict[str, dict[str, Any]] = {
    "ServiceAccount": {},
    "RayCluster": CLUSTER_SPEC,
    "RayService": {
        "upgradeStrategy": {"type": None},
        "serveConfigV2": {"*": None},  # has its own reader
        "rayClusterConfig": CLUSTER_SPEC,
    },
    "RayJob": {"clusterSelector": {"*": None}, "entrypoint": None},
}


def read(name: str) -> list[dict[str, Any]]:
    """The documents of a file of cluster/, without aliases: each key can be changed alone."""
    documents = json.loads(json.dumps(list(yaml.safe_load_all((CLUSTER / name).read_text()))))
    for document in documents:
        if served := document.get("spec", {}).get("serveConfigV2"):  # text there
            document["spec"]["serveConfigV2"] = yaml.safe_load(served)
    return documents


def unknown(content: Any, allowed: Any) -> list[str]:
    """Keys of `content` that `allowed` does not name."""
    if isinstance(content, list) and isinstance(allowed, list):
        return [key for item in content for key in unknown(item, allowed[0])]
    if not isinstance(content, dict) or not isinstance(allowed, dict) or "*" in allowed:
        return []
    found = [key for key in content if key not in allowed]
    return found + [key for name in content if name in allowed for key in unknown(content[name], allowed[name])]


def check_ray_up(documents: list[dict[str, Any]]) -> None:
    """The keys of a provider and of its machines, which Ray's schema does not know; and that schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    [config] = documents
    provider = config["provider"]["type"]
    assert not unknown(config["provider"], PROVIDER[provider])
    assert config.keys() >= {"setup_commands", "head_setup_commands", "worker_setup_commands"}  # else a nightly Ray
    for kind in config["available_node_types"].values():
        assert kind["resources"].keys() <= {"CPU", "GPU"}
        if provider == "aws":
            check_ec2(kind["node_config"])
        else:
            assert not unknown(kind["node_config"], GCP_NODE)
    validate_config(prepare_config(config))


def check_ec2(machine: dict[str, Any]) -> None:
    """As boto3 does it before it asks EC2 for the machine."""
    import botocore.session
    from botocore.validate import ParamValidator

    global _run_instances
    _run_instances = _run_instances or botocore.session.get_session().get_service_model("ec2").operation_model(
        "RunInstances"
    )
    report = ParamValidator().validate(machine | {"MinCount": 1, "MaxCount": 1}, _run_instances.input_shape)
    assert not report.has_errors(), report.generate_report()


_run_instances: Any = None
_serve_config: Any = None


def check_kuberay(documents: list[dict[str, Any]]) -> None:
    """How Ray's autoscaler reads a RayCluster, the keys that we use, and entry points as command lines."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    for document in documents:
        assert not unknown(document, OBJECT | ({"spec": spec} if (spec := SPECS[document["kind"]]) else {}))
        if document["kind"] in ("RayCluster", "RayService"):
            named = document | {"metadata": document["metadata"] | {"namespace": "default"}}
            named["spec"] = document["spec"].get("rayClusterConfig", document["spec"])
            _derive_autoscaling_config_from_ray_cr(named)
        if document["kind"] == "RayService":
            check_serve([document["spec"]["serveConfigV2"]])
        elif document["kind"] == "RayJob":
            check_command(document["spec"]["entrypoint"])


def check_serve(documents: list[dict[str, Any]]) -> None:
    """How `serve run` reads it, which by itself ignores keys that it does not know, and how the app reads its args."""
    from ray.serve.schema import ServeDeploySchema

    from raydistal.serving import app

    global _serve_config
    [config] = documents
    _serve_config = _serve_config or jsonschema.Draft202012Validator(closed(ServeDeploySchema.model_json_schema()))
    _serve_config.validate(config)
    [application] = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == f"{app.build.__module__}:{app.build.__name__}"
    assert settings.parse(application.args).limits
    assert not config["logging_config"]["enable_access_log"]


def check_command(line: str) -> None:
    """raydistal VERB OPTIONS, and raydistal submit ... -- VERB OPTIONS, as far as reading them goes."""
    program, *arguments = shlex.split(line)
    assert program == "raydistal"
    config = cli.parse(arguments)
    if isinstance(config, submit.Config) and config.command:
        check_command(shlex.join(["raydistal", *config.command]))


CHECKS: list[tuple[str, Callable[[list[dict[str, Any]]], None]]] = [
    *((name, check_ray_up) for name in RAY_UP),
    *((name, check_kuberay) for name in KUBERAY),
    ("serve.yaml", check_serve),
]
FREE = {"file_mounts", "available_node_types", "labels", "clusterSelector"}  # their keys are names of our own


def keys_of(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every key that has a meaning to someone else."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(content, dict) and not FREE & set(place[-1:]):
            yield (*place, key)
        if isinstance(value, dict | list):
            yield from keys_of(value, (*place, key))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "check"), CHECKS)
def test_a_file_is_valid_and_with_any_key_misspelt_it_is_not(name, check, capsys):
    right = read(name)
    check(copy.deepcopy(right))
    places = list(keys_of(right))
    assert len(places) > 4
    for *place, key in places:
        wrong = copy.deepcopy(right)
        holder = wrong
        for step in place:
            holder = holder[step]
        holder[f"{key}s"] = holder.pop(key)
        try:
            check(wrong)
        except (Exception, SystemExit):  # each reader has its own
            continue
        pytest.fail(f"{name}: {'.'.join(map(str, place))}.{key}s is taken")


def test_what_a_misspelt_value_does(capsys):
    [job] = read("kuberay/rayjob-train.yaml")
    for right, wrong in (("train", "trian"), ("--num-workers", "--num-worker"), ("raydistal ", "raydsital ")):
        with pytest.raises((AssertionError, SystemExit)):
            check_command(job["spec"]["entrypoint"].replace(right, wrong, 1))
    [aws] = read("aws.yaml")
    aws["available_node_types"]["cpu"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] = "200 GB"
    with pytest.raises(AssertionError, match="VolumeSize"):
        check_ray_up([aws])


def test_there_is_one_image_with_one_ray_everywhere():
    bound = next(Version(RAY_VERSION) in SpecifierSet(d.split("]")[1]) for d in PROJECT["dependencies"] if "ray[" in d)
    assert bound
    assert f"--tag {IMAGE} ." in DOCKERFILE
    assert {read(name)[0]["docker"]["image"] for name in RAY_UP} == {IMAGE}
    _, cluster = read("kuberay/raycluster.yaml")
    [service] = read("kuberay/rayservice.yaml")
    for spec in (cluster["spec"], service["spec"]["rayClusterConfig"]):
        pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
        assert {container["image"] for pod in pods for container in pod["containers"]} == {IMAGE}
        assert spec["rayVersion"] == RAY_VERSION
    assert set(re.findall(r"raydistal:[\w.-]+", (ROOT / "docs/cluster.md").read_text())) == {IMAGE}


def test_the_image_is_pinned_not_root_and_made_of_what_docker_is_given():
    python = re.search(r"^FROM python:(\d+\.\d+\.\d+)-slim-\w+$", DOCKERFILE, re.MULTILINE).group(1)
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])
    instructions = re.findall(r"^(USER|COPY|ENV) (.+)$", DOCKERFILE, re.MULTILINE)
    assert [words for name, words in instructions if name == "USER"] == ["1000"]
    copied = {word for name, words in instructions if name == "COPY" for word in words.split()[:-1]}
    given = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == given
    assert all((ROOT / name).exists() for name in copied)
    assert "RAY_AUTH_MODE=token" in DOCKERFILE


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_costs_nothing_idle_and_opens_no_port(name):
    [config] = read(name)
    kinds = config["available_node_types"]
    assert all(kind["min_workers"] == 0 for kind in kinds.values())
    assert sum(kind["max_workers"] for kind in kinds.values()) <= config["max_workers"]
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_kuberay_asks_for_a_token_and_for_what_it_may_use():
    account, cluster = read("kuberay/raycluster.yaml")
    [service] = read("kuberay/rayservice.yaml")
    assert [group["minReplicas"] for group in cluster["spec"]["workerGroupSpecs"]] == [0, 0]
    for spec in (cluster["spec"], service["spec"]["rayClusterConfig"]):
        assert spec["authOptions"] == {"mode": "token"}
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            [container] = pod["containers"]
            assert pod["serviceAccountName"] == account["metadata"]["name"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["runAsNonRoot"]
    for name in KUBERAY:
        for document in read(name):
            if document["kind"] == "RayJob":
                assert document["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def closed(schema: Any) -> Any:
    """A schema of Kubernetes that takes no unknown keys, as the API server does with --validate=strict."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        inner["additionalProperties"] = False
    return inner


def check_crd(document: dict[str, Any], crd: dict[str, Any]) -> None:
    [version] = [version for version in crd["spec"]["versions"] if f"/{version['name']}" in document["apiVersion"]]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}
    jsonschema.validate(document, schema)


def test_crds_are_closed():
    spec = {"type": "object", "properties": {"suspend": {"type": "boolean"}}}
    crd = {"type": "object", "properties": {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": spec}}
    crd = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": crd}}]}}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "x"}, "spec": {"suspend": True}}
    check_crd(job, crd)
    with pytest.raises(jsonschema.ValidationError, match="suspends"):
        check_crd(job | {"spec": {"suspends": True}}, crd)


@pytest.mark.skipif("RAYDISTAL_KUBERAY_CRDS" not in os.environ, reason="RAYDISTAL_KUBERAY_CRDS: KubeRay's folder crds")
def test_kuberay_files_against_its_crds():
    folder = Path(os.environ["RAYDISTAL_KUBERAY_CRDS"])
    crds = {crd["spec"]["names"]["kind"]: crd for path in folder.glob("*.yaml") if (crd := load_crd(path))}
    for name in KUBERAY:
        for document in yaml.safe_load_all((CLUSTER / name).read_text()):
            if document["kind"] != "ServiceAccount":
                check_crd(document, crds[document["kind"]])


def load_crd(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return content if content.get("kind") == "CustomResourceDefinition" else {}
