#!/usr/bin/env python3
"""Prints the objects that a cluster's administrator or the machine config operator has made before anyone asks for an OS image, as JSON for
`kubectl apply`: the pool `worker`, its rendered MachineConfig of the usual size (60 files, 40 units), the ControllerConfig with a trust bundle, and the
secret with which images are pushed.
usage: objects.py NAMESPACE BASE_IMAGE TRUST_BUNDLE DOCKER_CONFIG SECRET_NAME"""
import base64, hashlib, json, random, sys

namespace, base_image, trust_bundle, docker_config, secret_name = sys.argv[1:6]
group, prefix = "machineconfiguration.openshift.io/v1", "machineconfiguration.openshift.io/"
chance = random.Random(1)


def encoded(text):
    return base64.b64encode(text).decode()


def file(number):
    lines = (chance.choice((b"option=value\n", b"# a comment line\n", b"key %d\n" % chance.randrange(9999))) for _ in range(chance.randrange(20, 400)))
    source = "data:text/plain;charset=utf-8;base64," + encoded(b"".join(lines))
    return {"path": f"/etc/strata-demo/conf.d/{number:02}.conf", "mode": 0o644, "overwrite": True, "contents": {"source": source}}


def unit(number):
    text = f"[Unit]\nDescription=Demo {number}\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    return {"name": f"strata-demo-{number:02}.service", "enabled": True, "contents": text}


spec = {
    "osImageURL": base_image,
    "baseOSExtensionsContainerImage": "",
    "kernelType": "default",
    "extensions": [],
    "kernelArguments": [],
    "fips": False,
    "config": {"ignition": {"version": "3.3.0"}, "storage": {"files": [file(i) for i in range(60)]}, "systemd": {"units": [unit(i) for i in range(40)]}},
}
rendered = "rendered-worker-" + hashlib.md5(json.dumps(spec).encode()).hexdigest()
configuration = {"name": rendered, "source": [{"apiVersion": group, "kind": "MachineConfig", "name": "00-worker"}]}
objects = [
    {
        "apiVersion": group,
        "kind": "MachineConfig",
        "metadata": {
            "name": rendered,
            "annotations": {prefix + "release-image-version": "4.20.0-demo", prefix + "generated-by-controller-version": "demo"},
        },
        "spec": spec,
    },
    {
        "apiVersion": group,
        "kind": "MachineConfigPool",
        "metadata": {"name": "worker"},
        "spec": {
            "machineConfigSelector": {"matchLabels": {prefix + "role": "worker"}},
            "nodeSelector": {"matchLabels": {"node-role.kubernetes.io/worker": ""}},
            "paused": False,
            "configuration": configuration,
        },
    },
    {
        "apiVersion": group,
        "kind": "ControllerConfig",
        "metadata": {"name": "machine-config-controller"},
        "spec": {"additionalTrustBundle": encoded(open(trust_bundle, "rb").read())},
    },
    {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": encoded(open(docker_config, "rb").read())},
    },
]
json.dump({"apiVersion": "v1", "kind": "List", "items": objects}, sys.stdout)
